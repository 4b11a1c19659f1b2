"""Calls and bytes of every collective of one training step, by phase and axis, as the trainer's ledger counts them.

It owns the formulas that docs/parallel.md states (tests hold them equal to the ledgers of real steps, row by row, rank
by rank), not how long collectives take (``prices``), which ranks form an axis (``janus.layout``) or the expert
plan (``janus.placement``). What depends on the data (halos, expert plans) is handed in.

One rank, one step of m micro-batches; n ranks of the axis in question, L blocks of which ``keep`` are held, b bytes
per number. Bytes are those handed to others: all-gather and reduce-scatter (n-1) x the piece, all-reduce
floor(2 (n-1)/n x the whole), all-to-all the rows for other ranks. Axes of one rank send nothing and have no row.

    axis           collective      phase           calls
    shard          all_gather      FE FF BF BE     the root once, in FE; blocks as in ``traffic_gathers``
                   reduce_scatter  BE, BF          m (L+1) in BE; m L in BF with recomputation, else none
    graph          all_to_all      FE FF BF BE     ``_graph_messages``
                   all_reduce      FF, BF          m each, of [G,10] float64: energies and derivatives by the strain
    expert         all_gather      other           m, of 2 Z int64: the composition of the micro-batch
                   all_to_all      FE FF BF BE     ``janus.placement.exchange_traffic``
    shard_copies   all_reduce      sync            L+1: one per sharded unit
    expert_copies  all_reduce      sync            one per bucket of spread experts
    world          all_reduce      sync            one per bucket of undivided parameters; the gradient norm, 8 bytes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from janus.config import ModelConfig
from janus.layout import Layout
from janus.placement import (
    PHASES,
    ExpertPlan,
    ReplicationRule,
    Strategy,
    exchange_traffic,
    place_experts,
)
from perfmodel.traffic_gathers import Restorations, restorations
from perfmodel.traffic_parameters import LAYERS, ROOT, expert_shape, gradient_buckets, sharded_units

COUNT_BYTES = 8  # of the composition's counts, int64
NORM_BYTES = 8  # of the gradient norm, one float64
GROUP_SUM_BYTES = 80  # of a structure's energy and nine derivatives by the strain, float64


@dataclass(frozen=True, kw_only=True)
class TrafficSettings:
    """Settings of a run that decide what is sent, as in janus.train.config. item_bytes: of one number of its dtype."""

    item_bytes: int = 4
    recompute: bool = False
    gathered_blocks: int = 2
    expert_strategy: Strategy = "tokens"
    expert_replication: bool = True
    expert_flops_per_byte: float = 200.0
    expert_compression: bool = False
    bucket_bytes: int = 25 * 1024 * 1024

    @property
    def keep(self) -> int | None:
        """Blocks held at a time; None: all."""
        return self.gathered_blocks or None


@dataclass(frozen=True, kw_only=True)
class HaloCounts:
    """Rows of one micro-batch that a rank of a graph group shares with others, summed over them (docs/parallel.md).

    boundary: S, owned atoms sent as ghosts, once per receiver; ghosts: H; shared_pairs: V; shared_bonded_pairs: Q.
    """

    boundary: int = 0
    ghosts: int = 0
    shared_pairs: int = 0
    shared_bonded_pairs: int = 0


@dataclass(frozen=True, kw_only=True)
class MicroBatchSizes:
    """What the traffic of one micro-batch depends on, seen from one rank.

    structures: G of the whole micro-batch; halo: where the graph is partitioned; plans: of the message and the feature
    layer of each block in turn, where experts are spread (``expert_plans``).
    """

    structures: int
    halo: HaloCounts = field(default_factory=HaloCounts)
    plans: tuple[ExpertPlan, ...] = ()

    def lends(self) -> set[int]:
        """Blocks in which weights of experts travel."""
        return {number // len(LAYERS) for number, plan in enumerate(self.plans) if plan.moves_weights}


@dataclass(frozen=True, order=True)
class _Entry:
    phase: str
    axis: str
    collective: str


class _Tally:
    """Sums of calls and bytes."""

    def __init__(self) -> None:
        self.calls: dict[_Entry, int] = {}
        self.sent_bytes: dict[_Entry, int] = {}

    def add(self, phase: str, axis: str, collective: str, sent_bytes: int, calls: int = 1) -> None:
        """``calls`` collectives that send ``sent_bytes`` together."""
        if calls:
            entry = _Entry(phase, axis, collective)
            self.calls[entry] = self.calls.get(entry, 0) + calls
            self.sent_bytes[entry] = self.sent_bytes.get(entry, 0) + sent_bytes

    def rows(self) -> list[dict[str, str | int]]:
        return [
            {"phase": e.phase, "axis": e.axis, "collective": e.collective,
             "calls": self.calls[e], "sent_bytes": self.sent_bytes[e]}
            for e in sorted(self.calls)
        ]  # fmt: skip


def step_traffic(
    model: ModelConfig,
    layout: Layout,
    rank: int,
    micro_batches: Sequence[MicroBatchSizes],
    settings: TrafficSettings,
) -> list[dict[str, str | int]]:
    """What one rank sends in one training step: rows of phase, axis, collective, calls, sent_bytes, sorted.

    Exact, equal to ``Ledger.rows()`` of the trainer after the step. micro_batches: of this rank, empty ones included
    (the ranks of a unit have equally many). Loss terms that are off leave rows out: forces and stress are assumed to
    be trained.
    """
    tally = _Tally()
    expert = layout.coordinates(rank).expert
    found = restorations(
        model.num_blocks,
        settings.keep,
        [sizes.lends() for sizes in micro_batches],
        sharded=layout.shard_degree > 1,
        spread=layout.expert_degree > 1,
    )
    _add_shard(tally, model, layout, len(micro_batches), found, settings)
    for sizes, restored_in, times in _alike(model, micro_batches, found):
        if layout.graph_degree > 1:
            _add_graph(tally, model, layout.graph_degree, sizes, settings, times)
        if layout.expert_degree > 1:
            _add_expert(tally, model, layout.expert_degree, expert, sizes, restored_in, settings, times)
    _add_sync(tally, model, layout, expert, settings)
    return tally.rows()


RestoredIn = tuple[tuple[str, ...], ...]  # by block: phases in which its experts' weights are restored


def _alike(
    model: ModelConfig, micro_batches: Sequence[MicroBatchSizes], found: Restorations
) -> list[tuple[MicroBatchSizes, RestoredIn, int]]:
    """Micro-batches that send alike, once each, with how many of them there are."""
    kinds: dict[tuple[Any, ...], tuple[MicroBatchSizes, RestoredIn, int]] = {}
    for number, sizes in enumerate(micro_batches):
        restored = tuple(tuple(found.experts.get((number, block), ())) for block in range(model.num_blocks))
        key = sizes.structures, sizes.halo, id(sizes.plans), restored
        _, _, times = kinds.get(key, (sizes, restored, 0))
        kinds[key] = sizes, restored, times + 1
    return list(kinds.values())


def _add_shard(
    tally: _Tally, model: ModelConfig, layout: Layout, num_micro_batches: int, found: Restorations,
    settings: TrafficSettings,
) -> None:  # fmt: skip
    """Gathers of parameters and reduce-scatters of their gradients, (n-1) x a unit's shard each.

    The root is gathered once per step. Every backward through the energy (BE) reduces each unit once; recomputed blocks
    make gradients of their parameters in the backward through the forces (BF) too.
    """
    others = layout.shard_degree - 1
    units = {
        block: others * numel * settings.item_bytes for block, numel in sharded_units(model, layout).items()
    }  # bytes handed to others per call
    if not units:
        return
    tally.add("FE", "shard", "all_gather", units[ROOT])
    for (phase, block), times in Counter(found.blocks).items():
        tally.add(phase, "shard", "all_gather", times * units[block], times)
    for phase, blocks in (("BE", [*range(model.num_blocks), ROOT]), ("BF", [*range(model.num_blocks)])):
        if phase == "BE" or settings.recompute:
            sent = num_micro_batches * sum(units[block] for block in blocks)
            tally.add(phase, "shard", "reduce_scatter", sent, num_micro_batches * len(blocks))


@dataclass(frozen=True)
class _Messages:
    """All-to-alls of a phase over the graph axis: how many, and the numbers they carry to others."""

    calls: int
    numbers: int

    def __add__(self, other: _Messages) -> _Messages:
        return _Messages(self.calls + other.calls, self.numbers + other.numbers)

    def __sub__(self, other: _Messages) -> _Messages:
        return _Messages(self.calls - other.calls, self.numbers - other.numbers)

    def __mul__(self, times: int) -> _Messages:
        return _Messages(self.calls * times, self.numbers * times)


def _positions(halo: HaloCounts) -> _Messages:
    """Positions of ghosts."""
    return _Messages(1, 3 * halo.boundary)


def _block_messages(model: ModelConfig, halo: HaloCounts, num_blocks: int) -> _Messages:
    """What the first ``num_blocks`` blocks send in FE. C width; S, H, V, Q as in ``HaloCounts``.

    MatRIS, each: (4 Q + S) C after line attention, (2 H + V) C after atom attention, (Q + S) C after line refinement,
    and V C at the end but for the model's last block, whose edges nothing reads. MatRIS-MoE: S C.
    """
    s, h, v, q = halo.boundary, halo.ghosts, halo.shared_pairs, halo.shared_bonded_pairs
    if model.family == "matris-moe":
        return _Messages(1, s * model.width) * num_blocks
    block = _Messages(4, (4 * q + s + 2 * h + v + q + s + v) * model.width) * num_blocks
    return block - _Messages(1, v * model.width) if num_blocks == model.num_blocks else block


def _graph_messages(model: ModelConfig, halo: HaloCounts, recompute: bool) -> dict[str, _Messages]:
    """All-to-alls of one micro-batch by phase. F: the blocks' messages in FE; A: their adjoints, S and H exchanged.

    Without recomputation each message goes once in each phase: F in FE and BF, A in FF and BE, positions always. The
    first block of MatRIS-MoE sends what does not depend on positions: none of it in FF and BF.

    With recomputation blocks run again: FF = F + A and BE = F + A; BF makes forward, force pass and their backward,
    2 F + 2 A, less the last step of a backward that is linear in what leaves a block: V C of every block but the last
    (MatRIS), and S C of the first block, whose atoms do not depend on positions (MatRIS-MoE).
    """
    back = HaloCounts(
        boundary=halo.ghosts, ghosts=halo.boundary, shared_pairs=halo.shared_pairs,
        shared_bonded_pairs=halo.shared_bonded_pairs,
    )  # fmt: skip
    forth_positions, back_positions = _positions(halo), _positions(back)
    every, is_moe = model.num_blocks, model.family == "matris-moe"
    forward, adjoint = _block_messages(model, halo, every), _block_messages(model, back, every)
    first_forward = _block_messages(model, halo, 1) if is_moe else _Messages(0, 0)
    first_adjoint = _block_messages(model, back, 1) if is_moe else _Messages(0, 0)
    if not recompute:
        return {
            "FE": forth_positions + forward,
            "FF": back_positions + adjoint - first_adjoint,
            "BF": forth_positions + forward - first_forward,
            "BE": back_positions + adjoint,
        }
    linear = first_forward if is_moe else _Messages(1, halo.shared_pairs * model.width) * (every - 1)
    return {
        "FE": forth_positions + forward,
        "FF": back_positions + adjoint + forward,
        "BF": forth_positions + (forward + adjoint) * 2 - linear,
        "BE": back_positions + adjoint + forward,
    }


def _add_graph(
    tally: _Tally, model: ModelConfig, num_ranks: int, sizes: MicroBatchSizes, settings: TrafficSettings, times: int
) -> None:
    """Alike micro-batches over the graph axis: halos, and the sum over the group in FF and, its adjoint, in BF."""
    for phase, messages in _graph_messages(model, sizes.halo, settings.recompute).items():
        sent = times * messages.numbers * settings.item_bytes
        tally.add(phase, "graph", "all_to_all", sent, times * messages.calls)
    for phase in ("FF", "BF"):
        sent = _all_reduce_bytes(num_ranks, GROUP_SUM_BYTES * sizes.structures)
        tally.add(phase, "graph", "all_reduce", times * sent, times)


def _add_expert(
    tally: _Tally, model: ModelConfig, num_ranks: int, expert: int, sizes: MicroBatchSizes, restored_in: RestoredIn,
    settings: TrafficSettings, times: int,
) -> None:  # fmt: skip
    """Alike micro-batches over the expert axis: their composition before the forward pass, each layer's exchange."""
    assert len(sizes.plans) == len(LAYERS) * model.num_blocks, (len(sizes.plans), model.num_blocks)
    tally.add("other", "expert", "all_gather", times * (num_ranks - 1) * 2 * model.num_elements * COUNT_BYTES, times)
    for place, plan in enumerate(sizes.plans):
        block, layer = divmod(place, len(LAYERS))
        traffic = exchange_traffic(
            plan,
            expert_shape(model, LAYERS[layer], settings.item_bytes),
            expert,
            restored_in=restored_in[block],
            compressed=settings.expert_compression,
            recompute=settings.recompute,
            leaves_block=LAYERS[layer] == "feature_update",
        )
        for phase in PHASES:
            calls, sent_bytes = traffic[phase]
            tally.add(phase, "expert", "all_to_all", times * sent_bytes, times * calls)


