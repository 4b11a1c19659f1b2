"""Measures training steps of many layouts on the ranks of one launch: what ``janus.train.loop`` does in a step, layout
after layout, in rounds, so that what disturbs the machine meets all of them.

A visit to a layout is a warm-up step and some timed ones, with the loader's thread working on the steps to come, as in
a run. All layouts see the same global batches in the same rounds. The learning rate is next to nothing, so that all
rounds see the initial gates of experts and every layout must reach the same loss. It does not own the cases
(``prediction_cases.py``) nor what the times are held against (``prediction_judge.py``).
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from prediction_cases import BATCH, CAP_SHARES, SETS, Case
from rank_jobs import progress

from janus.config import ModelConfig
from janus.data.store import StructureStore
from janus.parallel.communication import Communicator, connect
from janus.parallel.fs3d import Axes, distribute
from janus.parallel.pieces import leaves
from janus.train.config import BatchConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from janus.train.ema import WeightAverage
from janus.train.loader import BatchLoader, Prefetcher, StepBatches
from janus.train.loss import denominators_of
from janus.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from janus.train.sampler import Sampler
from janus.train.step import accumulate_gradients, sum_totals, update
from janus.train.timing import PhaseTimer

NEXT_TO_NOTHING = 1e-12
LOSS_TOLERANCE = 1e-3  # float32, sums in another order
WARM_UP_STEPS = 1
STEPS_AHEAD = 2  # the loader's: one in its queue, one in its hands


def open_data(path: Path, model: ModelConfig) -> StructureStore:
    """The store with the counts at the model's cutoffs."""
    store = StructureStore.open(path)
    cutoffs = (model.cutoff_angstrom, model.line_cutoff_angstrom)
    return store if (store.cutoff_angstrom, store.line_cutoff_angstrom) == cutoffs else store.recount(*cutoffs)


def config_of(case: Case, model: ModelConfig, store: StructureStore, seed: int = 0) -> TrainConfig:
    """The settings of a run in this layout."""
    cap = int(BATCH * float(store.work.mean()) / CAP_SHARES) + 1 if case.capped else None
    return TrainConfig(
        model=model, batch=BatchConfig(structures=BATCH, max_work=cap),
        run=RunConfig(dtype="float32", seed=seed, recompute=case.recompute, threads=1),
        optimizer=OptimizerConfig(learning_rate=NEXT_TO_NOTHING),
        parallel=ParallelConfig(transport=case.transport, **case.parallel),
    )  # fmt: skip


class LayoutSteps:
    """One model in one layout on this rank, with optimizer, average, sampler and loader, as ``loop.Trainer``."""

    def __init__(self, config: TrainConfig, store: StructureStore, communicator: Communicator, axes: Axes) -> None:
        self.config, self.store, self.communicator = config, store, communicator
        self.layout = config.parallel.layout(communicator.world_size)
        self.distributed = distribute(config, self.layout, communicator, axes=axes)
        self.distributed.model.set_reference_energies(torch.as_tensor(store.reference_energies))
        pieces = self.distributed.pieces
        self.optimizer = build_optimizer(pieces, config.optimizer, self.distributed.sums.stages)
        self.average = WeightAverage(leaves(pieces), config.optimizer.ema_decay)
        self.sampler = Sampler(store.work, range(len(store)), config.batch.structures, config.run.seed)
        self.loader = BatchLoader(
            store, cutoff_angstrom=config.model.cutoff_angstrom,
            line_cutoff_angstrom=config.model.line_cutoff_angstrom, dtype=getattr(torch, config.run.dtype),
            device=communicator.device, graph=axes.graph,
        )  # fmt: skip

    def visit(self, first_step: int, num_steps: int) -> list[dict[str, Any]]:
        """Take steps; what every rank recorded of each, equal on all ranks."""
        steps = range(first_step, first_step + num_steps + STEPS_AHEAD)
        prefetcher = Prefetcher(self.loader, self._share, steps)
        try:
            return [self._step_and_record(step, prefetcher) for step in steps[:num_steps]]
        finally:
            prefetcher.close()

    def _share(self, step: int) -> list[list[int]]:
        return self.sampler.share(step, self.layout, self.communicator.rank, self.config.batch.max_work)

    def _step_and_record(self, step: int, prefetcher: Prefetcher) -> dict[str, Any]:
        """As ``loop.Trainer._step_and_record``, and processor seconds."""
        timer = PhaseTimer(self.communicator.device)
        rate = learning_rate(step, 100, self.config.optimizer.learning_rate, self.config.schedule)
        start, start_cpu = timer.now(), time.process_time()
        self.communicator.ledger.clear()
        micro_batches = prefetcher.step(timer)
        loss, wait_s = self._step(step, rate, micro_batches, timer)
        step_s, cpu_s = timer.now() - start, time.process_time() - start_cpu
        counts = micro_batches.counts
        ranks = self.communicator.gather_objects({
            "phase_s": timer.phase_s, "wait_s": wait_s, "step_s": step_s, "cpu_s": cpu_s, **counts,
        })  # fmt: skip
        return {
            "step": step, "loss": loss, "step_s": max(rank["step_s"] for rank in ranks),
            "phase_s": {name: [rank["phase_s"][name] for rank in ranks] for name in timer.phase_s},
            "rank_s": [rank["step_s"] for rank in ranks], "wait_s": [rank["wait_s"] for rank in ranks],
            "cpu_s": statistics.mean(rank["cpu_s"] for rank in ranks),
            "counts": [{name: rank[name] for name in counts} for rank in ranks],
        }  # fmt: skip

    def _step(self, step: int, rate: float, micro_batches: StepBatches, timer: PhaseTimer) -> tuple[float, float]:
        """As ``loop.Trainer._step``: (loss, seconds that this rank waited for slower ones)."""
        denominators = denominators_of(self.store, self.sampler.batch(step))
        self.optimizer.zero_grad(set_to_none=True)
        parts, _ = accumulate_gradients(self.distributed, micro_batches, denominators, self.config.loss, timer)
        with timer("sync"):
            totals = sum_totals(self.communicator, parts, 0)
        set_learning_rate(self.optimizer, rate)
        update(self.distributed, self.optimizer, self.config.optimizer.clip_norm, timer)
        with timer("optimizer"):
            self.average.update(step)
        return totals.loss, totals.wait_s


