"""One rank of a parallel layout without the others: real kernels, real memory, the exact list of its collectives.

The rank's part of the model is built as ever (``parallel/fs3d.py``), it works on the micro-batches that the trainer
would give it, and its steps are the trainer's; only the axes have nobody at the other end
(``parallel/rehearsed_axis.py``). Updates have a learning rate of zero and nothing is ever saved: a rehearsal cannot
train. It does not own the command (``cli/rehearse.py``), FLOPs, or what the list costs on a machine
(``perfmodel/rehearsal.py``).
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from janus.data.structure import Structure
from janus.errors import UserError
from janus.layout import Layout
from janus.model.batch import GraphBatch
from janus.model.experts import MixtureOfExperts
from janus.model.potential import Phase, Prediction
from janus.parallel.fs3d import Axes, DistributedModel, distribute
from janus.parallel.halo import Halo
from janus.parallel.lean_experts import LeanExperts
from janus.parallel.pieces import leaves
from janus.parallel.rehearsed_axis import RehearsedAxis, Timeline
from janus.parallel.sharding import ShardedUnit
from janus.rehearsed_memory import PeakMemory, allocated_bytes
from janus.rehearsed_unit import (
    RehearsedCommunicator,
    RehearsedMicroBatch,
    RehearsedUnit,
    Shares,
    heaviest_part,
    load_unit,
    rehearsed_axes,
)
from janus.train.config import TrainConfig
from janus.train.ema import WeightAverage
from janus.train.loss import Denominators
from janus.train.optimizer import build_optimizer, set_learning_rate
from janus.train.session import peak_memory_bytes
from janus.train.step import accumulate_gradients, update
from janus.train.timing import PHASES, PhaseTimer

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RehearsalJob:
    """What is rehearsed. store: structures by index; work: of each, edges + angles; batch: indices of the global batch;
    with_optimizer: False leaves the update and its moments out; measures_memory: by one more step.
    """

    config: TrainConfig
    layout: Layout
    store: Sequence[Structure]
    work: np.ndarray
    batch: list[int]
    denominators: Denominators
    reference_energies: Tensor | None = None
    steps: int = 3
    warm_up: int = 1
    with_optimizer: bool = True
    measures_memory: bool = True

    @property
    def num_steps(self) -> int:
        """All steps taken."""
        return self.warm_up + self.steps + int(self.measures_memory)


@dataclass(kw_only=True)
class RehearsedStep:
    """One step as measured. phase_s: seconds that the rank computes, by the trainer's phases and "outside"; made_up_s:
    seconds that making up what others would have sent took, in no phase; cpu_s: processor seconds of all of it.
    """

    step_s: float
    cpu_s: float
    phase_s: dict[str, float]
    made_up_s: float
    loss: float
    norm: float
    calls: list[dict[str, Any]]
    events: list[dict[str, Any]]
    traffic: list[dict[str, Any]]

    @property
    def compute_s(self) -> float:
        return sum(self.phase_s.values())


@dataclass(kw_only=True)
class Rehearsed:
    """What came of it. memory: bytes by name; counts: of the rank's micro-batches."""

    rank: int
    shares: Shares
    steps: list[RehearsedStep]
    memory: dict[str, int | None]
    micro_batches: list[dict[str, Any]]
    loading_s: float
    building_s: float
    is_finite: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_finite = all(math.isfinite(step.loss) and math.isfinite(step.norm) for step in self.steps)

    @property
    def typical(self) -> RehearsedStep:
        """The step whose compute seconds are the median (of an even number the faster one)."""
        ranked = sorted(self.steps, key=lambda step: step.compute_s)
        return ranked[(len(ranked) - 1) // 2]


class _Timer(PhaseTimer):
    """The trainer's timer; the timeline learns which phase it is in."""

    def __init__(self, device: torch.device, timeline: Timeline) -> None:
        super().__init__(device)
        self._timeline = timeline

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before = self._timeline.enter(phase)
        try:
            with super().__call__(phase):
                yield
        finally:
            self._timeline.enter(before)


@dataclass(frozen=True, kw_only=True)
class RehearsedModel(DistributedModel):
    """One rank's part of a model; before each evaluation what others would tell about the batch is delivered.

    told: the micro-batches; routed: of each one evaluated, what its plan gives this rank to compute (``routed_here``).
    """

    told: list[RehearsedMicroBatch]
    routed: list[dict[str, float]] = field(default_factory=list)

    def evaluate(
        self, batch: GraphBatch, *, create_graph: bool, phase: Phase | None = None,
        tokens: dict[str, Tensor] | None = None,
    ) -> Prediction:  # fmt: skip
        told = next(one for one in self.told if one.part.batch is batch)
        if told.ghosts is not None and isinstance(self.axes.graph, RehearsedAxis):
            self.axes.graph.deliver("all_to_all", told.ghosts)
        if told.composition is not None and isinstance(self.axes.expert, RehearsedAxis):
            self.axes.expert.deliver("all_gather", told.composition)
        prediction = super().evaluate(batch, create_graph=create_graph, phase=phase, tokens=tokens)
        self.routed.append(routed_here(self.model))
        return prediction


def routed_here(model: nn.Module) -> dict[str, float]:
    """Rows of the routed experts' products on this rank and experts called, mean over blocks, of the micro-batch that
    is planned: message_copies, message_experts, feature_copies, feature_experts; empty where experts are not spread.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for name, module in model.named_modules():
        exchange = getattr(module, "exchange", None)
        if isinstance(module, MixtureOfExperts) and exchange is not None and exchange.route is not None:
            loads = exchange.route.copies.loads
            kind = "message" if "message_update" in name else "feature"
            found.setdefault(kind, []).append((sum(loads), sum(load > 0 for load in loads)))
    return {
        f"{kind}_{what}": statistics.mean(row[column] for row in rows)
        for kind, rows in found.items()
        for column, what in enumerate(("copies", "experts"))
    }


def rehearsed_model(
    config: TrainConfig,
    layout: Layout,
    communicator: RehearsedCommunicator,
    axes: Axes,
    told: list[RehearsedMicroBatch],
) -> RehearsedModel:
    """The rank's part, with the initial weights of its seed; experts that live elsewhere are never in memory.

    What is outside blocks is kept whole besides where it is sharded, for its gathers to give true values: the gates'
    tables decide which experts are called.
    """
    whole_root: dict[str, Tensor] = {}

    def keep_root(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if not name.startswith("blocks.") or name.endswith(".gate.table"):
                whole_root[name] = parameter.detach().reshape(-1).clone()

    is_lean = layout.expert_degree > 1
    index = axes.expert.index
    strategy = config.parallel.expert_strategy
    around = LeanExperts(config.model, strategy, layout.expert_degree, index) if is_lean else nullcontext()
    with around:
        made = distribute(
            config, layout, communicator, axes=axes,  # type: ignore[arg-type]
            before_root=keep_root if layout.shard_degree > 1 else None,
        )  # fmt: skip
    root = next((unit for unit in made.sharded.units if unit.block is None), None)
    if root is not None:
        _tell_root(root, whole_root)
    return RehearsedModel(**{one.name: getattr(made, one.name) for one in fields(made)}, told=told)


def _tell_root(root: ShardedUnit, values: dict[str, Tensor]) -> None:
    """Every gather of the root gives its true values."""
    whole = torch.cat([values[member.name] for member in root.members])
    padded = whole.new_zeros(root.shard_numel * root.shard.size)
    padded[: len(whole)] = whole
    assert isinstance(root.shard, RehearsedAxis), root.shard
    root.shard.know_whole(root._flat, padded)


def choose_rank(job: RehearsalJob, rank: int | None) -> tuple[Shares, int]:
    """Who works on what in the step, and the rank to rehearse: as asked for, or the heaviest of the heaviest unit."""
    shares = Shares.of(job.work, job.batch, job.layout, job.config.batch.max_work)
    if rank is not None and not 0 <= rank < job.layout.world_size:
        raise UserError(
            f"--rank is {rank} but the layout has {job.layout.world_size} ranks: use 0 to {job.layout.world_size - 1}"
        )
    if rank is None:
        group = shares.heaviest_group()
        rank = shares.rank_of(group, heaviest_part(job.store, shares, job.config, group))
    return shares, rank


class Rehearsal:
    """A rank that is ready: ``prepare`` has built its micro-batches, ``run`` builds its model and takes the steps."""

    def __init__(self, job: RehearsalJob, shares: Shares, rank: int, device: torch.device) -> None:
        self.job, self.shares, self.rank, self.device = job, shares, rank, device
        self.timeline, self._before_bytes = Timeline(device), allocated_bytes(device)
        self.communicator = RehearsedCommunicator(rank, job.layout.world_size, device)
        self.axes = rehearsed_axes(job.layout, self.communicator, self.timeline)
        self.unit: RehearsedUnit = load_unit(job.store, shares, job.config, rank, self.axes, device)

    def run(self, tell: Tell = lambda sentence: None, advance: Callable[[int], None] = lambda done: None) -> Rehearsed:
        """Build, warm up, measure the steps, then the memory of one more. advance: steps done so far, all of them."""
        tell("building the rank's part of the model")
        begin = time.perf_counter()
        stepper = _Stepper(self)
        building_s = time.perf_counter() - begin
        measured = []
        for number in range(self.job.warm_up + self.job.steps):
            step = stepper.step()
            if number >= self.job.warm_up:
                measured.append(step)
            advance(number + 1)
        memory = self._memory(stepper) if self.job.measures_memory else {}
        advance(self.job.num_steps)
        counts = self.counts()
        for one, routed in zip(counts, stepper.model.routed, strict=True):
            one |= routed
        return Rehearsed(
            rank=self.rank, shares=self.shares, steps=measured, memory=memory, building_s=building_s,
            loading_s=self.unit.loading_s, micro_batches=counts,
        )  # fmt: skip

    def counts(self) -> list[dict[str, Any]]:
        """Rows of each micro-batch here, and of the whole."""
        return [_counts_of(one) for one in self.unit.micro_batches]

    def _memory(self, stepper: _Stepper) -> dict[str, int | None]:
        """One more step under observation. Allocated bytes are beside what was so before anything was built; what the
        rehearsal keeps for itself is taken off.
        """
        stepper.optimizer_zero()
        gc.collect()
        buffers = stepper.model.sharded.buffers
        buffers.reset_peak()
        with PeakMemory(self.device) as peak:
            stepper.step()
        own = sum(whole.nbytes for whole in _known_wholes(self.axes))
        allocated = None
        if peak.allocated_bytes is not None and self._before_bytes is not None:
            allocated = peak.allocated_bytes - self._before_bytes - own
        return {
            "step_peak_allocated_bytes": allocated,
            "step_peak_resident_bytes": peak.resident_bytes,
            "process_peak_bytes": peak_memory_bytes(self.device),
            "gathered_peak_bytes": buffers.peak_bytes,
            "kept_by_rehearsal_bytes": own,
            **stepper.kept_bytes(),
        }


class _Stepper:
    """The trainer's step on the rank's micro-batches, at a learning rate of zero."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        job = rehearsal.job
        self.job, self.device, self.timeline = job, rehearsal.device, rehearsal.timeline
        self.ledger = rehearsal.communicator.ledger
        self.on_host = [one.part for one in rehearsal.unit.micro_batches]
        self.told = list(rehearsal.unit.micro_batches)
        self.model = rehearsed_model(job.config, job.layout, rehearsal.communicator, rehearsal.axes, self.told)
        if job.reference_energies is not None:
            self.model.model.set_reference_energies(job.reference_energies)
        self.optimizer: torch.optim.Optimizer | None = None
        self.average: WeightAverage | None = None
        if job.with_optimizer:
            self.optimizer = build_optimizer(self.model.pieces, job.config.optimizer, self.model.sums.stages)
            set_learning_rate(self.optimizer, 0.0)
            decay = job.config.optimizer.ema_decay
            self.average = WeightAverage(leaves(self.model.pieces), decay) if decay > 0 else None

    def step(self) -> RehearsedStep:
        """One step, measured."""
        self.ledger.clear()
        self.model.routed.clear()
        timer = _Timer(self.device, self.timeline)
        begin, begin_cpu = timer.now(), time.process_time()
        self.timeline.begin()
        with timer("data"):
            parts = [part.to(self.device) for part in self.on_host]
        self.told[:] = [replace(one, part=part) for one, part in zip(self.told, parts, strict=True)]
        self.optimizer_zero()
        totals, _ = accumulate_gradients(self.model, parts, self.job.denominators, self.job.config.loss, timer)
        norm = self._update(timer)
        events = self.timeline.end()
        step_s = timer.now() - begin
        phase_s = dict.fromkeys([*PHASES, "outside"], 0.0)
        for event in events:
            phase_s[event["during"]] += event["compute_s"]
        return RehearsedStep(
            step_s=step_s, cpu_s=time.process_time() - begin_cpu, phase_s=phase_s,
            made_up_s=max(0.0, step_s - sum(phase_s.values())), loss=float(totals[0]),
            norm=norm, calls=[call.to_mapping() for call in self.timeline.calls], events=events,
            traffic=self.ledger.rows(),
        )  # fmt: skip

    def _update(self, timer: PhaseTimer) -> float:
        """As ``Trainer``; without an optimizer the gradients are still summed and their norm is taken."""
        clip_norm = self.job.config.optimizer.clip_norm
        optimizer = self.optimizer if self.optimizer is not None else _NoOptimizer()
        norm = update(self.model, optimizer, clip_norm, timer)  # type: ignore[arg-type]
        with timer("optimizer"):
            if self.average is not None:
                self.average.update(0)
        return norm

    def optimizer_zero(self) -> None:
        """Clear the gradients."""
        self.model.zero_gradients()

    def kept_bytes(self) -> dict[str, int]:
        """Of parameters, gradients, moments and averages on this rank, between steps."""
        kept = [piece.parameter for piece in self.model.pieces.values()]
        states = self.optimizer.state.values() if self.optimizer is not None else []
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        averages = list(self.average.tensors.values()) if self.average is not None else []
        return {
            "parameter_bytes": sum(one.nbytes for one in kept),
            "gradient_bytes": sum(one.grad.nbytes for one in kept if one.grad is not None),
            "optimizer_bytes": sum(value.nbytes for value in moments),
            "average_bytes": sum(value.nbytes for value in averages),
        }


class _NoOptimizer:
    """Stands for an optimizer that is left out."""

    param_groups: list[dict[str, Any]] = []  # noqa: RUF012

    def step(self) -> None:
        """Nothing."""


def _known_wholes(axes: Axes) -> list[Tensor]:
    return list(axes.shard.known_wholes()) if isinstance(axes.shard, RehearsedAxis) else []


def _counts_of(one: RehearsedMicroBatch) -> dict[str, Any]:
    """Rows of a micro-batch here, and of the whole."""
    batch = one.part.batch
    halo = batch.halo
    counts: dict[str, Any] = {
        "structures": batch.num_structures, "atoms": batch.num_atoms, "edges": batch.num_edges,
        "bonds": batch.num_bonds, "angles": batch.num_angles, "whole": one.whole,
    }  # fmt: skip
    if isinstance(halo, Halo):
        counts |= {
            "boundary": len(halo.boundary), "ghosts": halo.num_ghosts, "shared_pairs": len(halo.shared_pairs),
            "shared_bonded_pairs": len(halo.shared_bonded_pairs),
        }  # fmt: skip
    return counts
