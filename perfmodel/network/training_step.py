"""The collectives of one FS-3D training step on a whole machine: sizes, groups, prices, and what stays exposed.

It owns the step's program of operations and which groups meet at once. It does not own streams (``streams``), prices
(``closed_form``, ``flow_events``), exact bytes of the real trainer (``perfmodel.traffic``) or speeds of computing.

A step walks the blocks four times: FE forward, FF back, BF forward, BE back (energy, forces, and the backward passes of
both). Every visit of a block gathers its parameters over the shard axis (one visit ahead, behind compute), exchanges
the halo over the graph axis, and computes in pieces between the all-to-alls of its experts. In BE each block's
gradients are reduce-scattered over the shard axis and summed over the copies of the shard and of the experts.

Units of a job are alike: with equal groups all at once their collectives cost the same, and of units that differ only
in how fast they compute, the slowest decides every meeting. A few units therefore stand for all of them: the slowest,
and others as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.errors import UserError
from janus.layout import AxisName, Layout
from perfmodel.machine import Machine
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.closed_form import Price, price_together
from perfmodel.network.cluster import Cluster, build_cluster
from perfmodel.network.noise import Noise
from perfmodel.network.routes import Transport
from perfmodel.network.schedule import Schedule
from perfmodel.network.streams import COMPUTE, Operation, StreamOutcome, simulate_streams
from perfmodel.workload import Counts, parameter_counts, step_flops
from perfmodel.workload_moe import experts_of

PHASES = ("FE", "FF", "BF", "BE")
PHASE_SHARES = {"FE": 1 / 6, "FF": 1 / 6, "BF": 2 / 6, "BE": 2 / 6}  # facts: forward 1, force 1, backwards 2 and 2
ALGORITHMS_TRIED: Mapping[str, tuple[str, ...]] = {
    "all_gather": ("ring",),
    "reduce_scatter": ("ring",),
    "all_to_all": ("pairwise",),
    "all_reduce": ("ring", "rabenseifner"),
}
MOST_PLAYED = 2_000_000  # messages of a collective that are played one by one; longer ones take the closed form
Evaluator = Literal["closed_form", "flows"]
PriceOf = Callable[[AxisName, str, float], float]


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """What one rank computes and sends in a step, per block and visit. Bytes are m of ``schedule``.

    gather_bytes: a block's parameters outside the routed experts, gathered; exchange_bytes: all that a rank sends in
    one expert all-to-all, of which a visit has exchanges; halo_bytes: all that a rank sends in the halo's all-to-all;
    gradient_bytes, expert_gradient_bytes: of a block, what a rank sums over the copies of its shard and its experts.
    compute_s: per phase, all blocks; optimizer_s.
    """

    num_blocks: int
    gather_bytes: float
    exchange_bytes: float
    exchanges: int
    halo_bytes: float
    gradient_bytes: float
    expert_gradient_bytes: float
    compute_s: Mapping[str, float]
    optimizer_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """streams: the step as played; prices_s: seconds of each collective by (axis, collective, bytes) and how often.

    ranks: of the whole job; represented: how many of them were played.
    """

    streams: StreamOutcome
    prices_s: dict[tuple[str, str, float], float]
    calls: dict[tuple[str, str, float], int]
    algorithms: dict[tuple[str, str, float], str]
    ranks: int
    represented: int
    program: tuple[Operation, ...] = field(repr=False)

    @property
    def step_s(self) -> float:
        return self.streams.step_s

    @property
    def exposed_s(self) -> float:
        """Seconds of the step in which the mean represented rank does not compute."""
        return self.step_s - float(self.streams.compute_s.mean())


def step_sizes(
    model: ModelConfig,
    counts_per_unit: Counts,
    layout: Layout,
    *,
    flops_per_s: float,
    exchange_item_bytes: float = 2.0,
    item_bytes: float = 4.0,
) -> StepSizes:
    """Sizes of a MatRIS-MoE step whose unit works on counts_per_unit, shared evenly.

    flops_per_s: what one rank reaches (compute is its part of the step's FLOPs over that, divided among the phases as
    1 : 1 : 2 : 2). Messages of k experts' tokens as in ``full_machine``: (edges + atoms) / unit tokens of k copies of
    the width per exchange pair, half of them in each layer. Raises UserError for a model without experts.
    """
    if model.experts is None:
        raise UserError("the sizes of an FS-3D step are of a mixture of experts: use a matris-moe model")
    parameters, experts = parameter_counts(model), experts_of(model)
    routed = parameters.parts["message_experts"] + parameters.parts["feature_experts"]
    dense_bytes = item_bytes * (parameters.total - routed) / model.num_blocks
    routed_bytes = item_bytes * routed / model.num_blocks
    tokens = (counts_per_unit.edges + counts_per_unit.atoms) / layout.unit / 2  # mean of the two layers
    flops = step_flops(model, counts_per_unit, recompute=False).executed_total / layout.unit
    return StepSizes(
        num_blocks=model.num_blocks,
        gather_bytes=dense_bytes,
        exchange_bytes=tokens * experts.top_k * model.width * exchange_item_bytes,
        exchanges=4,
        halo_bytes=counts_per_unit.atoms * model.width * item_bytes,
        gradient_bytes=dense_bytes / layout.shard_degree,
        expert_gradient_bytes=routed_bytes / layout.expert_degree,
        compute_s={phase: share * flops / flops_per_s for phase, share in PHASE_SHARES.items()},
    )


class AxisPrices:
    """Seconds of collectives of one layout on one machine, all groups of an axis at once; schedules priced once.

    Groups that stay inside nodes are priced on one node; the others all together on the whole job.
    """

    def __init__(
        self, machine: Machine, layout: Layout, transport: Transport, *, ranks_per_node: int,
        algorithms: Mapping[str, Sequence[str]], evaluator: Evaluator,
    ) -> None:  # fmt: skip
        num_nodes, rest = divmod(layout.world_size, ranks_per_node)
        if rest or num_nodes > machine.nodes:
            raise UserError(
                f"{layout.world_size} ranks, {ranks_per_node} on a node, do not fill nodes of {machine.name}, which "
                f"has {machine.nodes}: change the layout or the ranks per node"
            )
        self._machine, self._layout, self._transport = machine, layout, transport
        self._num_nodes, self._on_node = num_nodes, ranks_per_node
        self._tried, self._evaluator = algorithms, evaluator
        self._places: dict[str, tuple[Cluster, list[NDArray[np.int64]]]] = {}
        self._prices: dict[tuple[str, str, str], Price] = {}
        self._clusters: dict[int, Cluster] = {}
        self.seconds: dict[tuple[str, str, float], float] = {}
        self.calls: dict[tuple[str, str, float], int] = {}
        self.chosen: dict[tuple[str, str, float], str] = {}

    def __call__(self, axis: AxisName, collective: str, size_bytes: float) -> float:
        """Seconds of one collective of size_bytes in every group of the axis; the best of the algorithms tried."""
        key = (axis, collective, size_bytes)
        self.calls[key] = self.calls.get(key, 0) + 1
        if key not in self.seconds:
            times = {name: self._time_s(axis, collective, name, size_bytes) for name in self._tried[collective]}
            self.chosen[key] = min(times, key=times.__getitem__)
            self.seconds[key] = times[self.chosen[key]]
        return self.seconds[key]

    def _time_s(self, axis: AxisName, collective: str, algorithm: str, size_bytes: float) -> float:
        cluster, groups = self._place(axis)
        schedule = make_schedule(collective, algorithm, len(groups[0]))
        if self._evaluator == "flows" and len(groups) * num_messages(schedule) <= MOST_PLAYED:
            from perfmodel.network.flow_events import simulate  # compiled loops: loaded only where they play

            return simulate(schedule, cluster, self._transport, size_bytes, groups=groups).time_s
        place = "".join(str(part) for part in (len(groups), groups[0].tobytes(), groups[-1].tobytes()))
        key = (place, collective, algorithm)
        if key not in self._prices:
            self._prices[key] = price_together(schedule, cluster, groups)
        return float(self._prices[key].time_s(np.array([size_bytes]), self._transport)[0])

    def _place(self, axis: AxisName) -> tuple[Cluster, list[NDArray[np.int64]]]:
        """The cluster on which groups of an axis are priced, and those groups."""
        if axis not in self._places:
            groups = np.array(self._layout.groups(axis), dtype=np.int64)
            nodes = groups // self._on_node
            if np.all(nodes == nodes[:, :1]):
                groups = groups[nodes[:, 0] == 0]
                self._places[axis] = (self._cluster(1), list(groups))
            else:
                self._places[axis] = (self._cluster(self._num_nodes), list(groups))
        return self._places[axis]

    def _cluster(self, num_nodes: int) -> Cluster:
        if num_nodes not in self._clusters:
            built = build_cluster(self._machine, num_nodes=num_nodes, ranks_per_node=self._on_node)
            self._clusters[num_nodes] = built
        return self._clusters[num_nodes]


def num_messages(schedule: Schedule) -> int:
    """Messages of one group, repeats counted."""
    return sum(len(entry) * entry.repeat for entry in schedule.rounds())


def step_program(sizes: StepSizes, layout: Layout, price_s: PriceOf, *, one_stream: bool = False) -> list[Operation]:
    """The operations of a rank in one step. Axes of one rank have none.

    one_stream: all collectives in one communication stream; otherwise one stream per axis, as with a communicator of
    its own for each.
    """
    return _Program(sizes, layout, price_s, one_stream).build()


class _Program:
    """Collects the operations of a step."""

    def __init__(self, sizes: StepSizes, layout: Layout, price_s: PriceOf, one_stream: bool) -> None:
        self.sizes, self.price_s, self.one_stream = sizes, price_s, one_stream
        self.operations: list[Operation] = []
        self.members: dict[AxisName, int] = {
            "shard": layout.shard_degree, "graph": layout.graph_degree, "expert": layout.expert_degree,
            "shard_copies": layout.world_size // layout.shard_degree,
            "expert_copies": layout.world_size // layout.expert_degree,
        }  # fmt: skip

    def build(self) -> list[Operation]:
        blocks = range(self.sizes.num_blocks)
        visits = [(phase, block) for phase in PHASES for block in (blocks if phase in ("FE", "BF") else blocks[::-1])]
        ends: list[int] = []
        synced: list[int] = []
        gathered = self._gather(visits[0], ())
        for number, visit in enumerate(visits):
            before = ends[-1:]
            gathered_next = self._gather(visits[number + 1], before) if number + 1 < len(visits) else []
            ends.append(self._block(visit, [*before, *gathered]))
            gathered = gathered_next
            if visit[0] == "BE":
                synced += self._sync(visit, ends[-1])
        if self.sizes.optimizer_s:
            self._compute("optimizer", self.sizes.optimizer_s, [*ends[-1:], *synced])
        return self.operations

    def _gather(self, visit: tuple[str, int], after: Sequence[int]) -> list[int]:
        return self._collective("shard", "all_gather", self.sizes.gather_bytes, _named("gather", visit), after)

    def _block(self, visit: tuple[str, int], after: Sequence[int]) -> int:
        """Halo, then compute in pieces with an expert exchange between two. Returns the last piece's number."""
        halo = self._collective("graph", "all_to_all", self.sizes.halo_bytes, _named("halo", visit), after[:1])
        ready = [*after, *halo]
        exchanges = self.sizes.exchanges if self.members["expert"] > 1 else 0
        piece_s = self.sizes.compute_s[visit[0]] / self.sizes.num_blocks / (exchanges + 1)
        for _ in range(exchanges):
            piece = self._compute(_named("compute", visit), piece_s, ready)
            ready = self._collective(
                "expert", "all_to_all", self.sizes.exchange_bytes, _named("exchange", visit), [piece]
            )
            ready = ready or [piece]
        return self._compute(_named("compute", visit), piece_s, ready)

    def _sync(self, visit: tuple[str, int], after: int) -> list[int]:
        sizes = self.sizes
        scattered = self._collective(
            "shard", "reduce_scatter", sizes.gather_bytes, _named("reduce gradients", visit), [after]
        )
        done = self._collective("shard_copies", "all_reduce", sizes.gradient_bytes, _named("sum gradients", visit),
                                scattered or [after])  # fmt: skip
        done += self._collective("expert_copies", "all_reduce", sizes.expert_gradient_bytes,
                                 _named("sum expert gradients", visit), [after])  # fmt: skip
        return done or scattered

    def _compute(self, name: str, seconds: float, after: Sequence[int]) -> int:
        self.operations.append(Operation(name=name, stream=COMPUTE, seconds=seconds, after=tuple(after)))
        return len(self.operations) - 1

    def _collective(
        self, axis: AxisName, collective: str, size_bytes: float, name: str, after: Sequence[int]
    ) -> list[int]:  # fmt: skip
        if self.members[axis] == 1 or size_bytes == 0:
            return []
        seconds = self.price_s(axis, collective, size_bytes)
        stream = "communication" if self.one_stream else axis
        self.operations.append(
            Operation(name=name, stream=stream, seconds=seconds, axis=axis, after=tuple(after))
        )  # fmt: skip
        return [len(self.operations) - 1]


