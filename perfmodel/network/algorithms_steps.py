"""What algorithms are written in: steps whose messages name the blocks they carry, and schedules made of them.

It owns the form; the algorithms themselves are in ``algorithms_reduce``, ``algorithms_gather``,
``algorithms_exchange``, ``algorithms_tree``, ``algorithms_levels`` and ``algorithms_bine``. It prices nothing.

A step knows both the bytes of its messages (what a Round needs, cheap at any scale) and, on demand, which blocks each
of them carries, so that a test can execute the schedule and see that every rank ends with what the collective defines.

Blocks are numbered 0 to num_blocks - 1. all_reduce, broadcast: equal parts of the buffer. all_gather, reduce_scatter:
equal parts of the whole; rank r owns part r (num_blocks/n consecutive blocks). all_to_all: block s*n + d goes from
rank s to rank d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.schedule import Round, Schedule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Blocks = Sequence[Ints]
Carried = Callable[[int], Blocks]  # repeat -> blocks of each message


@dataclass(frozen=True, kw_only=True)
class Step:
    """One round with its blocks. source, target: int64 [M]; fraction: float64 [M], of m.

    carried: for the k-th repeat (from 0) the blocks of each message, M arrays. reduces: the target adds what comes to
    what it has (otherwise it keeps what comes), for all messages or bool [M]. adds_on_arrival: what comes is kept as a
    block and its reduction with the others counted here. copied: of m, by every rank. repeat: how many times in a row.
    """

    source: Ints
    target: Ints
    fraction: Floats
    carried: Carried
    reduces: bool | NDArray[np.bool_] = False
    adds_on_arrival: bool = False
    copied: float = 0.0
    repeat: int = 1

    def round(self) -> Round:
        reduced = self.fraction * (np.asarray(self.reduces) | self.adds_on_arrival)
        return Round(
            source=self.source, target=self.target, fraction=self.fraction, reduced=reduced,
            copied=self.copied, repeat=self.repeat,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepSchedule(Schedule):
    """A schedule that also tells its blocks. make_steps yields the steps in order, anew at each call.

    make_shift: where set, the schedule is exchanges number 1 to n-1, each a message of every rank, ``window`` of them
    to a round; this gives one of them alone, so that an evaluator may sample them.
    gathers_buffers: an all_reduce whose blocks are the ranks' whole buffers, all gathered everywhere.
    """

    num_blocks: int
    make_steps: Callable[[], Iterator[Step]]
    make_shift: Callable[[int], Step] | None = None
    window: int = 1
    gathers_buffers: bool = False

    def steps(self) -> Iterator[Step]:
        return self.make_steps()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An algorithm for n ranks before it is given its name: its blocks, rounds (repeats counted) and steps."""

    num_blocks: int
    num_rounds: int
    steps: Callable[[], Iterator[Step]]
    shift: Callable[[int], Step] | None = None
    window: int = 1
    symmetric: bool = False
    gathers_buffers: bool = False


def schedule_of(collective: str, algorithm: str, num_ranks: int, recipe: Recipe) -> StepSchedule:
    """The recipe as a named schedule."""
    return StepSchedule(
        collective=collective,
        algorithm=algorithm,
        num_ranks=num_ranks,
        num_rounds=recipe.num_rounds,
        make_rounds=lambda: (step.round() for step in recipe.steps()),
        symmetric=recipe.symmetric,
        num_blocks=recipe.num_blocks,
        make_steps=recipe.steps,
        make_shift=recipe.shift,
        window=recipe.window,
        gathers_buffers=recipe.gathers_buffers,
    )


def nothing(num_blocks: int = 1) -> Recipe:
    """What one rank does."""
    return Recipe(num_blocks=num_blocks, num_rounds=0, steps=lambda: iter(()), symmetric=True)


def in_sequence(num_blocks: int, *parts: Recipe, symmetric: bool | None = None) -> Recipe:
    """One recipe after another on the same blocks."""

    def steps() -> Iterator[Step]:
        for part in parts:
            yield from part.steps()

    return Recipe(
        num_blocks=num_blocks,
        num_rounds=sum(part.num_rounds for part in parts),
        steps=steps,
        symmetric=all(part.symmetric for part in parts) if symmetric is None else symmetric,
    )


def within_groups(
    recipe: Recipe, groups: Ints, blocks_of: Callable[[int, int], Ints], *, num_blocks: int, scale: float
) -> Recipe:
    """A recipe for k ranks done by several disjoint groups at once.

    groups: int64 [G, k], the ranks of each. blocks_of(g, b): the blocks that the group's block b stands for. scale:
    the group's m as a part of the whole's.
    """

    def mapped(step: Step) -> Step:
        assert isinstance(step.reduces, bool), "messages of one kind"

        def carried(repetition: int) -> Blocks:
            inner = step.carried(repetition)
            return [
                np.concatenate([blocks_of(group, int(block)) for block in blocks])
                for group in range(len(groups))
                for blocks in inner
            ]

        return replace(
            step,
            source=groups[:, step.source].ravel(),
            target=groups[:, step.target].ravel(),
            fraction=np.tile(step.fraction * scale, len(groups)),
            carried=carried,
            copied=step.copied * scale,
        )

    return Recipe(
        num_blocks=num_blocks,
        num_rounds=recipe.num_rounds,
        steps=lambda: (mapped(step) for step in recipe.steps()),
    )


def shift_step(
    num_ranks: int, shift: int, fraction: float, carried: Callable[[int, int], Ints], **rest: bool | float | int
) -> Step:
    """Every rank sends to the rank ``shift`` further on. carried(k, r): blocks of rank r's message in repeat k."""
    ranks = np.arange(num_ranks, dtype=np.int64)
    return Step(
        source=ranks,
        target=(ranks + shift) % num_ranks,
        fraction=np.full(num_ranks, fraction),
        carried=lambda repetition: [carried(repetition, rank) for rank in range(num_ranks)],
        **rest,  # type: ignore[arg-type]
    )


def uniform_step(source: Ints, target: Ints, fraction: float, carried: Carried, **rest: bool | float | int) -> Step:
    """Messages of one size."""
    return Step(
        source=source, target=target, fraction=np.full(len(source), fraction), carried=carried,
        **rest,  # type: ignore[arg-type]
    )  # fmt: skip


def block_range(begin: int, count: int, num_blocks: int) -> Ints:
    """``count`` blocks from ``begin`` on, wrapping around."""
    return (begin + np.arange(count, dtype=np.int64)) % num_blocks


def singles(blocks: Ints) -> Carried:
    """Message i carries block i of the list."""
    return lambda _: [np.array([block]) for block in blocks]


def ranges(begins: Ints, count: int, num_blocks: int) -> Carried:
    """Message i carries ``count`` blocks from begins[i] on, wrapping around."""
    return lambda _: [block_range(int(begin), count, num_blocks) for begin in begins]


def same(blocks: Ints, num_messages: int) -> Carried:
    """Every message carries these blocks."""
    return lambda _: [blocks] * num_messages


def power_below(num_ranks: int) -> int:
    """The largest power of two not above num_ranks."""
    return 1 << (num_ranks.bit_length() - 1)


def rounds_of_doubling(num_ranks: int) -> int:
    """ceil(log2 n)."""
    return (num_ranks - 1).bit_length()
