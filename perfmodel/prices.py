"""Seconds of the collectives on an axis of a layout: measured ones of a calibrated host, or the fabric of a machine.

It owns which measurement or which groups of ranks stand for an axis. It does not own what was measured
(``collective_rates``), how a schedule is priced (``network/closed_form``), or what is sent (``traffic``).

Sizes are those of ``network/schedule.py``; ``sizes_of`` makes them of a ledger's bytes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus.errors import UserError
from janus.layout import AxisName, Layout
from perfmodel.collective_rates import find_collective
from perfmodel.machine import Machine, Rates
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.closed_form import Price, price_together
from perfmodel.network.cluster import Cluster, build_cluster
from perfmodel.network.routes import Transport

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Tried on a fabric, the fastest counts; above LONGEST_RING ranks one of each only
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "all_gather": ("ring", "bruck"),
    "reduce_scatter": ("ring", "pairwise"),
    "all_to_all": ("pairwise", "linear"),
    "all_reduce": ("ring", "rabenseifner", "recursive_doubling"),
}
LONGEST_RING = 1024
# Seconds that a collective between computations takes beyond one that follows another at once: threads are woken, and
# where ranks share cores those that it waits for must get their turn (a group of all ranks; less for smaller ones). By
# transport, with a core for every rank and without. Measured with 1 to 3 ms of computing between all-to-alls on one
# host of 2 cores, that of MPI without a core for every rank on steps of its layouts; assumed elsewhere
MEETING_S = {"gloo": (3.5e-4, 1.6e-3), "mpi": (5e-5, 3e-4), "nccl": (0.0, 0.0)}
# Ranks whose groups stand for all groups of consecutive ranks: further ones meet the same links elsewhere
NEIGHBOURING_RANKS = 4096


def group_size(layout: Layout, axis: AxisName) -> int:
    """Ranks in one group of an axis."""
    degrees = {
        "shard": layout.shard_degree, "graph": layout.graph_degree, "expert": layout.expert_degree,
        "shard_copies": layout.world_size // layout.shard_degree, "unit": layout.unit,
        "expert_copies": layout.world_size // layout.expert_degree, "world": layout.world_size,
    }  # fmt: skip
    return degrees[axis]


def size_of(collective: str, sent_bytes: ArrayLike, num_ranks: int) -> Floats:
    """Sizes m of collectives of which each hands sent_bytes to other ranks, as the ledger counts; any shape.

    all_gather (n-1)/n m, reduce_scatter (n-1)/n m, all_reduce 2 (n-1)/n m, all_to_all (n-1)/n m where rows are even.
    """
    sent = np.asarray(sent_bytes, dtype=np.float64)
    if num_ranks == 1:
        return np.zeros_like(sent)
    return sent * num_ranks / (num_ranks - 1) / (2 if collective == "all_reduce" else 1)


def sizes_of(traffic_row: Mapping[str, Any], num_ranks: int) -> float:
    """Size m of one collective of a row of ``traffic.step_traffic``, the mean over its calls."""
    each = traffic_row["sent_bytes"] / max(traffic_row["calls"], 1)
    return float(size_of(traffic_row["collective"], each, num_ranks))


class Prices(ABC):
    """Seconds of collectives on one machine. notes: what had to be assumed so far."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def seconds(self, layout: Layout, axis: AxisName, collective: str, sizes_bytes: ArrayLike) -> Floats:
        """Seconds of one collective of each size m, done by every group of the axis at once; 0 for groups of one rank.

        Raises UserError where the machine file does not cover it.
        """
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        if group_size(layout, axis) == 1:
            return np.zeros_like(sizes)
        return self._seconds(layout, axis, collective, sizes)

    @abstractmethod
    def _seconds(self, layout: Layout, axis: AxisName, collective: str, sizes: Floats) -> Floats: ...

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


