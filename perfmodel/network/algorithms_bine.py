"""Butterflies with any partners, and Bine (binomial negabinary) trees and butterflies on them.

It owns their messages, not their price. A butterfly is a list of pairings, one per round; which blocks a message
carries follows from who can still be reached, so XOR and Bine butterflies share their code.

Source: De Sensi et al. 2025, "Bine Trees: Enhancing Collective Operations by Optimizing Communication Locality"
(10.1145/3712285.3759835, arXiv 2508.17311): in round k even ranks meet rank r + (1 - (-2)^(k+1))/3, odd ranks
r - (1 - (-2)^(k+1))/3. Even numbers of ranks that are no power of two: the same partners, each block sent as early as
it can be (the paper's code sends the same bytes in all, divided a little otherwise over the rounds); odd numbers: the
ring. The variants for a torus with several ports per node (Fugaku) are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from perfmodel.network import algorithms_exchange as exchange
from perfmodel.network import algorithms_gather as gather
from perfmodel.network import algorithms_reduce as reduce
from perfmodel.network import algorithms_tree as tree
from perfmodel.network.algorithms_steps import (
    Blocks,
    Ints,
    Recipe,
    Step,
    in_sequence,
    nothing,
    power_below,
    rounds_of_doubling,
    same,
    uniform_step,
)


def _distance(k: int) -> int:
    """The value of k+1 ones as digits to base -2: 1, -1, 3, -5, 11, ..."""
    return int((1 - (-2) ** (k + 1)) // 3)


def bine_pairings(num_ranks: int) -> list[Ints]:
    """Partner of every rank in each round, distances growing; n even (pairs, since distances are odd)."""
    ranks = np.arange(num_ranks, dtype=np.int64)
    signs = np.where(ranks % 2 == 0, 1, -1)
    return [(ranks + signs * _distance(k)) % num_ranks for k in range(rounds_of_doubling(num_ranks))]


def xor_pairings(num_ranks: int) -> list[Ints]:
    """Rank XOR 1, 2, 4, ...; n a power of two."""
    ranks = np.arange(num_ranks, dtype=np.int64)
    return [ranks ^ (1 << k) for k in range(rounds_of_doubling(num_ranks))]


def _received(pairings: list[Ints]) -> list[list[Ints]]:
    """All-gather with the rounds backwards: [round][rank] blocks that the rank does not have and its partner has."""
    n = len(pairings[0])
    held = [{rank} for rank in range(n)]
    rounds = []
    for partner in reversed(pairings):
        new = [sorted(held[int(partner[rank])] - held[rank]) for rank in range(n)]
        for rank in range(n):
            held[rank].update(new[rank])
        rounds.append([np.array(blocks, dtype=np.int64) for blocks in new])
    return rounds


def _counts(pairings: list[Ints]) -> list[int]:
    """Blocks that a rank receives in each round of that all-gather; the same for all ranks of both butterflies."""
    n, partners = len(pairings[0]), [int(partner[0]) for partner in pairings]
    if not n & (n - 1):
        return [1 << k for k in range(len(pairings))]
    held = {0}  # offsets of an even rank's blocks; its partner, odd, has them mirrored
    counts = []
    for partner in reversed(partners):
        more = held | {(partner - offset) % n for offset in held}
        counts.append(len(more) - len(held))
        held = more
    return counts


def _butterfly(pairings: list[Ints], *, reduces: bool) -> Recipe:
    n, rounds = len(pairings[0]), len(pairings)
    ranks = np.arange(n, dtype=np.int64)
    counts = _counts(pairings)

    def step(k: int) -> Step:
        """Round k of the all-gather, turned round where it reduces: what came from a rank goes back to it."""

        def carried(_: int) -> Blocks:
            received = _received(pairings)[k]
            return received if reduces else [received[int(rank)] for rank in partner]

        partner = pairings[rounds - 1 - k]
        return uniform_step(ranks, partner, counts[k] / n, carried, reduces=reduces)

    order = list(range(rounds))[:: -1 if reduces else 1]
    kept = [k for k in order if counts[k]]
    return Recipe(num_blocks=n, num_rounds=len(kept), steps=lambda: (step(k) for k in kept))


def recursive_distance_doubling(num_ranks: int) -> Recipe:
    """Reduce-scatter with near partners first (XOR 1, 2, 4, ...); recursive halving where n is no power of two."""
    if num_ranks == 1 or num_ranks & (num_ranks - 1):
        return reduce.recursive_halving_reduce_scatter(num_ranks)
    return _butterfly(xor_pairings(num_ranks), reduces=True)


def reduce_scatter(num_ranks: int) -> Recipe:
    """Bine butterfly, near partners first: log2 n rounds of m/2, m/4, ... in one message each."""
    if num_ranks % 2:
        return reduce.ring_reduce_scatter(num_ranks)
    return _butterfly(bine_pairings(num_ranks), reduces=True)


def all_gather(num_ranks: int) -> Recipe:
    """Bine butterfly, far partners first: log2 n rounds of m/n, 2m/n, ... in one message each."""
    if num_ranks % 2:
        return gather.ring(num_ranks)
    return _butterfly(bine_pairings(num_ranks), reduces=False)


def all_reduce(num_ranks: int) -> Recipe:
    """Bine reduce-scatter, then Bine all-gather: 2 log2 n rounds, 2(n-1)/n m."""
    return in_sequence(num_ranks, reduce_scatter(num_ranks), all_gather(num_ranks))


def all_reduce_latency(num_ranks: int) -> Recipe:
    """Recursive doubling between Bine partners: log2 n rounds of the whole buffer; other n: pairs before and after."""
    return reduce.doubling(num_ranks, bine_pairings(power_below(num_ranks)) if num_ranks > 1 else [])


def permuted(recipe: Callable[[int], Recipe]) -> Callable[[int], Recipe]:
    """The same with a copy of m in memory, which puts the blocks of a message side by side."""

    def copying(num_ranks: int) -> Recipe:
        inner = recipe(num_ranks)

        def steps() -> Iterator[Step]:
            for index, step in enumerate(inner.steps()):
                yield replace(step, copied=step.copied + 1.0) if index == 0 else step

        return replace(inner, steps=steps)

    return copying


def block_by_block(recipe: Callable[[int], Recipe]) -> Callable[[int], Recipe]:
    """The same with a message of its own for every block."""

    def cut(step: Step, num_blocks: int) -> Step:
        assert step.repeat == 1, f"{step.repeat} repeats"
        carried = step.carried(0)
        counts = np.array([len(blocks) for blocks in carried], dtype=np.int64)
        blocks = np.concatenate(carried)
        return replace(
            step, source=np.repeat(step.source, counts), target=np.repeat(step.target, counts),
            fraction=np.full(len(blocks), 1 / num_blocks), carried=lambda _: [np.array([b]) for b in blocks],
        )  # fmt: skip

    def single(num_ranks: int) -> Recipe:
        inner = recipe(num_ranks)
        if num_ranks % 2:
            return inner
        return replace(inner, steps=lambda: (cut(step, inner.num_blocks) for step in inner.steps()))

    return single


def all_to_all(num_ranks: int) -> Recipe:
    """Bine butterfly for short messages: log2 n rounds of m/2, like Bruck's; Bruck's where n is no power of two."""
    n = num_ranks
    if n & (n - 1):
        return exchange.bruck(n)
    pairings = bine_pairings(n)
    rounds = len(pairings)
    ranks = np.arange(n, dtype=np.int64)

    def reached(first: int) -> Ints:
        table = ranks[:, None]
        for partner in reversed(pairings[first:]):
            table = np.concatenate([table, table[partner]], axis=1)
        return table

    def arrived(k: int) -> Ints:
        table = ranks[:, None]
        for partner in pairings[:k]:
            table = np.concatenate([table, table[partner]], axis=1)
        return table

    def step(k: int) -> Step:
        def carried(_: int) -> Blocks:
            sources, targets = arrived(k), reached(k + 1)[pairings[k]]
            return [(sources[rank][:, None] * n + targets[rank][None, :]).ravel() for rank in range(n)]

        return uniform_step(ranks, pairings[k], 0.5, carried, copied=2.0 if k == rounds - 1 else 1.0)

    return Recipe(num_blocks=n * n, num_rounds=rounds, steps=lambda: (step(k) for k in range(rounds)))


def _tree_rounds(num_ranks: int) -> list[tuple[Ints, Ints]]:
    """(senders, receivers) of the broadcast tree from rank 0, far partners first; n a power of two.

    In the round with j digits left a rank's partner is the one whose lowest j digits to base -2 are all flipped.
    """
    ranks = np.arange(num_ranks, dtype=np.int64)
    mask = np.int64(0xAAAAAAAA)
    digits = (ranks + mask) ^ mask
    has = ranks == 0
    rounds = []
    for left in range(rounds_of_doubling(num_ranks), 0, -1):
        partner = (((digits ^ ((1 << left) - 1)) ^ mask) - mask) % num_ranks
        senders = np.flatnonzero(has & ~has[partner]).astype(np.int64)
        rounds.append((senders, partner[senders]))
        has[partner[senders]] = True
    return rounds


def broadcast_tree(num_ranks: int) -> Recipe:
    """log2 n rounds of m down a Bine tree; n no power of two: the ranks beyond it get m in one more round."""
    n, power = num_ranks, power_below(num_ranks)
    if n == 1:
        return nothing()
    rounds = _tree_rounds(power)
    if power < n:
        rounds.append((np.arange(n - power, dtype=np.int64), np.arange(power, n, dtype=np.int64)))

    def steps() -> Iterator[Step]:
        for senders, receivers in rounds:
            yield uniform_step(senders, receivers, 1.0, same(np.array([0]), len(senders)))

    return Recipe(num_blocks=1, num_rounds=len(rounds), steps=steps)


def broadcast_scatter_allgather(num_ranks: int) -> Recipe:
    """Scatter down the Bine butterfly from rank 0, then Bine all-gather; scatter_allgather for n no power of two."""
    if num_ranks & (num_ranks - 1):
        return tree.scatter_allgather(num_ranks)
    pairings = bine_pairings(num_ranks)
    rounds = len(pairings)

    def scatter() -> Iterator[Step]:
        table = [np.arange(num_ranks, dtype=np.int64)[:, None]]
        for partner in reversed(pairings):
            table.append(np.concatenate([table[-1], table[-1][partner]], axis=1))
        has = np.arange(num_ranks) == 0
        for k in range(rounds):
            senders = np.flatnonzero(has).astype(np.int64)
            receivers = pairings[k][senders]
            has[receivers] = True
            blocks = table[rounds - 1 - k][receivers]
            yield uniform_step(senders, receivers, 0.5 ** (k + 1), lambda _, sent=blocks: list(sent))  # type: ignore[misc]

    return in_sequence(
        num_ranks, Recipe(num_blocks=num_ranks, num_rounds=rounds, steps=scatter), all_gather(num_ranks)
    )  # fmt: skip
