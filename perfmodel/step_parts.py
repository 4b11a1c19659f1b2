"""What a step is made of, in seconds before anything overlaps: compute of mean and slowest ranks, every collective.

It owns the way from the work of the ranks (``step_work``) to these seconds; ``step_time.combine`` puts them together.
Speeds come from ``compute_time``, collectives from ``prices``.

All arrays have candidates in front: C candidates (1 where one step is predicted; a search fills in as many as it
likes), 4 phases FE, FF, BF, BE, K causes of compute (``compute_time.COMPUTE_CAUSES``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus.layout import AxisName, Layout
from perfmodel.compute_time import (
    COMPUTE_CAUSES,
    ROWS,
    batch_seconds,
    feature_costs,
    features_of,
    loader_seconds,
    optimizer_seconds,
    row_matrix,
    second_coefficients,
)
from perfmodel.machine import Rates
from perfmodel.model_rates import rates_of_model
from perfmodel.prices import Prices, group_size, sizes_of
from perfmodel.products import PHASES
from perfmodel.step_work import RunSettings, StepWork
from perfmodel.traffic_parameters import ROOT, gradient_buckets, sharded_units
from perfmodel.workload import ITEM_BYTES, parameter_tensors
from perfmodel.workload_moe import experts_of

Floats = NDArray[np.float64]

SUM_AXES: tuple[AxisName, ...] = ("shard_copies", "expert_copies", "world")
CONTROL_SUMS, CONTROL_BYTES, NORM_BYTES = 2, 32.0, 8.0  # exit code, losses; the gradient norm: a few numbers each
# Beside the wire: gradients flattened into buckets, gathers begun. Passes over what travels, and operator calls (those
# of all-to-alls and reduce-scatters are in the ranks' work: ``exchange_arithmetic``)
PACK_PASSES = {"all_reduce": 3.0, "all_gather": 0.0}
PACK_CALLS = {"all_reduce": 4.0, "all_gather": 4.0}
PLAN_S = 1e-3  # to place the experts of one layer: docs/parallel.md, 8 ranks, 64 experts
_BF_BE = (PHASES.index("BF"), PHASES.index("BE"))


def _per_candidate() -> Floats:
    return np.zeros(1)


def _per_phase() -> Floats:
    return np.zeros((1, len(PHASES)))


def _per_sum() -> Floats:
    return np.zeros((1, len(SUM_AXES)))


@dataclass(frozen=True, kw_only=True, eq=False)
class StepParts:
    """Seconds of the parts of a step, [C] unless said otherwise; what is left out is zero. Arrays of one candidate
    stand for all.

    compute_s [C,4,K]: of the mean rank; unit_s, slowest_s [C,4]: of the mean and the slowest unit, whose ranks wait for
    each other in every micro-batch and phase.

    Collectives [C,4] by phase; X_cover [C,4] is the part of the phase's compute that runs beside X (0: it is waited
    for at once): gathers_s (blocks, one ahead), scatters_s, halos_s, exchanges_s. first_gather_s: of block 0, and
    root_gather_s of the root, which nothing hides; last_scatter_s: of scatters_s in BE, waited for at the end of every
    micro-batch; group_sums_s [C,4]; composition_s, plan_s: before FE, where experts are spread. packing_s [C,4]:
    memory traffic and operator calls of the exchanges on the ranks.

    sums_s [C,3]: gradients over shard copies, expert copies and the world; last_sum_s: of these, the stages with block
    0 or the root in them, which cannot start before BE has ended; sums_cover: part of BE's compute beside which the
    others run; pipelined: part of the optimizer beside which sums run (0 where gradients are clipped). control_s: small
    sums of losses and exit codes; norm_s: sum of the gradient norm.

    loader_s: building graphs; loader_hidden: part of it that idle cores do; transfers_s: between two memories, beside
    compute; outside_s: of a step outside its phases.

    turns: cores over ranks where ranks share cores, else 1. unit_factor, slowest_factor: expected slowest of the ranks
    of a unit, and of all ranks, over the quiet machine's.
    """

    compute_s: Floats
    unit_s: Floats
    slowest_s: Floats
    root_gather_s: Floats = field(default_factory=_per_candidate)
    first_gather_s: Floats = field(default_factory=_per_candidate)
    gathers_s: Floats = field(default_factory=_per_phase)
    gathers_cover: Floats = field(default_factory=_per_phase)
    scatters_s: Floats = field(default_factory=_per_phase)
    scatters_cover: Floats = field(default_factory=_per_phase)
    last_scatter_s: Floats = field(default_factory=_per_candidate)
    halos_s: Floats = field(default_factory=_per_phase)
    halos_cover: Floats = field(default_factory=_per_phase)
    exchanges_s: Floats = field(default_factory=_per_phase)
    exchanges_cover: Floats = field(default_factory=_per_phase)
    group_sums_s: Floats = field(default_factory=_per_phase)
    composition_s: Floats = field(default_factory=_per_candidate)
    plan_s: Floats = field(default_factory=_per_candidate)
    packing_s: Floats = field(default_factory=_per_phase)
    sums_s: Floats = field(default_factory=_per_sum)
    last_sum_s: Floats = field(default_factory=_per_candidate)
    sums_cover: Floats = field(default_factory=_per_candidate)
    control_s: Floats = field(default_factory=_per_candidate)
    norm_s: Floats = field(default_factory=_per_candidate)
    optimizer_s: Floats = field(default_factory=_per_candidate)
    pipelined: Floats = field(default_factory=_per_candidate)
    loader_s: Floats = field(default_factory=_per_candidate)
    loader_hidden: Floats = field(default_factory=_per_candidate)
    transfers_s: Floats = field(default_factory=_per_candidate)
    outside_s: Floats = field(default_factory=_per_candidate)
    turns: Floats = field(default_factory=lambda: np.ones(1))
    unit_factor: Floats = field(default_factory=lambda: np.ones(1))
    slowest_factor: Floats = field(default_factory=lambda: np.ones(1))

    def repeated(self, count: int) -> StepParts:
        """The same step count times, in arrays that may be changed one by one. For parts of one candidate."""
        return replace(self, **{entry.name: np.repeat(getattr(self, entry.name), count, axis=0)
                                for entry in fields(self)})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a step meets beside its work. rates: of the filling; control: prices of the control plane.

    turns: cores over ranks where ranks share cores, else 1; loader_hidden: part of the loader's work that idle cores
    do. transfers_s: between two memories.
    """

    rates: Rates
    prices: Prices
    control: Prices
    turns: float = 1.0
    loader_hidden: float = 1.0
    transfers_s: float = 0.0


