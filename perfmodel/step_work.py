"""Everything that the ranks do in one training step of a layout: rows, FLOPs, bytes, launches, messages, optimizer.

It owns how a global batch becomes the work of ranks, by the rules of the trainer: shared out and packed (``dataset``),
divided over graph groups (``division``), routed experts placed (``janus.placement``), collectives (``traffic``), what
each rank keeps of the parameters. It does not own how long anything takes (``step_time``) or what is kept in memory.

Of large jobs only some units are worked out (``represented``): the heaviest, the lightest and those evenly between by
work. The work of every data group is known in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.layout import Layout
from janus.placement import ExpertPlan, Strategy
from perfmodel.dataset import DataCounts, SharedBatch, lockstep, share_batch
from perfmodel.division import Divisions, Part, divide, whole_part
from perfmodel.exchange_arithmetic import exchange_work
from perfmodel.products import PHASES, Counts, total_counts
from perfmodel.traffic import MicroBatchSizes, TrafficSettings, expert_plans, step_traffic
from perfmodel.traffic_parameters import LAYERS, expert_shape, kept_pieces
from perfmodel.workload import ITEM_BYTES, PhaseWork, phase_work, step_flops
from perfmodel.workload_moe import experts_of


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a step is run, apart from the layout; as in janus.train.config.

    max_work: of a micro-batch, edges + angles; None: no cap. gathered_blocks: 0 keeps all. clips: whether gradients
    are clipped; averages: whether an average of the weights is kept. transport: of the collectives.
    """

    dtype: str = "float32"
    max_work: int | None = None
    recompute: bool = False
    gathered_blocks: int = 2
    expert_strategy: Strategy = "tokens"
    expert_replication: bool = True
    expert_flops_per_byte: float = 200.0
    expert_compression: bool = False
    bucket_bytes: int = 25 * 1024 * 1024
    clips: bool = True
    averages: bool = True
    transport: str = "gloo"


