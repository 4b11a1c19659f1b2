"""The correctness matrix of FS-3D: every combination that is possible, and a pairwise-covering choice of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import combinations, product

from janus.layout import layouts_of

WORLD_SIZES = (1, 2, 4, 8)
FAMILIES = ("matris", "matris-moe")


@dataclass(frozen=True, order=True)
class Cell:
    """One case. structures: "mixed" (uneven, with a one-atom cell, an isolated atom and a cluster) or "single"
    (one structure: all but one graph group are empty). gathered_blocks, strategy as in ParallelConfig; lends: hot
    experts are lent whenever that balances the load, however many bytes it costs.
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
    lends: bool
    clip: bool
    dtype: str = "float64"

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
            spread = layout.expert_degree > 1
            strategies = [("tokens", True), ("tokens", False), ("weights", False)] if spread else [("tokens", False)]
            for transport, placement, structures, recompute, blocks, (strategy, lends), clip in product(
                transports, placements, ("mixed", "single"), (False, True), gathered, strategies, (True, False)
            ):
                cells.append(Cell(
                    world_size, transport, family, layout.unit, layout.shard_degree, layout.graph_degree,
                    layout.expert_degree, placement, structures, recompute, blocks, strategy, lends, clip,
                ))  # fmt: skip
    return cells


MOST_EIGHTS = 5  # 8 ranks on 2 cores take their time: the slow matrix has every layout of them


def cells_to_cover() -> list[Cell]:
    """Of which every pair of values is to occur in the default choice."""
    return [cell for cell in all_cells() if cell.world_size < 8]


def covering_cells(cells: list[Cell], most: int | None = None) -> list[Cell]:
    """A choice in which every pair of values that occurs together anywhere occurs in some cell: greedy, repeatable.

    most: end after so many cells, covered or not.
    """
    pairs = [cell.pairs() for cell in cells]
    missing = set().union(*pairs)
    chosen: list[Cell] = []
    while missing and len(chosen) != most:
        gains = [len(missing & pair) for pair in pairs]
        best = max(range(len(cells)), key=lambda number: (gains[number], -cells[number].world_size, -number))
        chosen.append(cells[best])
        missing -= pairs[best]
        alive = [number for number, gain in enumerate(gains) if gain]
        cells, pairs = [cells[number] for number in alive], [pairs[number] for number in alive]
    return chosen


def delicate_cells() -> list[Cell]:
    """What pairs do not bring together: freed shards, freed experts and recomputation of one block; float32."""
    both = Cell(4, "mpi", "matris-moe", 4, 4, 2, 2, "unit_first", "mixed", True, 2, "weights", False, True)
    lent = replace(both, transport="gloo", strategy="tokens", lends=True, clip=False)
    single = [
        Cell(4, "mpi", "matris-moe", 4, 2, 2, 4, "unit_first", "mixed", False, 2, "tokens", True, True),
        Cell(2, "gloo", "matris", 2, 2, 2, 1, "unit_first", "mixed", True, 2, "tokens", False, True),
        Cell(2, "mpi", "matris-moe", 2, 2, 1, 2, "unit_first", "mixed", False, 0, "weights", False, False),
    ]
    return [both, lent, *(replace(cell, dtype="float32") for cell in single)]


def default_cells() -> list[Cell]:
    """The covering choice, a few cells of 8 ranks, what is delicate, and every layout of 2 ranks."""
    eights = covering_cells([cell for cell in all_cells() if cell.world_size == 8], MOST_EIGHTS)
    chosen = [*covering_cells(cells_to_cover()), *eights, *delicate_cells()]
    seen = {(c.family, c.unit, c.shard_degree, c.graph_degree, c.expert_degree) for c in chosen if c.world_size == 2}
    for cell in all_cells():
        key = (cell.family, cell.unit, cell.shard_degree, cell.graph_degree, cell.expert_degree)
        if cell.world_size == 2 and key not in seen:
            seen.add(key)
            chosen.append(cell)
    return chosen