def _add_sync(tally: _Tally, model: ModelConfig, layout: Layout, expert: int, settings: TrafficSettings) -> None:
    """Sums of gradients over the ranks with equal copies, and the gradient norm over all (with and without clipping).

    Once per step, however many micro-batches: floor(2 (c-1) b / c) of each stage of b bytes over c copies.
    """
    copies = {
        "shard_copies": layout.world_size // layout.shard_degree,
        "expert_copies": layout.world_size // layout.expert_degree,
        "world": layout.world_size,
    }
    stages = [("shard_copies", numel) for numel in sharded_units(model, layout).values()]
    stages += [
        (bucket.axis, bucket.numel)
        for bucket in gradient_buckets(
            model, layout, expert, strategy=settings.expert_strategy, item_bytes=settings.item_bytes,
            bucket_bytes=settings.bucket_bytes,
        )
    ]  # fmt: skip
    sizes = [(axis, numel * settings.item_bytes) for axis, numel in stages]
    for axis, stage_bytes in [*sizes, ("world", NORM_BYTES)]:
        if copies[axis] > 1:
            tally.add("sync", axis, "all_reduce", _all_reduce_bytes(copies[axis], stage_bytes))


def _all_reduce_bytes(num_ranks: int, whole_bytes: int) -> int:
    return 2 * (num_ranks - 1) * whole_bytes // num_ranks


def expert_plans(
    model: ModelConfig,
    experts: Sequence[np.ndarray],
    edges: np.ndarray,
    atoms: np.ndarray,
    settings: TrafficSettings,
) -> tuple[ExpertPlan, ...]:
    """The plans that all ranks of an expert group make of one micro-batch, for ``MicroBatchSizes``.

    experts: chosen by each element [Z,k], of the message and the feature layer of each block in turn (the k largest of
    the gate's row); edges (by the element of their centre), atoms: per rank of the group and element [n,Z].
    """
    rule = None
    if settings.expert_replication:
        passes = 2 if settings.keep is None else 5
        rule = ReplicationRule(flops_per_byte=settings.expert_flops_per_byte, weight_passes=passes)
    return tuple(
        place_experts(
            chosen,
            edges if LAYERS[place % len(LAYERS)] == "message_update" else atoms,
            expert_shape(model, LAYERS[place % len(LAYERS)], settings.item_bytes),
            settings.expert_strategy,
            rule,
        )
        for place, chosen in enumerate(experts)
    )