def settings_traffic(settings: RunSettings) -> TrafficSettings:
    """The settings that decide what is sent."""
    return TrafficSettings(
        item_bytes=ITEM_BYTES[settings.dtype], recompute=settings.recompute, gathered_blocks=settings.gathered_blocks,
        expert_strategy=settings.expert_strategy, expert_replication=settings.expert_replication,
        expert_flops_per_byte=settings.expert_flops_per_byte, expert_compression=settings.expert_compression,
        bucket_bytes=settings.bucket_bytes,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MicroBatchWork:
    """One micro-batch on one rank. counts: its rows here, copies of tokens included; whole: the micro-batch before
    division, which the loader builds; experts_called: experts with any row here, mean over blocks: message, feature.
    """

    counts: Counts
    whole: Counts
    experts_called: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class RankStep:
    """One rank in one step. phases: FE, FF, BF, BE summed over micro-batches, executed; traffic: rows of
    ``traffic.step_traffic``; optimizer_numel, optimizer_tensors: of the pieces that this rank keeps and updates.
    """

    rank: int
    micro_batches: tuple[MicroBatchWork, ...]
    phases: dict[str, PhaseWork]
    traffic: tuple[dict[str, Any], ...]
    optimizer_numel: float
    optimizer_tensors: float


@dataclass(frozen=True, kw_only=True, eq=False)
class StepWork:
    """One step of a job. ranks: all, or those of the represented units; group_work [data_degree]: edges + angles of
    every data group; flops_model, flops_executed: of the whole job (where not all units are worked out, executed FLOPs
    are those of the represented ranks, scaled by the work).
    """

    model: ModelConfig
    layout: Layout
    settings: RunSettings
    ranks: tuple[RankStep, ...]
    group_work: NDArray
    flops_model: float
    flops_executed: float


def step_work(
    model: ModelConfig,
    data: DataCounts,
    batch: Sequence[int],
    layout: Layout,
    settings: RunSettings,
    *,
    represented: int | None = None,
    experts: Sequence[NDArray] | None = None,
    divisions: Divisions | None = None,
) -> StepWork:
    """What the ranks of a layout do in the step on one global batch (structure indices of the data set).

    represented: units to work out; None: all. experts: chosen by each element [Z,k], of the message and the feature
    layer of each block in turn; None: drawn as at initialisation (``drawn_experts``). divisions: exact parts of
    micro-batches by their structures (a tuple of indices), for those that are not to be estimated.
    """
    shared = share_batch(data.work, batch, layout.data_degree)
    unit_work = shared.group_work.reshape(layout.replicas, -1).sum(axis=1)
    replicas = _represented(unit_work, represented)
    job = _Job(model, data, layout, settings, experts, divisions or {})
    ranks = [rank for replica in replicas for rank in job.unit(shared, replica)]
    share = unit_work[replicas].sum() / max(unit_work.sum(), 1)
    executed = sum(work.all_flops for rank in ranks for work in rank.phases.values())
    return StepWork(
        model=model, layout=layout, settings=settings, ranks=tuple(sorted(ranks, key=lambda rank: rank.rank)),
        group_work=shared.group_work, flops_model=step_flops(model, data.of(batch), recompute=False).model_total,
        flops_executed=executed / share if share else executed,
    )  # fmt: skip


def drawn_experts(model: ModelConfig, seed: int = 0) -> tuple[NDArray, ...]:
    """Experts of each element [Z,k], layer by layer: the top k of tables of normal numbers, as at initialisation."""
    if model.experts is None:
        return ()
    generator = np.random.default_rng([seed, 0x6A7E])
    sizes = model.num_elements, model.experts.num_experts
    tables = (generator.standard_normal(sizes) for _ in range(len(LAYERS) * model.num_blocks))
    return tuple(np.argsort(-table, axis=1, kind="stable")[:, : model.experts.top_k] for table in tables)


def _represented(unit_work: NDArray, number: int | None) -> list[int]:
    """Units to work out: all, or the heaviest, the lightest and those evenly between."""
    if number is None or number >= len(unit_work):
        return list(range(len(unit_work)))
    order = np.argsort(-unit_work, kind="stable")
    return sorted(set(order[np.linspace(0, len(order) - 1, max(number, 1)).round().astype(int)].tolist()))


def _called_here(experts: Sequence[NDArray], edges: NDArray, atoms: NDArray) -> tuple[float, float]:
    """Experts with rows on a rank that computes all its tokens itself, mean over blocks: message, feature."""
    called = [
        np.mean([len(np.unique(chosen[tokens > 0])) for chosen in experts[layer :: len(LAYERS)]])
        for layer, tokens in enumerate((edges, atoms))
    ]
    return float(called[0]), float(called[1])


@dataclass(frozen=True)
class _Routed:
    """Rows and called experts of one micro-batch on one rank, per layer: message, feature; and the plans."""

    copies: tuple[float | None, float | None] = (None, None)
    called: tuple[float | None, float | None] = (None, None)
    plans: tuple[ExpertPlan, ...] = ()
    moved_rows: tuple[float, float] = (0.0, 0.0)
    moved_weights: float = 0.0


class _Job:
    """One model, data set, layout and settings; works out units."""

    def __init__(
        self, model: ModelConfig, data: DataCounts, layout: Layout, settings: RunSettings,
        experts: Sequence[NDArray] | None, divisions: Divisions,
    ) -> None:  # fmt: skip
        self.model, self.data, self.layout, self.settings, self.divisions = model, data, layout, settings, divisions
        self.traffic_settings = settings_traffic(settings)
        self.experts = tuple(experts) if experts is not None else _drawn(model)
        self.known_parts: dict[tuple[int, ...], tuple[Part, Sequence[Part]]] = {}  # copies are worked out once
        self.known_routes: dict[tuple[Any, ...], list[_Routed]] = {}

    def unit(self, shared: SharedBatch, replica: int) -> list[RankStep]:
        """Every rank of one unit."""
        layout, groups = self.layout, self.layout.data_degree_in_unit
        first = replica * groups
        shares = [shared.micro_batches(first + group, self.settings.max_work) for group in range(groups)]
        if not layout.is_pure_data_parallel:
            shares = lockstep(shares)
        parts: list[list[Part]] = [[] for _ in range(layout.unit)]  # by position in the unit, then micro-batch
        wholes: list[list[Part]] = [[] for _ in range(groups)]
        for group, share in enumerate(shares):
            for indices in share:
                whole, divided = self._divided(tuple(indices))
                wholes[group].append(whole)
                for place, part in enumerate(divided):
                    parts[group * layout.graph_degree + place].append(part)
        routed = self._routed(parts, shares)
        return [
            self._rank(layout.rank_at(replica, position), parts[position],
                       wholes[position // layout.graph_degree], routed[position])
            for position in range(layout.unit)
        ]  # fmt: skip

    def _divided(self, indices: tuple[int, ...]) -> tuple[Part, Sequence[Part]]:
        """One micro-batch whole, and its parts: exact where handed in."""
        if indices not in self.known_parts:
            whole = whole_part(self.data, indices)
            divided: Sequence[Part] | None = [whole]
            if self.layout.graph_degree > 1:
                divided = self.divisions.get(indices)
            if divided is None:
                divided = divide(self.data, indices, self.layout.graph_degree, self.model)
            self.known_parts[indices] = whole, divided
        return self.known_parts[indices]

    def _routed(self, parts: list[list[Part]], shares: list[list[list[int]]]) -> list[list[_Routed]]:
        """Where the copies of tokens are computed: by position in the unit, then micro-batch.

        shares: structures of every micro-batch of the unit's graph groups.
        """
        degree, graph = self.layout.expert_degree, self.layout.graph_degree
        routed: list[list[_Routed]] = [[] for _ in parts]
        if self.model.experts is None:
            return [[_Routed() for _ in mine] for mine in parts]
        for start in range(0, len(parts), degree):
            together = range(start, start + degree)
            for number in range(len(parts[start])):
                key = tuple((position % graph, *shares[position // graph][number]) for position in together)
                if key not in self.known_routes:
                    self.known_routes[key] = self._routed_together([parts[position][number] for position in together])
                for position, route in zip(together, self.known_routes[key], strict=True):
                    routed[position].append(route)
        return routed

    def _routed_together(self, there: Sequence[Part]) -> list[_Routed]:
        """One micro-batch on the ranks of an expert group. Means over the blocks of what differs between them."""
        histograms = [(part.edges_of, part.atoms_of) for part in there]
        edges, atoms = (self._tokens([pair[column] for pair in histograms]) for column in (0, 1))
        if edges is None or atoms is None:
            if len(there) > 1:
                self.data.elements_of([])  # raises: they are not known
            return [_Routed() for _ in there]
        if len(there) == 1:
            return [_Routed(called=_called_here(self.experts, edges[0], atoms[0]))]
        edges, atoms = np.rint(edges).astype(np.int64), np.rint(atoms).astype(np.int64)
        plans = expert_plans(self.model, self.experts, edges, atoms, self.traffic_settings)
        layers = [plans[layer :: len(LAYERS)] for layer in range(len(LAYERS))]
        loads = [np.mean([plan.loads for plan in layer], axis=0) for layer in layers]
        called = [np.mean([plan.computed.sum(axis=1) for plan in layer], axis=0) for layer in layers]
        sends_rows = self.settings.expert_strategy == "tokens"
        sent = [np.mean([plan.rows.sum(axis=1) for plan in layer], axis=0) * sends_rows for layer in layers]
        arriving = self._arriving_weights(plans)
        return [
            _Routed(
                copies=(float(loads[0][place]), float(loads[1][place])),
                called=(float(called[0][place]), float(called[1][place])), plans=plans,
                moved_rows=(float(sent[0][place]), float(sent[1][place])), moved_weights=float(arriving[place]),
            )
            for place in range(len(there))
        ]  # fmt: skip

    def _arriving_weights(self, plans: Sequence[ExpertPlan]) -> NDArray:
        """Numbers of experts' weights that arrive on each rank of the group, over all layers [n]."""
        total = np.zeros(plans[0].num_ranks)
        for place, plan in enumerate(plans):
            if plan.moves_weights:
                shape = expert_shape(self.model, LAYERS[place % len(LAYERS)], self.traffic_settings.item_bytes)
                total += plan.restored.sum(axis=1) * shape.num_weights
        return total

    def _tokens(self, by_number: Sequence[NDArray | None]) -> NDArray | None:
        """Tokens of each rank and element [n,Z], from counts by atomic number; None where they are not known."""
        known = [tokens[1 : self.model.num_elements + 1] for tokens in by_number if tokens is not None]
        return np.stack(known) if len(known) == len(by_number) else None

    def _rank(self, rank: int, parts: list[Part], wholes: list[Part], routed: list[_Routed]) -> RankStep:
        """One rank, from its parts."""
        micro_batches, sizes = [], []
        for part, whole, route in zip(parts, wholes, routed, strict=True):
            counts = replace(
                part.counts, message_copies=route.copies[0], feature_copies=route.copies[1],
                message_experts=route.called[0], feature_experts=route.called[1],
            )  # fmt: skip
            micro_batches.append(MicroBatchWork(counts=counts, whole=whole.counts, experts_called=self._called(counts)))
            sizes.append(MicroBatchSizes(structures=int(whole.counts.structures), halo=part.halo, plans=route.plans))
        numel, tensors = kept_pieces(self.model, self.layout, rank, self.settings.expert_strategy)
        return RankStep(
            rank=rank, micro_batches=tuple(micro_batches), phases=self._phases(micro_batches, routed),
            traffic=tuple(step_traffic(self.model, self.layout, rank, sizes, self.traffic_settings)),
            optimizer_numel=numel, optimizer_tensors=tensors,
        )  # fmt: skip

    def _called(self, counts: Counts) -> tuple[float, float]:
        if self.model.experts is None:
            return (0.0, 0.0)
        number = experts_of(self.model).num_experts
        return (counts.experts_called("message_copies", number), counts.experts_called("feature_copies", number))

    def _phases(self, micro_batches: Sequence[MicroBatchWork], routed: Sequence[_Routed]) -> dict[str, PhaseWork]:
        """Work of m micro-batches, f affine in the counts c: the sum of f(c) is f(sum of c) + (m - 1) f(0)."""
        total = {phase: PhaseWork() for phase in PHASES}
        if not micro_batches:
            return total
        counts = total_counts(micro_batch.counts for micro_batch in micro_batches)
        rows = tuple(sum(route.moved_rows[layer] for route in routed) for layer in range(len(LAYERS)))
        parts = [(self._work(counts, (rows[0], rows[1]), sum(route.moved_weights for route in routed)), 1)]
        if len(micro_batches) > 1:
            parts.append((self._work(counts.scaled(0.0), (0.0, 0.0), 0.0), len(micro_batches) - 1))
        for works, times in parts:
            for work in works:
                for phase in PHASES:
                    total[phase].add(work[phase], times)
        return total

    def _work(self, counts: Counts, rows: tuple[float, float], weights: float) -> tuple[dict[str, PhaseWork], ...]:
        """Work of one micro-batch: the model's, and what the layout adds."""
        settings = self.settings
        recompute, item_bytes = settings.recompute, ITEM_BYTES[settings.dtype]
        added = exchange_work(
            self.model, self.layout, counts, recompute=recompute, item_bytes=item_bytes,
            compressed=settings.expert_compression and settings.expert_strategy == "tokens",
            moved_rows=rows, moved_weights=weights,
        )  # fmt: skip
        return phase_work(self.model, counts, recompute=recompute, item_bytes=item_bytes), added


@lru_cache(maxsize=16)
def _drawn(model: ModelConfig) -> tuple[NDArray, ...]:
    return drawn_experts(model)