def _named(what: str, visit: tuple[str, int]) -> str:
    return f"{visit[0]} {visit[1]} {what}"


def training_step_collectives(
    machine: Machine,
    layout: Layout,
    sizes: StepSizes,
    *,
    transport: Transport | None = None,
    ranks_per_node: int | None = None,
    algorithms: Mapping[str, Sequence[str]] = ALGORITHMS_TRIED,
    evaluator: Evaluator = "closed_form",
    noise: Noise | None = None,
    overlap: bool = True,
    one_stream: bool = False,
    represented_units: int = 16,
    record: bool = False,
) -> StepOutcome:
    """One step of a layout on a machine: every collective priced on its groups, ranks played as streams.

    transport: default the machine's, or bare links; ranks_per_node: default one per device; evaluator: "flows" plays
    collectives of up to ``MOST_PLAYED`` messages and prices the others by closed form. Raises UserError where the job
    does not fit the machine, or the machine has no fabric.
    """
    on_node = ranks_per_node or machine.devices_per_node
    prices = AxisPrices(machine, layout, transport or machine.transport or Transport(), ranks_per_node=on_node,
                        algorithms=algorithms, evaluator=evaluator)  # fmt: skip
    program = step_program(sizes, layout, prices, one_stream=one_stream)
    factor = (noise or Noise()).compute_factor(layout.world_size)
    units = representatives(factor, layout, represented_units)
    groups = represented_groups(layout, len(units))
    ranks = np.array([[layout.rank_at(int(unit), place) for place in range(layout.unit)] for unit in units]).ravel()
    streams = simulate_streams(program, groups, factor[ranks], overlap=overlap, record=record)
    return StepOutcome(
        streams=streams, prices_s=prices.seconds, calls=prices.calls, algorithms=prices.chosen,
        ranks=layout.world_size, represented=len(ranks), program=tuple(program),
    )  # fmt: skip