def coupled_ranks(layout: Layout) -> int:
    """Consecutive places of a unit whose ranks wait for each other inside a phase: those that share an axis."""
    return math.lcm(layout.shard_degree, layout.graph_degree, layout.expert_degree)


def compute_by_batch(work: StepWork, rates: Rates) -> list[Floats]:
    """Seconds of every rank's micro-batches by phase and cause, [M,4,K] each; all ranks worked out at once."""
    counts = [batch.counts for rank in work.ranks for batch in rank.micro_batches]
    seconds = batch_seconds(work.model, counts, rates, dtype=work.settings.dtype, recompute=work.settings.recompute)
    ends = np.cumsum([len(rank.micro_batches) for rank in work.ranks])
    return np.split(seconds, ends[:-1])


def exchange_seconds(work: StepWork, by_rank: Floats, rates: Rates) -> Floats:
    """Seconds per phase [4] that exchanges add to the mean rank's compute: its work less that of its rows.

    by_rank [ranks,4,K]: compute of the rows.
    """
    settings = work.settings
    costs = feature_costs(rates_of_model(rates, work.model), ITEM_BYTES[settings.dtype]).sum(axis=1)
    features = np.array([[features_of(rank.phases[phase]) for phase in PHASES] for rank in work.ranks])
    kept = [COMPUTE_CAUSES.index(cause) for cause in COMPUTE_CAUSES if cause not in ("fresh memory", "batch")]
    return np.asarray(np.maximum((features @ costs - by_rank[:, :, kept].sum(axis=2)).mean(axis=0), 0.0))


