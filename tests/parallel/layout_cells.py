"""The correctness matrix of FS-3D: every combination that is possible, and a pairwise-covering choice of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations, product

from janus.layout import layouts_of

WORLD_SIZES = (1, 2, 4, 8)
FAMILIES = ("matris", "matris-moe")


@dataclass(frozen=True, order=True)
class Cell:
    """One case. structures: "mixed" (uneven, with a one-atom cell, an isolated atom and a cluster) or "single"
    (one structure: all but one graph group are empty). gathered_blocks, strategy, replication as in ParallelConfig.
    """

    world_size: int
    transport: str
    family: str
    unit: int
    shard_degree: int
    graph_degree: int
    expert_degree: int
    placement: str
    structures: str
    recompute: bool
    gathered_blocks: int
    strategy: str
    clip: bool

    @property
    def name(self) -> str:
        """One line."""
        return " ".join(f"{key}={value}" for key, value in asdict(self).items())

    def pairs(self) -> set[tuple[tuple[str, object], tuple[str, object]]]:
        """All pairs of (factor, value)."""
        return set(combinations(sorted(asdict(self).items()), 2))


def all_cells() -> list[Cell]:
    """Every layout of 1, 2, 4 and 8 ranks in every variant that makes a difference."""
    cells = []
    for world_size, family in product(WORLD_SIZES, FAMILIES):
        for layout in layouts_of(world_size, with_experts=family == "matris-moe"):
            transports = ("gloo", "mpi") if world_size > 1 else ("gloo",)
            placements = ("unit_first", "replica_first") if 1 < layout.unit < world_size else ("unit_first",)
            gathered = (2, 0) if layout.shard_degree > 1 else (2,)
            strategies = ("tokens", "weights") if layout.expert_degree > 1 else ("tokens",)
            for transport, placement, structures, recompute, blocks, strategy, clip in product(
                transports, placements, ("mixed", "single"), (False, True), gathered, strategies, (True, False)
            ):
                cells.append(Cell(
                    world_size, transport, family, layout.unit, layout.shard_degree, layout.graph_degree,
                    layout.expert_degree, placement, structures, recompute, blocks, strategy, clip,
                ))  # fmt: skip
    return cells


def covering_cells() -> list[Cell]:
    """A choice in which every pair of values that occurs together anywhere occurs in some cell: greedy, repeatable."""
    cells = all_cells()
    pairs = [cell.pairs() for cell in cells]
    missing = set().union(*pairs)
    chosen = []
    while missing:
        gains = [len(missing & pair) for pair in pairs]
        best = max(range(len(cells)), key=lambda number: (gains[number], -cells[number].world_size, -number))
        chosen.append(cells[best])
        missing -= pairs[best]
        alive = [number for number, gain in enumerate(gains) if gain]
        cells, pairs = [cells[number] for number in alive], [pairs[number] for number in alive]
    return chosen


def default_cells() -> list[Cell]:
    """The covering choice, and every layout of 2 ranks."""
    chosen = covering_cells()
    seen = {(c.family, c.unit, c.shard_degree, c.graph_degree, c.expert_degree) for c in chosen if c.world_size == 2}
    for cell in all_cells():
        key = (cell.family, cell.unit, cell.shard_degree, cell.graph_degree, cell.expert_degree)
        if cell.world_size == 2 and key not in seen:
            seen.add(key)
            chosen.append(cell)
    return chosen
