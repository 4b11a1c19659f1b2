"""When a step restores what it frees: sharded blocks and experts' weights that travel, micro-batch by micro-batch.

It follows the accesses as janus/parallel/gathered.py does and owns no bytes (``traffic``). L blocks, ``keep`` of them
held at a time, m micro-batches. Where every block is used, as always where parameters are sharded, that comes to

    sharded blocks   FE: all L in the first micro-batch, blocks >= keep in each further one;
                     FF and BE: blocks < L - keep;  BF: blocks >= keep;  no further ones where keep >= L
    experts' weights the same, but all L in FE of every micro-batch, whose plan is new

FE and BF climb, FF and BE descend; on arrival at a block it and the next in that direction are fetched, and what is
farthest from it is freed. Where parameters are not sharded a block is met only if its experts' weights travel
("tokens": if some are lent), so that what is held at a turning point depends on the plans.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from janus.placement import PHASES

Kind = Literal["shard", "expert"]


@dataclass(frozen=True)
class Restorations:
    """blocks: (phase, block) of each all-gather of a block; experts: phases in which a block's experts' weights are
    restored, by (micro-batch, block).
    """

    blocks: list[tuple[str, int]] = field(default_factory=list)
    experts: dict[tuple[int, int], list[str]] = field(default_factory=dict)


def restorations(
    num_blocks: int, keep: int | None, lending: Sequence[Collection[int]], *, sharded: bool, spread: bool
) -> Restorations:
    """All restorations of one step. keep: blocks held at a time, None: all.

    lending: per micro-batch, the blocks in which experts' weights travel. sharded, spread: whether blocks' parameters
    are sharded, and whether experts are spread.
    """
    return _restorations(num_blocks, keep, tuple(frozenset(lends) for lends in lending), sharded, spread)


@lru_cache(maxsize=16)  # the ranks of a unit ask the same
def _restorations(
    num_blocks: int, keep: int | None, lending: tuple[frozenset[int], ...], sharded: bool, spread: bool
) -> Restorations:
    held = _Held(num_blocks, keep, sharded=sharded, spread=spread)
    if sharded:
        held.start(0, ["shard"], "FE")
    for number, lends in enumerate(lending):
        held.next_micro_batch(number)
        for phase in PHASES:
            climb = range(num_blocks)
            for block in climb if phase in ("FE", "BF") else reversed(climb):
                if sharded:
                    held.use(block, "shard", phase)
                if spread and block in lends:
                    held.use(block, "expert", phase)
    return held.found


class _Held:
    """What is held of each block, and what has been restored so far."""

    def __init__(self, num_blocks: int, keep: int | None, *, sharded: bool, spread: bool) -> None:
        self.keep, self.num_blocks = keep, num_blocks
        self.kinds: list[Kind] = []
        if sharded:
            self.kinds.append("shard")
        if spread:
            self.kinds.append("expert")
        self.live: dict[int, set[Kind]] = {block: set() for block in range(num_blocks)}
        self.current: int | None = None
        self.micro_batch = 0
        self.found = Restorations()

    def next_micro_batch(self, number: int) -> None:
        """A new plan: what the one before restored of the experts is freed, block 0's is fetched at once."""
        self.micro_batch = number
        for kinds in self.live.values():
            kinds.discard("expert")
        if "expert" in self.kinds:
            self.start(0, ["expert"], "FE")

    def use(self, block: int, kind: Kind, phase: str) -> None:
        if block != self.current or kind not in self.live[block]:
            self._arrive(block, phase)

    def start(self, block: int, kinds: Sequence[Kind], phase: str) -> None:
        for kind in kinds:
            if kind not in self.live[block]:
                self.live[block].add(kind)
                if kind == "shard":
                    self.found.blocks.append((phase, block))
                else:
                    self.found.experts.setdefault((self.micro_batch, block), []).append(phase)

    def _arrive(self, block: int, phase: str) -> None:
        came_from = block - 1 if self.current is None else self.current
        ahead = block + (1 if block >= came_from else -1)
        wanted = [block, ahead] if 0 <= ahead < self.num_blocks else [block]
        if self.keep is not None:
            behind = [other for other, kinds in self.live.items() if kinds and other not in wanted]
            behind.sort(key=lambda other: -abs(other - block))
            for farthest in behind[: max(0, len(behind) + len(wanted) - self.keep)]:
                self.live[farthest].clear()
        for one in wanted:
            self.start(one, self.kinds, phase)
        self.current = block
