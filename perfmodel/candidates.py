"""The ways to run a job that a search tries: a table of candidates, one column per choice.

It owns which combinations make sense and which are the same run twice; it does not own what they cost (``search``).
Columns are whole numbers, so that candidates with equal values in a few columns can be found and priced once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.errors import UserError
from janus.layout import Layout, Placement, divisors
from janus.placement import STRATEGIES

Ints = NDArray[np.int64]
PLACEMENTS: tuple[Placement, ...] = ("unit_first", "replica_first")
DEGREES = ("unit", "shard_degree", "graph_degree", "expert_degree")
COLUMNS = (
    "world_size", *DEGREES, "placement", "cap", "recompute", "gathered_blocks", "expert_strategy",
    "expert_compression", "transport",
)  # fmt: skip
CHOICES = COLUMNS[6:]  # apart from the layout
LARGEST_UNIT = 64  # assumed: units above it are tried only where asked for
MOST_CAPS = 8
WORDS: Mapping[str, tuple[str, ...]] = {"placement": PLACEMENTS, "expert_strategy": STRATEGIES}


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is tried. world_sizes: ranks of the job; caps: of a micro-batch's work, ascending, None: none.

    ranks_per_node: for telling whether a placement matters; fixed: column -> the values allowed (as in ``Candidates``,
    words for placement and strategy, None for no cap).
    """

    world_sizes: tuple[int, ...]
    caps: tuple[int | None, ...] = (None,)
    transports: tuple[str, ...] = ("gloo",)
    ranks_per_node: int = 1
    largest_unit: int = LARGEST_UNIT
    fixed: Mapping[str, tuple[int | str | bool | None, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.world_sizes:
            raise UserError("no number of ranks is left to try: widen the range of --nodes or --world-size")
        for name in self.fixed:
            assert name in COLUMNS, f"{name} is not a column"

    def allowed(self, column: str, values: Sequence[int]) -> list[int]:
        """The values of a column that the user left open."""
        if column not in self.fixed:
            return list(values)
        wanted = {self._number(column, value) for value in self.fixed[column]}
        return [value for value in values if value in wanted]

    def _number(self, column: str, value: int | str | bool | None) -> int:
        if column in WORDS:
            return WORDS[column].index(str(value))
        if column == "cap":
            return self.caps.index(None if value is None else int(value))
        if column == "transport":
            return self.transports.index(str(value))
        return int(value or 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Columns [C] of whole numbers. placement, cap, expert_strategy, transport: places in their lists of values."""

    columns: Mapping[str, Ints]
    caps: tuple[int | None, ...]
    transports: tuple[str, ...]
    ranks_per_node: int
    known_places: dict[str, tuple[Ints, int]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.columns["world_size"])

    def __getitem__(self, name: str) -> Ints:
        return self.columns[name]

    @property
    def replicas(self) -> Ints:
        return self["world_size"] // self["unit"]

    @property
    def data_degree(self) -> Ints:
        return self["world_size"] // self["graph_degree"]

    @property
    def nodes(self) -> Ints:
        return -(-self["world_size"] // self.ranks_per_node)

    def take(self, which: NDArray[np.generic]) -> Candidates:
        """Some of the candidates, by number or by mask."""
        columns = {name: column[which] for name, column in self.columns.items()}
        return Candidates(
            columns=columns, caps=self.caps, transports=self.transports, ranks_per_node=self.ranks_per_node
        )

    def layout(self, number: int) -> Layout:
        """The layout of one candidate."""
        value = {name: int(self[name][number]) for name in ("world_size", "placement", *DEGREES)}
        return Layout(
            unit=value["unit"], replicas=value["world_size"] // value["unit"], shard_degree=value["shard_degree"],
            graph_degree=value["graph_degree"], expert_degree=value["expert_degree"],
            placement=PLACEMENTS[value["placement"]],
        )  # fmt: skip

    def cap(self, number: int) -> int | None:
        """The cap on a micro-batch's work of one candidate."""
        return self.caps[int(self["cap"][number])]

    def transport(self, number: int) -> str:
        return self.transports[int(self["transport"][number])]

    def keys(self, names: Sequence[str]) -> tuple[Ints, Ints]:
        """(one candidate of each distinct combination of these columns [K], which combination each one has [C])."""
        code, base = np.zeros(len(self), dtype=np.int64), 1
        for name in names:
            places, count = self._places(name)
            if base * count >= 2**62:
                code = np.unique(code, return_inverse=True)[1].astype(np.int64)
                base = len(self)
            code, base = code * count + places, base * count
        _, first, which = np.unique(code, return_index=True, return_inverse=True)
        return first.astype(np.int64), which.astype(np.int64)

    def _places(self, name: str) -> tuple[Ints, int]:
        """A column as places among its distinct values, and how many these are; worked out once."""
        if name not in self.known_places:
            values, places = np.unique(self[name], return_inverse=True)
            self.known_places[name] = (places.astype(np.int64), max(1, len(values)))
        return self.known_places[name]


def enumerate_candidates(
    model: ModelConfig,
    space: Space,
    heaviest_group: Callable[[int, int], float] | None = None,
    structures: Callable[[int], int] | None = None,
) -> Candidates:
    """Every combination that runs and differs from all others.

    heaviest_group(world size, data degree): work of the heaviest data group of a step: caps at or above it cap
    nothing and are left out. structures(world size): of a step; layouts with more data groups than that would leave
    some idle and are left out. Left out too: a placement where all ranks are on one node or units are trivial; policies
    of what a layout does not have. Raises UserError where the fixed values leave nothing.
    """
    parts = [_layout_rows(model, space, world_size) for world_size in space.world_sizes]
    rows = [row for part in parts for row in part]
    if not rows:
        raise UserError(_nothing_left(space))
    if structures is not None:
        rows = [row for row in rows if row[0] // row[3] <= structures(row[0])]
        if not rows:
            fewest = min(least_data_degree(model, space.fixed, size) for size in space.world_sizes)
            raise UserError(
                f"the layouts asked for have at least {fewest} groups of ranks that need a structure each, more than "
                "the global batch holds: give a larger --global-batch, fewer ranks or a higher graph degree"
            )
    heaviest = heaviest_group or (lambda world_size, data_degree: float("inf"))
    grids: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}  # layouts with equal other choices
    for row, choices in _choices_of(model, space, rows):
        world_size, graph = row[0], row[3]
        ceiling = heaviest(world_size, world_size // graph)
        caps = [place for place in choices["cap"]
                if (cap := space.caps[place]) is None or cap < ceiling or len(choices["cap"]) == 1]  # fmt: skip
        grids.setdefault(tuple(tuple(caps if name == "cap" else choices[name]) for name in CHOICES), []).append(row)
    table = np.concatenate([
        np.hstack([np.repeat(np.array(same), len(grid), axis=0), np.tile(grid, (len(same), 1))])
        for listed, same in grids.items()
        for grid in [np.array(list(product(*listed)), dtype=np.int64).reshape(-1, len(CHOICES))]
    ])  # fmt: skip
    moves_weights = table[:, COLUMNS.index("expert_strategy")] == STRATEGIES.index("weights")
    table = table[~(moves_weights & (table[:, COLUMNS.index("expert_compression")] == 1))]  # no rows travel there
    if not len(table):
        raise UserError(_nothing_left(space))
    columns = {name: np.ascontiguousarray(table[:, place]) for place, name in enumerate(COLUMNS)}
    return Candidates(
        columns=columns, caps=space.caps, transports=space.transports, ranks_per_node=space.ranks_per_node
    )


def _layout_rows(model: ModelConfig, space: Space, world_size: int) -> list[tuple[int, ...]]:
    """(world size, unit, shard, graph, expert, placement) of every layout of so many ranks."""
    rows: list[tuple[int, ...]] = []
    with_experts = model.experts is not None
    for unit in divisors(world_size):
        wanted = space.fixed.get("unit")
        if unit > space.largest_unit and wanted is None:
            break
        degrees = divisors(unit)
        graphs = [1] if model.compat else degrees
        for shard, graph, expert in product(
            space.allowed("shard_degree", degrees), space.allowed("graph_degree", graphs),
            space.allowed("expert_degree", degrees if with_experts else [1]),
        ):  # fmt: skip
            if max(shard, graph, expert) != unit or not space.allowed("unit", [unit]):
                continue
            matters = 1 < unit < world_size and world_size > space.ranks_per_node
            placements = space.allowed("placement", [0, 1]) if matters else [0]
            rows += [(world_size, unit, shard, graph, expert, placement) for placement in placements]
    return rows


def least_data_degree(
    model: ModelConfig, fixed: Mapping[str, Sequence[int | str | bool | None]], world_size: int
) -> int:
    """The fewest data groups that a layout of so many ranks can have: the structures that a step needs at least."""
    if model.compat:
        return world_size
    degrees = fixed.get("graph_degree") or fixed.get("unit") or divisors(world_size)
    limit = world_size if "graph_degree" in fixed or "unit" in fixed else LARGEST_UNIT
    dividing = [int(d or 1) for d in degrees if int(d or 1) <= limit and world_size % int(d or 1) == 0]
    return world_size // max(dividing, default=1)


def _choices_of(
    model: ModelConfig, space: Space, rows: Sequence[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], dict[str, list[int]]]]:
    """Every layout with the values of the other columns that make a difference to it."""
    result = []
    every = {
        "cap": space.allowed("cap", range(len(space.caps))),
        "recompute": space.allowed("recompute", [0, 1]),
        "transport": space.allowed("transport", range(len(space.transports))),
    }
    for row in rows:
        _, _, shard, _, expert, _ = row
        choices = dict(every)
        restores = (shard > 1 or expert > 1) and model.num_blocks > 2
        choices["gathered_blocks"] = space.allowed("gathered_blocks", [2, 0]) if restores else [2]
        choices["expert_strategy"] = space.allowed("expert_strategy", [0, 1]) if expert > 1 else [0]
        choices["expert_compression"] = space.allowed("expert_compression", [0, 1]) if expert > 1 else [0]
        result.append((row, choices))
    return result


def _nothing_left(space: Space) -> str:
    fixed = ", ".join(f"{name} {' or '.join(map(str, values))}" for name, values in space.fixed.items())
    worlds = ", ".join(str(size) for size in space.world_sizes[:6]) + (", ..." if len(space.world_sizes) > 6 else "")
    return f"no layout of {worlds} ranks has {fixed or 'what was asked for'}: give degrees that divide the ranks"


def caps_of(work: NDArray[np.generic], largest: float) -> tuple[int | None, ...]:
    """Caps on a micro-batch's work worth trying, ascending, and no cap.

    From the median structure (smaller caps only make micro-batches of one structure) by factors of two, over the
    heaviest structure, up to ``largest``, the work of the heaviest group; at most ``MOST_CAPS``, evenly thinned,
    rounded up to two digits.
    """
    lowest = max(1.0, float(np.median(np.asarray(work, dtype=np.float64))))
    steps = max(0, int(np.ceil(np.log2(max(1.0, largest / lowest)))))
    values = {_rounded_up(lowest * 2.0**step) for step in range(steps)}
    values = {value for value in values if value < largest}
    ordered = sorted(values)
    if len(ordered) > MOST_CAPS - 1:
        places = np.unique(np.linspace(0, len(ordered) - 1, MOST_CAPS - 1).round().astype(int))
        ordered = [ordered[place] for place in places]
    return (*ordered, None)


def _rounded_up(value: float) -> int:
    """Two significant digits, upwards."""
    digit = 10 ** max(0, int(np.floor(np.log10(max(value, 1.0)))) - 1)
    return int(np.ceil(value / digit) * digit)


Objective = Literal["run_s", "memory_bytes", "node_s"]


def pareto_front(objectives: NDArray[np.float64]) -> Ints:
    """Numbers of the rows [F] that no other row beats or equals in every column with one strictly better [C,K].

    Smaller is better; rows with a value that is not finite are left out; of equal rows the first stands for all;
    ascending in the first column. Each step takes the best of what is left in the order of the columns and drops all
    that it beats: front x C comparisons.
    """
    left = np.flatnonzero(np.isfinite(objectives).all(axis=1))
    left = left[np.lexsort(objectives[left].T[::-1])]
    front = []
    while len(left):
        best = objectives[left[0]]
        front.append(int(left[0]))
        left = left[(objectives[left] < best).any(axis=1)]
    return np.array(front, dtype=np.int64)