def representatives(factor: NDArray[np.float64], layout: Layout, at_most: int) -> NDArray[np.int64]:
    """Units that stand for all: half of them the slowest (by their slowest rank), the others spread over the rest."""
    if layout.replicas <= at_most:
        return np.arange(layout.replicas, dtype=np.int64)
    if np.all(factor == factor[0]):
        return np.zeros(1, np.int64)  # all alike
    by_unit = factor.reshape(layout.replicas, layout.unit) if layout.placement == "unit_first" else (
        factor.reshape(layout.unit, layout.replicas).T
    )  # fmt: skip
    order = np.argsort(-by_unit.max(axis=1), kind="stable").astype(np.int64)
    slowest = order[: (at_most + 1) // 2]
    others = order[np.linspace(len(slowest), layout.replicas - 1, at_most - len(slowest)).astype(np.int64)]
    return np.concatenate([slowest, others])


def represented_groups(layout: Layout, num_units: int) -> dict[str, NDArray[np.int64]]:
    """Numbers of the groups of num_units units, unit by unit: inside units, and copies over the units played."""
    unit, place = np.divmod(np.arange(num_units * layout.unit, dtype=np.int64), layout.unit)
    inside = {"shard": layout.shard_degree, "graph": layout.graph_degree, "expert": layout.expert_degree}
    groups = {axis: unit * (layout.unit // degree) + place // degree for axis, degree in inside.items()}
    groups["shard_copies"], groups["expert_copies"] = place % layout.shard_degree, place % layout.expert_degree
    return groups