def _coupled_groups(work: StepWork) -> list[list[int]]:
    """Places in ``work.ranks`` of the ranks that wait for each other inside a phase."""
    size = coupled_ranks(work.layout)
    found: dict[tuple[int, int], list[int]] = {}
    for place, rank in enumerate(work.ranks):
        where = work.layout.coordinates(rank.rank)
        found.setdefault((where.replica, where.position // size), []).append(place)
    return list(found.values())


def _group_seconds(work: StepWork, by_batch: Sequence[Floats], groups: Sequence[Sequence[int]]) -> Floats:
    """Seconds of every coupled group by phase [groups,4]: in each micro-batch and phase its slowest rank's."""
    result = np.zeros((len(groups), len(PHASES)))
    for number, members in enumerate(groups):
        longest = max(len(by_batch[place]) for place in members)
        for batch in range(longest):
            there = [by_batch[place][batch].sum(axis=1) for place in members if batch < len(by_batch[place])]
            result[number] += np.max(there, axis=0)
    return result


def _represented_work(work: StepWork, groups: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
    """Edges + angles of every represented coupled group, and of all coupled groups of the job."""
    layout = work.layout
    each = max(1, coupled_ranks(layout) // layout.graph_degree)  # data groups in a coupled group
    everywhere = np.asarray(work.group_work, dtype=np.float64).reshape(-1, each).sum(axis=1)
    mine = []
    for members in groups:
        data = layout.coordinates(work.ranks[members[0]].rank).data
        mine.append(everywhere[data // each])
    return np.array(mine), everywhere


def mean_over_job(represented: Floats, mine: Floats, everywhere: Floats) -> Floats:
    """Mean over all groups of what is known of the represented ones [groups, ...], a straight line in their work."""
    if len(mine) == len(everywhere) or np.ptp(mine) == 0:
        return np.asarray(represented.mean(axis=0))
    flat = represented.reshape(len(mine), -1)
    slope, start = np.polyfit(mine, flat, 1)
    return np.asarray(np.maximum(start + slope * everywhere.mean(), 0.0)).reshape(represented.shape[1:])


@dataclass(frozen=True)
class _Collectives:
    """Rows of the represented ranks' traffic by (phase, axis, collective): calls and size m of the fullest group's."""

    calls: dict[tuple[str, str, str], float]
    size: dict[tuple[str, str, str], float]

    def get(self, phase: str, axis: str, collective: str) -> tuple[float, float]:
        key = (phase, axis, collective)
        return self.calls.get(key, 0.0), self.size.get(key, 0.0)


def _collectives(work: StepWork) -> _Collectives:
    """Calls, and the mean over groups of the size of the group's fullest rank."""
    layout = work.layout
    rows: list[tuple[tuple[str, str, str], int, float, float]] = []
    for rank in work.ranks:
        where = layout.coordinates(rank.rank)
        for row in rank.traffic:
            axis: Any = row["axis"]
            degree = group_size(layout, axis)
            inside = axis in ("shard", "graph", "expert")
            group = where.replica * layout.unit + where.position // degree * degree if inside else 0
            key = (str(row["phase"]), str(axis), str(row["collective"]))
            rows.append((key, group, float(row["calls"]), sizes_of(row, degree)))
    calls: dict[tuple[str, str, str], float] = {}
    size: dict[tuple[str, str, str], float] = {}
    rows.sort(key=lambda entry: entry[:2])
    for key, members in groupby(rows, key=lambda entry: entry[0]):
        groups = [list(same) for _, same in groupby(members, key=lambda entry: entry[1])]
        most = [max(entry[2] for entry in same) for same in groups]
        fullest = [max(entry[3] for entry in same) for same in groups]
        calls[key] = float(np.mean(most))
        size[key] = float(np.average(fullest, weights=most))
    return _Collectives(calls, size)


class _Filler:
    """Fills in the parts of one step."""

    def __init__(self, work: StepWork, given: Circumstances, packing: Floats) -> None:
        self.work, self.given, self.layout = work, given, work.layout
        self.settings, self.rates = work.settings, given.rates
        self.item_bytes = ITEM_BYTES[work.settings.dtype]
        self.found = _collectives(work)
        self.micro_batches = max((len(rank.micro_batches) for rank in work.ranks), default=0)
        self.visits = max(1, self.micro_batches * work.model.num_blocks)
        self.values: dict[str, Floats] = {}
        self.packing = packing

    def price(self, axis: AxisName, collective: str, size: float) -> float:
        return float(self.given.prices.seconds(self.layout, axis, collective, size))

    def pack(self, phase: str, collective: str, calls: float, size: float) -> None:
        """Memory traffic and operator calls that go with some collectives."""
        each_s = PACK_PASSES[collective] * size / self.rates.plain_bytes_per_s
        self.packing[PHASES.index(phase)] += calls * (each_s + PACK_CALLS[collective] * self.rates.op_s)

    def put(self, name: str, value: float | Floats) -> None:
        self.values[name] = np.asarray(value, dtype=np.float64)[None]

    def shard(self) -> None:
        """Gathers and reduce-scatters of sharded parameters."""
        units = sharded_units(self.work.model, self.layout)
        if not units:
            return
        degree, ahead = self.layout.shard_degree, self.settings.gathered_blocks != 1
        size = {block: numel * degree * self.item_bytes for block, numel in units.items()}
        self.put("root_gather_s", self.price("shard", "all_gather", size[ROOT]))
        first_s = self.price("shard", "all_gather", size[0])
        self.put("first_gather_s", first_s)
        gathers, gathers_cover, scatters, scatters_cover = np.zeros((4, len(PHASES)))
        for place, phase in enumerate(PHASES):
            calls, mean = self.found.get(phase, "shard", "all_gather")
            if calls:
                known = [size[ROOT], size[0]] if phase == "FE" else []
                left = calls - len(known)
                each = (calls * mean - sum(known)) / left if left > 0 else 0.0
                gathers[place] = max(left, 0) * self.price("shard", "all_gather", each)
                gathers_cover[place] = min(1.0, max(left, 0) / self.visits) * ahead
                self.pack(phase, "all_gather", calls, mean)
            calls, mean = self.found.get(phase, "shard", "reduce_scatter")
            if calls:
                scatters[place] = calls * self.price("shard", "reduce_scatter", mean)
                scatters_cover[place] = (self.visits - self.micro_batches) / self.visits
        self.put("gathers_s", gathers)
        self.put("gathers_cover", gathers_cover)
        self.put("scatters_s", scatters)
        self.put("scatters_cover", scatters_cover)
        last_s = self.price("shard", "reduce_scatter", size[ROOT])
        self.put("last_scatter_s", min(self.micro_batches * last_s, float(scatters[_BF_BE[1]])))

    def graph(self, three_body: Floats) -> None:
        """Halos and sums over the graph group. three_body [4]: part of the compute beside a MatRIS-MoE's halo."""
        halos, sums = np.zeros((2, len(PHASES)))
        for place, phase in enumerate(PHASES):
            calls, mean = self.found.get(phase, "graph", "all_to_all")
            halos[place] = calls * self.price("graph", "all_to_all", mean)
            calls, mean = self.found.get(phase, "graph", "all_reduce")
            sums[place] = calls * self.price("graph", "all_reduce", mean)
        self.put("halos_s", halos)
        self.put("halos_cover", three_body * (halos > 0))
        self.put("group_sums_s", sums)

    def expert(self, shared: Floats) -> None:
        """Exchanges of token rows or weights. shared [4]: part of the compute that is the shared experts' products."""
        if self.layout.expert_degree == 1:
            return
        exchanges, cover = np.zeros((2, len(PHASES)))
        for place, phase in enumerate(PHASES):
            calls, mean = self.found.get(phase, "expert", "all_to_all")
            exchanges[place] = calls * self.price("expert", "all_to_all", mean)
            if self.settings.expert_strategy == "weights":  # restored one block ahead; gradients go home beside
                cover[place] = 1.0 if self.settings.gathered_blocks != 1 else 0.0
            else:
                cover[place] = shared[place]
        self.put("exchanges_s", exchanges)
        self.put("exchanges_cover", cover)
        calls, mean = self.found.get("other", "expert", "all_gather")
        self.put("composition_s", calls * self.price("expert", "all_gather", mean))
        layers = 2 * self.work.model.num_blocks
        self.put("plan_s", self.micro_batches * layers * PLAN_S * self.layout.expert_degree / 8)

    def sums(self) -> None:
        """Sums of gradients over the copies, the norm, and the small sums of the control plane."""
        if self.layout.world_size == 1:
            return
        stages = gradient_stages(self.work.model, self.layout, self.settings)
        sums, last_s = np.zeros(len(SUM_AXES)), 0.0
        for place, axis in enumerate(SUM_AXES):
            mine = [(size, block) for name, size, block in stages if name == axis]
            if mine and group_size(self.layout, axis) > 1:
                sizes, blocks = np.array(mine).T
                seconds = self.given.prices.seconds(self.layout, axis, "all_reduce", sizes)
                sums[place], last_s = float(seconds.sum()), last_s + float(seconds[blocks <= 0].sum())
                if axis != "shard_copies":
                    self.pack("BE", "all_reduce", len(sizes), float(sizes.mean()))
        self.put("sums_s", sums)
        self.put("last_sum_s", last_s)
        self.put("sums_cover", cover_of_sums(stages, self.work.model.num_blocks) / max(self.micro_batches, 1))
        number = max((sum(name == axis for name, _, _ in stages) for axis in SUM_AXES), default=1)
        self.put("pipelined", 0.0 if self.settings.clips else max(0, number - 1) / max(number, 1))
        self.put("norm_s", self.price("world", "all_reduce", NORM_BYTES))
        control = self.given.control.seconds(self.layout, "world", "all_reduce", CONTROL_BYTES)
        self.put("control_s", CONTROL_SUMS * float(control))

    def own_work(self) -> None:
        """What a rank does beside the phases: optimizer, loader, time outside."""
        settings, rates, ranks = self.settings, self.rates, self.work.ranks
        self.put("optimizer_s", max(
            (optimizer_seconds(rank.optimizer_numel, rank.optimizer_tensors, rates, dtype=settings.dtype,
                               clips=settings.clips, averages=settings.averages) for rank in ranks), default=0.0,
        ))  # fmt: skip
        divided = self.layout.graph_degree > 1
        loads = [
            loader_seconds([batch.whole for batch in rank.micro_batches], rates, divided=divided) for rank in ranks
        ]
        self.put("loader_s", float(np.mean(loads)) if loads else 0.0)
        self.put("loader_hidden", self.given.loader_hidden)
        tensors = parameter_tensors(self.work.model)
        self.put("outside_s", (rates.step_s or 0.0) + tensors * (rates.step_tensor_s or 0.0))
        self.put("transfers_s", self.given.transfers_s)
        self.put("turns", self.given.turns)


def gradient_stages(model: Any, layout: Layout, settings: RunSettings) -> list[tuple[AxisName, float, int]]:
    """Every sum of gradients: (axis, size m in bytes, lowest block that it holds), in the order in which they start."""
    item_bytes = ITEM_BYTES[settings.dtype]
    units = sharded_units(model, layout)
    order = [*range(model.num_blocks - 1, -1, -1), ROOT]
    stages: list[tuple[AxisName, float, int]] = [
        ("shard_copies", units[block] * item_bytes, block) for block in order if block in units
    ]
    buckets = gradient_buckets(
        model, layout, 0, strategy=settings.expert_strategy, item_bytes=item_bytes, bucket_bytes=settings.bucket_bytes
    )
    for axis in SUM_AXES:
        sizes = [bucket.numel * item_bytes for bucket in buckets if bucket.axis == axis]
        reached = np.cumsum(sizes) / max(sum(sizes), 1)
        for size, done in zip(sizes, reached.tolist(), strict=True):
            # blocks hold about as much each; what is outside blocks comes last
            block = ROOT if done >= 1 else int(model.num_blocks * (1 - done))
            stages.append((axis, float(size), block))
    return stages


def cover_of_sums(stages: Sequence[tuple[AxisName, float, int]], num_blocks: int) -> float:
    """Part of a micro-batch's BE that is still to come when the first stage is complete: blocks below its lowest."""
    return max(0, *(block for _, _, block in stages), 0) / num_blocks


def _shares_of_compute(work: StepWork, rates: Rates) -> tuple[Floats, Floats]:
    """Parts [4] of a rank's compute: of angles and bonds (three-body part of a MatRIS-MoE), and the shared experts'."""
    model, settings = work.model, work.settings
    none = np.zeros(len(PHASES))
    if model.experts is None:
        return none, none
    counts = [batch.counts for rank in work.ranks for batch in rank.micro_batches]
    if not counts:
        return none, none
    rows = row_matrix(model, counts).sum(axis=0)
    seconds = second_coefficients(model, rates, dtype=settings.dtype, recompute=settings.recompute).sum(axis=2)
    whole = np.maximum(rows @ seconds, 1e-30)
    three_body = [ROWS.index(name) for name in ("angles", "bonds", "shared_bonded_pairs")]
    experts = experts_of(model)
    tokens = {"edges": experts.message_hidden, "atoms": experts.feature_hidden}
    flops = sum(
        2.0 * rows[ROWS.index(name)] * 3 * model.width * hidden * experts.num_shared_experts
        for name, hidden in tokens.items()
    ) * model.num_blocks  # fmt: skip
    multiples = np.array([1, 1, 2, 2]) if not settings.recompute else np.array([1, 2, 6, 3])
    shared = rates.step_stretch * flops * multiples / rates.matmul_flops_per_s
    return rows[three_body] @ seconds[three_body] / whole, np.minimum(shared / whole, 1.0)


def parts_of(work: StepWork, given: Circumstances) -> tuple[StepParts, tuple[float, ...], Floats]:
    """The parts of one step, the compute seconds of every represented rank, and the seconds of all coupled groups of
    the job (estimated from their work where not all are represented).
    """
    by_batch = compute_by_batch(work, given.rates)
    by_rank = np.stack([seconds.sum(axis=0) for seconds in by_batch])
    groups = _coupled_groups(work)
    group_s = _group_seconds(work, by_batch, groups)
    mine, everywhere = _represented_work(work, groups)
    of_groups = np.stack([by_rank[members].mean(axis=0) for members in groups])
    filler = _Filler(work, given, exchange_seconds(work, by_rank, given.rates))
    filler.put("compute_s", mean_over_job(of_groups, mine, everywhere))
    filler.put("unit_s", np.maximum(mean_over_job(group_s, mine, everywhere), filler.values["compute_s"][0].sum(-1)))
    slowest = int(np.argmax(group_s.sum(axis=1)))
    filler.put("slowest_s", np.maximum(group_s[slowest], 0.0))
    three_body, shared = _shares_of_compute(work, given.rates)
    filler.shard()
    if work.layout.graph_degree > 1:
        filler.graph(three_body)
    filler.expert(shared)
    filler.sums()
    filler.own_work()
    filler.put("packing_s", filler.packing)
    rank_s = tuple(by_rank.sum(axis=(1, 2)).tolist())
    if len(mine) == len(everywhere):
        return StepParts(**filler.values), rank_s, group_s.sum(axis=1)
    return StepParts(**filler.values), rank_s, _all_group_seconds(group_s.sum(axis=1), mine, everywhere)


def _all_group_seconds(seconds: Floats, mine: Floats, everywhere: Floats) -> Floats:
    if np.ptp(mine) == 0:
        return np.full(len(everywhere), seconds.mean())
    slope, start = np.polyfit(mine, seconds, 1)
    return np.asarray(np.clip(start + slope * everywhere, 0.0, seconds.max()))