class HostPrices(Prices):
    """Of a calibrated host: its measured collectives and what they take more inside a step (``MEETING_S``); where they
    are missing, ring forms of its all-reduce constants.

    rates: of the filling, for the all-reduce constants.
    """

    def __init__(self, machine: Machine, rates: Rates, transport: str = "gloo") -> None:
        super().__init__()
        self._machine, self._rates, self._transport = machine, rates, transport

    def _seconds(self, layout: Layout, axis: AxisName, collective: str, sizes: Floats) -> Floats:
        ranks = group_size(layout, axis)
        groups = layout.world_size // ranks
        found = find_collective(self._machine.collectives, self._transport, collective, ranks, groups)
        if found is None:
            return self._ring_s(collective, ranks, sizes)
        if (found.ranks, found.ranks_on_host) != (ranks, layout.world_size):
            self._note(
                f"{self._transport} {collective} of {ranks} ranks in {groups} groups was not calibrated: "
                f"{found.ranks} ranks in {found.groups} groups stand for it"
            )
        seconds = found.seconds(sizes) + self._meeting_s(ranks, layout.world_size)
        if found.ranks < ranks:  # more messages one after the other
            seconds = seconds * (ranks - 1) / (found.ranks - 1)
        return np.asarray(seconds)

    def _meeting_s(self, ranks: int, world_size: int) -> float:
        alone, crowded = MEETING_S[self._transport]
        if world_size <= self._machine.devices_per_node:
            return alone
        return crowded * math.sqrt((ranks - 1) / (world_size - 1))

    def _ring_s(self, collective: str, ranks: int, sizes: Floats) -> Floats:
        """Ring forms: passes x (n-1) x (latency + m/n / bandwidth), two passes of an all-reduce."""
        latency_s, bytes_per_s = self._rates.all_reduce_latency_s, self._rates.all_reduce_bytes_per_s
        if latency_s is None or bytes_per_s is None:
            raise UserError(
                f"machine {self._machine.name!r} has no {collective.replace('_', '-')} timings for {ranks} ranks: "
                "calibrate it with 'janus calibrate'"
            )
        if collective != "all_reduce" or self._machine.collectives:
            self._note(
                f"{self._transport} {collective} was not calibrated: priced as a ring with the all-reduce constants"
            )
        # gloo's reduce-scatter sends what an all-reduce sends (docs/parallel.md)
        twice = collective == "all_reduce" or (collective == "reduce_scatter" and self._transport == "gloo")
        return np.asarray((2 if twice else 1) * (ranks - 1) * (latency_s + sizes / ranks / bytes_per_s))