def measure_rounds(job: Mapping[str, Any], communicator: Communicator) -> None:
    """All rounds of a job that are not on file yet; rank 0 appends a line for each.

    job: set (name), raw (file), stores {data set: path}, steps (timed per visit), mpi (whether it is needed), work
    [{model, data, rounds [numbers], cases}].
    """
    axes: dict[tuple, Axes] = {}
    case_set = SETS[job["set"]]
    for chosen in job["work"]:
        model = case_set.models[chosen["model"]]
        store = open_data(Path(job["stores"][chosen["data"]]), model)
        configs = {case.key: config_of(case, model, store, case_set.seed)
                   for case in (Case(**values) for values in chosen["cases"])}  # fmt: skip
        steps = {key: _layout_steps(config, store, communicator, axes) for key, config in configs.items()}
        gc.collect()
        gc.freeze()  # a run has one model: the collector must not look through those of all layouts in every step
        for number in chosen["rounds"]:
            begin = time.perf_counter()
            count = WARM_UP_STEPS + job["steps"]
            rows = {key: one.visit(number * count, count)[WARM_UP_STEPS:] for key, one in steps.items()}
            require_equal_losses(rows)
            line = {"kind": "round", "ranks": communicator.world_size, "model": chosen["model"],
                    "data": chosen["data"], "round": number, "cases": rounded(rows)}  # fmt: skip
            if communicator.rank == 0:
                with Path(job["raw"]).open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                progress(
                    f"{communicator.world_size} ranks, {chosen['model']}, {chosen['data']}: round {number + 1}, "
                    f"{len(rows)} layouts in {time.perf_counter() - begin:.1f} s"
                )


def _layout_steps(
    config: TrainConfig, store: StructureStore, communicator: Communicator, axes: dict[tuple, Axes]
) -> LayoutSteps:
    key = (config.parallel.layout(communicator.world_size), config.parallel.transport)
    if key not in axes:
        transport = config.parallel.transport if communicator.world_size > 1 else None
        axes[key] = Axes.of(key[0], communicator, transport=transport)
    return LayoutSteps(config, store, communicator, axes[key])


def require_equal_losses(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """End the job where a layout computed something else than the first one did."""
    first, reference = next(iter(rows.items()))
    for key, steps in rows.items():
        for step, expected in zip(steps, reference, strict=True):
            if not abs(step["loss"] - expected["loss"]) <= LOSS_TOLERANCE * abs(expected["loss"]):
                sys.exit(f"prediction: the loss of {key} is {step['loss']}, that of {first} {expected['loss']}")


def rounded(value: Any) -> Any:
    """Seconds to the microsecond, so that lines stay short."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def run_on_ranks(job: Mapping[str, Any]) -> None:
    """What each rank does."""
    torch.set_num_threads(1)
    communicator = connect(device="cpu", transport="mpi" if job["mpi"] else "gloo", timeout_s=600)
    measure_rounds(job, communicator)
    communicator.leave(0)
