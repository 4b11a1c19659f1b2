"""The parallel layout: how the ranks of a job form FS-3D units and replicas. Importable without torch.

It owns the arithmetic of the degrees and refuses impossible combinations. It does not own process groups
(``janus/parallel``) and not what a layout costs (``perfmodel``).

world = unit x replicas. One *unit* of ranks is at once the sharding group, the graph group and the expert group:
the three degrees each divide the unit and overlay it. A graph group shares one micro-batch, so the ranks of a unit
that are not in one graph group work on different data: data parallel inside the unit = unit / graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from janus.errors import UserError

AxisName = Literal["shard", "shard_copies", "expert", "expert_copies", "graph", "unit", "world"]
Placement = Literal["unit_first", "replica_first"]


def divisors(number: int) -> list[int]:
    """All divisors of a positive integer, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Where a rank stands. replica: its unit; position: in the unit; shard, graph, expert: its index in those groups;
    data: which of the layout's ``data_degree`` graph groups it belongs to (the ranks that share a micro-batch).
    """

    replica: int
    position: int
    shard: int
    graph: int
    expert: int
    data: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of one job. Raises UserError with the rule and the repair when they cannot be combined.

    unit: ranks of one FS-3D unit; replicas: units; shard_degree: ranks that share the parameters, gradients and
    optimizer state; graph_degree: ranks that share one micro-batch; expert_degree: ranks that share the experts.
    placement: how ranks are numbered on the machine. "unit_first": a unit is consecutive ranks, so that its traffic
    stays within a node where it fits; "replica_first": equal positions of all units are consecutive ranks.
    """

    unit: int = 1
    replicas: int = 1
    shard_degree: int = 1
    graph_degree: int = 1
    expert_degree: int = 1
    placement: Placement = "unit_first"

    def __post_init__(self) -> None:
        if self.placement not in ("unit_first", "replica_first"):
            raise UserError(f"layout placement is {self.placement!r}: use unit_first or replica_first")
        for name in ("unit", "replicas", "shard_degree", "graph_degree", "expert_degree"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"layout {name} is {value!r}: it must be a whole number of at least 1")
        for name in ("shard_degree", "graph_degree", "expert_degree"):
            degree = getattr(self, name)
            if self.unit % degree:
                choices = ", ".join(str(choice) for choice in divisors(self.unit))
                raise UserError(
                    f"layout {name} {degree} does not divide the unit of {self.unit} ranks: use one of {choices}"
                )

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return self.unit * self.replicas

    @property
    def data_degree(self) -> int:
        """Groups of ranks that work on different micro-batches at one time, over the whole job."""
        return self.replicas * self.data_degree_in_unit

    @property
    def data_degree_in_unit(self) -> int:
        """Graph groups of one unit: each works on its own micro-batches."""
        return self.unit // self.graph_degree

    @property
    def is_pure_data_parallel(self) -> bool:
        """True where every rank holds the whole model and whole micro-batches."""
        return self.unit == 1

    def coordinates(self, rank: int) -> Coordinates:
        """Where a rank of the job stands: the inverse of ``rank_at``."""
        if not 0 <= rank < self.world_size:
            raise UserError(f"rank {rank} is outside the layout's {self.world_size} ranks")
        if self.placement == "unit_first":
            replica, position = divmod(rank, self.unit)
        else:
            position, replica = divmod(rank, self.replicas)
        return Coordinates(
            replica=replica, position=position, shard=position % self.shard_degree,
            graph=position % self.graph_degree, expert=position % self.expert_degree,
            data=replica * self.data_degree_in_unit + position // self.graph_degree,
        )  # fmt: skip

    def rank_at(self, replica: int, position: int) -> int:
        """The rank at a position of a unit."""
        if self.placement == "unit_first":
            return replica * self.unit + position
        return position * self.replicas + replica

    def groups(self, axis: AxisName) -> list[list[int]]:
        """The groups of ranks along an axis, a partition of the world; ascending, which is the order of their index.

        shard, graph, expert: neighbours inside a unit; shard_copies, expert_copies: the ranks that hold an equal part,
        over the rest of the unit and all replicas; unit; world.
        """
        if axis == "world":
            return [list(range(self.world_size))]
        if axis.endswith("_copies"):
            degree = self.shard_degree if axis == "shard_copies" else self.expert_degree
            return [
                sorted(
                    self.rank_at(replica, position)
                    for replica in range(self.replicas)
                    for position in range(index, self.unit, degree)
                )
                for index in range(degree)
            ]
        degree = {"unit": self.unit, "shard": self.shard_degree, "graph": self.graph_degree,
                  "expert": self.expert_degree}[axis]  # fmt: skip
        return [
            [self.rank_at(replica, position) for position in range(start, start + degree)]
            for replica in range(self.replicas)
            for start in range(0, self.unit, degree)
        ]

    def check_world_size(self, world_size: int) -> None:
        """Raise UserError unless the layout fills exactly this many ranks."""
        if self.world_size != world_size:
            raise UserError(
                f"the layout needs {self.world_size} ranks ({self.unit} per unit x {self.replicas} replicas) but "
                f"{world_size} were started: start {self.world_size} or plan again with --world-size {world_size}"
            )

    def describe(self) -> str:
        """One short line for tables."""
        if self.is_pure_data_parallel:
            return f"data {self.replicas}"
        degrees = f"shard {self.shard_degree}, graph {self.graph_degree}, expert {self.expert_degree}"
        return f"unit {self.unit} ({degrees}) x {self.replicas}"

    def to_mapping(self) -> dict[str, int | str]:
        """Plain values for a plan or a record; ``Layout(**mapping)`` reads them back."""
        return {
            "unit": self.unit, "replicas": self.replicas, "shard_degree": self.shard_degree,
            "graph_degree": self.graph_degree, "expert_degree": self.expert_degree, "placement": self.placement,
        }  # fmt: skip


def layouts_of(world_size: int, *, with_experts: bool = True, max_unit: int | None = None) -> Iterator[Layout]:
    """Every layout that fills ``world_size`` ranks, pure data parallel first.

    with_experts: also spread experts (False for a model without them: expert_degree stays 1).
    max_unit: largest unit to list (None: up to the world size). Layouts that are a smaller unit in disguise
    (every degree 1 in a unit above 1 is pure data parallel again) are left out.
    """
    if world_size < 1:
        raise UserError(f"the world size is {world_size}: it must be at least 1")
    for unit in divisors(world_size):
        if max_unit is not None and unit > max_unit:
            return
        for shard in divisors(unit):
            for graph in divisors(unit):
                for expert in divisors(unit) if with_experts else [1]:
                    if max(shard, graph, expert) == unit:
                        yield Layout(
                            unit=unit, replicas=world_size // unit,
                            shard_degree=shard, graph_degree=graph, expert_degree=expert,
                        )  # fmt: skip