class FabricPrices(Prices):
    """On a machine of the catalogue: schedules priced by closed form on its fabric, the fastest of those tried.

    All groups of an axis meet at once and share links. Groups inside nodes are priced on one node; groups of
    consecutive ranks by the first ``NEIGHBOURING_RANKS`` of them. Kept per layout's groups, collective and algorithm.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        ranks_per_node: int | None = None,
        transport: Transport | None = None,
        algorithms: Mapping[str, Sequence[str]] = ALGORITHMS,
    ) -> None:
        super().__init__()
        if machine.fabric is None:
            raise UserError(
                f"machine {machine.name} has no [fabric] table: add one with its family and numbers, or calibrate it"
            )
        self._machine, self._algorithms = machine, algorithms
        self._transport = transport or machine.transport or Transport()
        self._on_node = ranks_per_node or machine.devices_per_node
        self._clusters: dict[tuple[int, int], Cluster] = {}
        self._places: dict[tuple[Any, ...], tuple[Cluster, list[Ints]]] = {}
        self._prices: dict[tuple[Any, ...], list[Price]] = {}

    def _seconds(self, layout: Layout, axis: AxisName, collective: str, sizes: Floats) -> Floats:
        prices = self._priced(layout, axis, collective)
        return np.asarray(np.min([price.time_s(sizes, self._transport) for price in prices], axis=0))

    def _priced(self, layout: Layout, axis: AxisName, collective: str) -> list[Price]:
        ranks = group_size(layout, axis)
        shape = _shape(layout, axis)
        key = (shape, collective)
        if key not in self._prices:
            cluster, groups = self._place(layout, axis, shape)
            names = [name for name in self._algorithms[collective] if _is_tried(collective, name, ranks)]
            self._prices[key] = [
                price_together(make_schedule(collective, name, ranks), cluster, groups) for name in names
            ]
        return self._prices[key]

    def _place(self, layout: Layout, axis: AxisName, shape: tuple[Any, ...]) -> tuple[Cluster, list[Ints]]:
        """The cluster on which groups of an axis are priced, and those groups."""
        if shape in self._places:
            return self._places[shape]
        groups = group_array(layout, axis)
        on_node = min(self._on_node, layout.world_size)
        nodes = groups // on_node
        if np.all(nodes == nodes[:, :1]):
            chosen = groups[nodes[:, 0] == nodes[0, 0]]
            cluster = self._cluster(1, on_node)
            chosen = chosen - nodes[0, 0] * on_node
        else:
            count = max(1, NEIGHBOURING_RANKS // groups.shape[1]) if _are_neighbours(groups) else len(groups)
            chosen = groups[:count]
            cluster = self._cluster(math.ceil(layout.world_size / on_node), on_node)
        self._places[shape] = (cluster, list(chosen))
        return self._places[shape]

    def _cluster(self, num_nodes: int, on_node: int) -> Cluster:
        key = (num_nodes, on_node)
        if key not in self._clusters:
            if num_nodes > self._machine.nodes:
                raise UserError(
                    f"{num_nodes} nodes of {on_node} ranks are asked of machine {self._machine.name}, which has "
                    f"{self._machine.nodes}: use fewer ranks"
                )
            self._clusters[key] = build_cluster(self._machine, num_nodes=num_nodes, ranks_per_node=on_node)
        return self._clusters[key]


def _is_tried(collective: str, algorithm: str, num_ranks: int) -> bool:
    """All of few ranks; of very many the one that is not all latency."""
    at_scale = {"all_to_all": "pairwise", "all_reduce": "rabenseifner", "all_gather": "bruck", "reduce_scatter": "ring"}
    return num_ranks <= LONGEST_RING or algorithm == at_scale[collective]


def _shape(layout: Layout, axis: AxisName) -> tuple[Any, ...]:
    """What decides the groups of an axis: equal for layouts and axes with equal groups."""
    world, first = layout.world_size, layout.placement == "unit_first"
    ranks = group_size(layout, axis)
    if ranks in (1, world):
        return (world, ranks)
    if axis.endswith("_copies"):
        degree = layout.shard_degree if axis == "shard_copies" else layout.expert_degree
        return (world, "copies", degree) if first else (world, "copies", degree, layout.unit)
    return (world, "inside", ranks) if first else (world, "inside", ranks, layout.unit)


def group_array(layout: Layout, axis: AxisName) -> Ints:
    """Ranks of every group of an axis [groups, ranks], as ``Layout.groups``."""
    replicas, positions = np.arange(layout.replicas)[:, None], np.arange(layout.unit)[None, :]
    unit_first = layout.placement == "unit_first"
    ranks = replicas * layout.unit + positions if unit_first else positions * layout.replicas + replicas
    if axis == "world":
        return np.arange(layout.world_size, dtype=np.int64)[None, :]
    if axis.endswith("_copies"):
        degree = layout.shard_degree if axis == "shard_copies" else layout.expert_degree
        return np.sort(np.stack([ranks[:, index::degree].ravel() for index in range(degree)]), axis=1)
    return ranks.reshape(-1, group_size(layout, axis)).astype(np.int64)


def _are_neighbours(groups: Ints) -> bool:
    """Whether every group is consecutive ranks."""
    return bool(np.all(np.diff(groups, axis=1) == 1))


def prices_for(
    machine: Machine, *, rates: Rates, transport: str = "gloo", ranks_per_node: int | None = None
) -> HostPrices | FabricPrices:
    """The prices of a machine: measured ones of a calibrated host, else of its fabric. Raises UserError without one."""
    if machine.is_calibrated_host:
        return HostPrices(machine, rates, transport)
    return FabricPrices(machine, ranks_per_node=ranks_per_node)
