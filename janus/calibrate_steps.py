"""Short steps of small models by the trainer's own way: distribute, gradients, their sums, the update, the loader.

It owns which models, structures and layouts are stepped, and in which order; the constants are fitted to them by
``perfmodel.calibration_steps``. No model here is a preset, so that no preset is ever judged on steps that its constants
were fitted to. Widths are multiples of 16 (one vector register of float32), as presets' are; a model has two blocks or
more, because the first and the last do less than the others.

Cases come round after round, so that a burst of other work on the host does not fall on one of them alone. In each
round a case takes a step that is not recorded and then one per batch, of different sizes: memory is then as warm as in
a run whose batches differ.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ase.build import bulk

from janus.calibrate_clock import Clock
from janus.config import ExpertConfig, ModelConfig, to_mapping
from janus.data.structure import Structure
from janus.parallel.communication import Communicator
from janus.parallel.fs3d import distribute
from janus.parallel.pieces import leaves
from janus.train.config import BatchConfig, ParallelConfig, RunConfig, TrainConfig
from janus.train.ema import WeightAverage
from janus.train.loader import BatchLoader, MicroBatch, Prefetcher
from janus.train.loss import denominators_of_labels
from janus.train.optimizer import build_optimizer, set_learning_rate
from janus.train.step import accumulate_gradients, sum_totals, update
from janus.train.timing import PhaseTimer

Crystal = tuple[str, tuple[int, int, int]]
SALT, METAL, SILICON = "NaCl", "Cu", "Si"
RATTLE_ANGSTROM = 0.05
COMPUTE_PHASES = ("FE", "FF", "BF_BE")
ROUNDS = 3
CROWDED_ROUNDS = 2

_WIDE_CUTOFFS = {"cutoff_angstrom": 5.0, "line_cutoff_angstrom": 3.4}
_SHORT_CUTOFFS = {"cutoff_angstrom": 4.5, "line_cutoff_angstrom": 3.1}
_FEW_EXPERTS = ExpertConfig(num_experts=4, top_k=1, message_hidden=96, feature_hidden=96)
_EXPERTS = ExpertConfig(num_experts=6, top_k=2, message_hidden=80, feature_hidden=48)
_MANY_EXPERTS = ExpertConfig(num_experts=10, top_k=2, message_hidden=64, feature_hidden=32)
_WIDE_EXPERTS = ExpertConfig(num_experts=4, top_k=2, message_hidden=192, feature_hidden=64)


def _matris(num_blocks: int, width: int, *, wide: bool = False) -> ModelConfig:
    return ModelConfig(num_blocks=num_blocks, width=width, **(_WIDE_CUTOFFS if wide else _SHORT_CUTOFFS))


def _moe(num_blocks: int, width: int, experts: ExpertConfig, *, wide: bool = False) -> ModelConfig:
    return ModelConfig(
        family="matris-moe", num_blocks=num_blocks, width=width, num_heads=4, angle_width=32, experts=experts,
        **(_WIDE_CUTOFFS if wide else _SHORT_CUTOFFS),
    )  # fmt: skip


SMALL: tuple[Crystal, ...] = ((SALT, (1, 1, 1)),)
MIXED: tuple[Crystal, ...] = ((SALT, (2, 1, 1)), (METAL, (1, 1, 1)), (SILICON, (1, 1, 1)))
MIDDLE: tuple[Crystal, ...] = ((SALT, (2, 2, 1)), (SALT, (2, 1, 1)), (METAL, (2, 1, 1)))
LARGE: tuple[Crystal, ...] = ((SALT, (4, 3, 2)),)  # 192 atoms
DENSE: tuple[Crystal, ...] = ((METAL, (3, 2, 2)), (SALT, (1, 1, 1)))


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """A model, the structures of each of its batches, and whether it only judges the fit.

    parallel: settings of ``[parallel]`` beside the default; such a case is measured, never fitted.
    """

    model: ModelConfig
    batches: tuple[tuple[Crystal, ...], ...]
    recompute: bool = False
    held_out: bool = False
    parallel: dict[str, Any] = field(default_factory=dict)


STEP_CASES = (
    StepCase(model=_matris(2, 16), batches=(LARGE, SMALL)),
    StepCase(model=_matris(6, 16), batches=(MIXED, SMALL)),
    StepCase(model=_matris(4, 32), batches=(MIXED, SMALL)),
    StepCase(model=_matris(2, 48, wide=True), batches=(DENSE, MIXED)),
    StepCase(model=_matris(2, 48), batches=(MIXED, SMALL), recompute=True),
    StepCase(model=_matris(2, 80), batches=(MIDDLE, SMALL)),
    StepCase(model=_matris(2, 112), batches=(MIXED, SMALL)),
    StepCase(model=_moe(2, 48, _EXPERTS, wide=True), batches=(DENSE, SMALL)),
    StepCase(model=_moe(4, 32, _MANY_EXPERTS), batches=(MIXED, SMALL)),
    StepCase(model=_moe(3, 32, _FEW_EXPERTS), batches=(LARGE, MIDDLE)),
    StepCase(model=_moe(2, 48, _EXPERTS), batches=(MIDDLE, MIXED), recompute=True),
    StepCase(model=_moe(2, 80, _FEW_EXPERTS), batches=(MIDDLE, SMALL)),
    StepCase(model=_moe(2, 112, _WIDE_EXPERTS), batches=(MIXED, SMALL)),
    StepCase(model=_matris(2, 64, wide=True), batches=(MIDDLE, MIXED), held_out=True),
    StepCase(model=_matris(3, 96), batches=(SMALL,), held_out=True),
    StepCase(model=_matris(3, 32), batches=(MIDDLE, MIXED), held_out=True),
    StepCase(model=_matris(3, 32), batches=(MIXED,), recompute=True, held_out=True),
    StepCase(model=_moe(2, 64, _EXPERTS, wide=True), batches=(MIDDLE, SMALL), held_out=True),
    StepCase(model=_moe(3, 48, _FEW_EXPERTS), batches=(DENSE, MIXED), held_out=True),
)
_LEFT_OUT = (3, 7, 14, 15)  # of a quick calibration: places in STEP_CASES
QUICK_CASES = tuple(case for place, case in enumerate(STEP_CASES) if place not in _LEFT_OUT)
CROWDED_CASES = tuple(STEP_CASES[place] for place in (0, 2, 6, 8, 12, 13, 17))


def crystal(kind: str, repeats: tuple[int, int, int], seed: int) -> Structure:
    """A rattled crystal with labels of about the right size: only costs are measured."""
    cell = bulk(kind, "rocksalt", a=5.0, cubic=True) if kind == SALT else bulk(kind, cubic=True)
    atoms = cell.repeat(repeats)
    generator = np.random.default_rng(seed)
    atoms.positions += generator.normal(0.0, RATTLE_ANGSTROM, atoms.positions.shape)
    stress = generator.normal(0.0, 0.01, (3, 3))
    return Structure(
        numbers=atoms.numbers.astype(np.int32), positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc,
        energy=float(generator.normal()), forces=generator.normal(0.0, 0.5, atoms.positions.shape),
        stress=(stress + stress.T) / 2,
    )  # fmt: skip


class CountingTimer(PhaseTimer):
    """Counts the new memory pages of each phase too: the system hands them out at a cost of their own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.faults = dict.fromkeys(self.phase_s, 0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before = _faults()
        with super().__call__(phase):
            yield
        self.faults[phase] += _faults() - before


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Stepper:
    """One case, ready to step: what ``Trainer`` holds of it, and this rank's batches."""

    def __init__(self, case: StepCase, communicator: Communicator) -> None:
        self.case, self.communicator = case, communicator
        self.config = TrainConfig(
            model=case.model, batch=BatchConfig(structures=communicator.world_size, max_work=None),
            run=RunConfig(recompute=case.recompute), parallel=ParallelConfig(**case.parallel),
        )  # fmt: skip
        self.distributed = distribute(self.config, self.config.parallel.layout(communicator.world_size), communicator)
        pieces, sums = self.distributed.pieces, self.distributed.sums
        self.optimizer = build_optimizer(pieces, self.config.optimizer, sums.stages)
        self.average = WeightAverage(leaves(pieces), self.config.optimizer.ema_decay)
        self.structures, self.indices = self._structures()
        self.loader = BatchLoader(
            self.structures, cutoff_angstrom=case.model.cutoff_angstrom,
            line_cutoff_angstrom=case.model.line_cutoff_angstrom, dtype=torch.float32, device=communicator.device,
            graph=self.distributed.axes.graph,
        )  # fmt: skip
        self.batches = [self.loader.load_micro_batch(indices) for indices in self.indices]
        self.denominators = [denominators_of_labels(batch.labels) for batch in self.batches]

    def _structures(self) -> tuple[list[Structure], list[list[int]]]:
        structures: list[Structure] = []
        indices = []
        for batch in self.case.batches:
            indices.append(list(range(len(structures), len(structures) + len(batch))))
            for number, (kind, repeats) in enumerate(batch):
                structures.append(crystal(kind, repeats, number))  # the same on all ranks: equal work
        return structures, indices

    def step(self, number: int, prefetcher: Prefetcher | None = None) -> dict[str, Any]:
        """One step on the batch of that number: {"step_s", "phase_s", "faults"}."""
        self.communicator.barrier()
        timer = CountingTimer(self.communicator.device)
        start = timer.now()
        self.communicator.ledger.clear()
        if prefetcher is None:
            with timer("data"):
                micro_batches: Collection[MicroBatch] = [self.batches[number].to(self.communicator.device)]
        else:
            micro_batches = prefetcher.step(timer)
        self.optimizer.zero_grad(set_to_none=True)
        totals, _ = accumulate_gradients(
            self.distributed, micro_batches, self.denominators[number], self.config.loss, timer
        )
        with timer("sync"):
            sum_totals(self.communicator, totals, 0)
        set_learning_rate(self.optimizer, 1e-6)
        update(self.distributed, self.optimizer, self.config.optimizer.clip_norm, timer)
        with timer("optimizer"):
            self.average.update(1000)
        return {"step_s": timer.now() - start, "phase_s": timer.phase_s, "faults": timer.faults}


def measure_steps(clock: Clock, cases: Sequence[StepCase] = STEP_CASES, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Steps of every case and batch: model, counts, and per phase the seconds and new pages of every repeat."""
    steppers = [Stepper(case, clock.communicator) for case in cases]
    results: list[list[list[dict[str, Any]]]] = [[[] for _ in stepper.batches] for stepper in steppers]
    for _ in range(rounds):
        for stepper, found in zip(steppers, results, strict=True):
            stepper.step(0)  # the largest: memory as it is in the middle of a run
            for number in range(len(stepper.batches)):
                found[number].append(stepper.step(number))
    everyones = clock.communicator.gather_objects(results)
    return [
        _step_sample(stepper, batch, [ranks[place][number] for ranks in everyones])
        for place, stepper in enumerate(steppers)
        for number, batch in enumerate(stepper.batches)
    ]


def _over_ranks(ranks: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every repeat as the trainer records it: phases are means over ranks, the step is the slowest rank's.

    slowest_s: what the rank that computed longest took for FE, FF, BF and BE; the others wait for it.
    """
    steps = []
    for repeat in zip(*ranks, strict=True):
        steps.append({
            "step_s": max(step["step_s"] for step in repeat),
            "slowest_s": max(sum(step["phase_s"][phase] for phase in COMPUTE_PHASES) for step in repeat),
            **{name: {phase: sum(step[name][phase] for step in repeat) / len(repeat) for phase in repeat[0][name]}
               for name in ("phase_s", "faults")},
        })  # fmt: skip
    return steps


def _step_sample(stepper: Stepper, micro_batch: MicroBatch, ranks: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """ranks: what every rank has of every repeat."""
    found = _over_ranks(ranks)
    case, batch = stepper.case, micro_batch.batch
    counts = {
        "structures": batch.num_structures, "atoms": batch.num_atoms, "edges": batch.num_edges,
        "bonds": batch.num_bonds, "angles": batch.num_angles,
    }  # fmt: skip
    pieces = [piece.parameter for piece in stepper.distributed.pieces.values()]
    phases = list(found[0]["phase_s"])
    return {
        "model": to_mapping(case.model), "counts": counts, "recompute": case.recompute, "held_out": case.held_out,
        "parallel": case.parallel, "tensors": len(pieces), "numel": sum(piece.numel() for piece in pieces),
        "seconds": {phase: [step["phase_s"][phase] for step in found] for phase in phases},
        "faults": {phase: [step["faults"][phase] for step in found] for phase in phases},
        "step_seconds": [step["step_s"] for step in found],
        "slowest_seconds": [step["slowest_s"] for step in found],
    }  # fmt: skip


def measure_loading(clock: Clock) -> list[dict[str, Any]]:
    """Graphs and batches from structures in memory: {"structures", "edges", "angles", "seconds"}."""
    samples = []
    for cutoff, line_cutoff in ((5.0, 3.0), (5.0, 4.0), (3.5, 3.0)):
        for batch in (SMALL * 4, MIDDLE, LARGE):
            structures = [crystal(kind, repeats, seed) for seed, (kind, repeats) in enumerate(batch)]
            loader = BatchLoader(
                structures, cutoff_angstrom=cutoff, line_cutoff_angstrom=line_cutoff, dtype=torch.float32,
                device=clock.device,
            )  # fmt: skip
            every = list(range(len(structures)))
            made = loader.load_micro_batch(every).batch
            seconds = clock.times(lambda part=loader, all_=every: part.load_micro_batch(all_), budget_s=0.04)
            samples.append({
                "structures": len(structures), "edges": made.num_edges, "angles": made.num_angles, "seconds": seconds,
            })  # fmt: skip
    return samples


def measure_prefetching(clock: Clock, repeats: int = 10) -> list[dict[str, Any]]:
    """Steps with and without the loader's thread at work: {"load_s", "with_s", "without_s"} of repeats."""
    case = StepCase(model=_matris(2, 16), batches=(MIDDLE * 3,))
    stepper = Stepper(case, clock.communicator)
    sample: dict[str, Any] = {"load_s": clock.times(lambda: stepper.loader.load(stepper.indices)), "with_s": [],
                              "without_s": []}  # fmt: skip
    prefetcher = Prefetcher(stepper.loader, lambda _: stepper.indices, range(10**9))
    try:
        stepper.step(0, prefetcher)
        for _ in range(repeats):
            sample["with_s"].append(stepper.step(0, prefetcher)["step_s"])
            time.sleep(2 * max(sample["load_s"]))  # the thread has made the next batch and waits
            sample["without_s"].append(stepper.step(0)["step_s"])
    finally:
        prefetcher.close()
    return [sample]
