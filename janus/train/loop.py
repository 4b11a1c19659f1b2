"""The training loop: steps, their records, checkpoints, validation, interrupts. All ranks run it in lockstep.

What a step does is in ``step.py``; how a run is set up and described is in ``session.py``.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from janus.parallel.communication import Communicator
from janus.parallel.fs3d import DistributedModel
from janus.parallel.job import RunFailedError
from janus.parallel.pieces import leaves
from janus.train.checkpoint import Checkpoint
from janus.train.checkpoint_save import PendingSave, save_checkpoint
from janus.train.config import TrainConfig
from janus.train.dataset import Subset
from janus.train.ema import WeightAverage
from janus.train.evaluate import evaluate_structures
from janus.train.failure import find_offenders, non_finite_sentence
from janus.train.interrupt import InterruptFlag
from janus.train.loader import BatchLoader, Prefetcher, StepBatches
from janus.train.loss import denominators_of
from janus.train.optimizer import (
    build_optimizer,
    learning_rate,
    set_learning_rate,
)
from janus.train.progress import ProgressLine
from janus.train.runfolder import RunFolder
from janus.train.sampler import Sampler
from janus.train.state import state_of, take_over
from janus.train.step import (
    StepTotals,
    accumulate_gradients,
    add_tokens,
    sum_totals,
    update,
)
from janus.train.steplog import StepLog, final_numbers
from janus.train.timing import PhaseTimer


@dataclass(kw_only=True)
class RunOutcome:
    """How a run went. exit_code: 0, or that of the signal that ended it. final: last step's numbers.

    loop_s: from the first step to the end of the last, with validations and checkpoints between steps; what follows
    the last step (last validation, last checkpoint) is not in it.
    """

    exit_code: int = 0
    steps_done: int = 0
    loop_s: float = 0.0
    final: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] | None = None


class Trainer:
    """State of a run on this rank: model, optimizer, average, sampler. ``steps_done`` is all of the sampler's state."""

    def __init__(
        self, config: TrainConfig, communicator: Communicator, distributed: DistributedModel,
        training: Subset, validation: Subset | None, folder: RunFolder,
    ) -> None:  # fmt: skip
        self.config, self.communicator, self.distributed = config, communicator, distributed
        self.training, self.validation, self.folder = training, validation, folder
        self.pieces = distributed.pieces
        self.optimizer = build_optimizer(self.pieces, config.optimizer, distributed.sums.stages)
        decay = config.optimizer.ema_decay
        self.average = WeightAverage(leaves(self.pieces), decay) if decay > 0 else None
        self.sampler = Sampler(training.store.work, training.indices, config.batch.structures, config.run.seed)
        self.num_steps = config.run.num_steps(len(training.indices), config.batch.structures)
        self.loader, self.validation_loader = (self._loader_of(part) for part in (training, validation))
        self.steps_done, self.best_score, self.saved_step = 0, math.inf, -1
        self.pending_save: PendingSave | None = None
        self.sent_last_step: list[dict[str, str | int]] = []

    def _loader_of(self, subset: Subset | None) -> BatchLoader | None:
        if subset is None:
            return None
        return BatchLoader(
            subset.store,
            cutoff_angstrom=self.config.model.cutoff_angstrom,
            line_cutoff_angstrom=self.config.model.line_cutoff_angstrom,
            dtype=getattr(torch, self.config.run.dtype),
            device=self.communicator.device,
            graph=self.distributed.axes.graph,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint of any layout: weights, average, optimizer, generator, position."""
        take_over(checkpoint, self.pieces, self.distributed.constants(), self.optimizer, self.average)
        self.steps_done = self.saved_step = checkpoint.step
        self.best_score = checkpoint.facts["best_score"] if checkpoint.facts["best_score"] is not None else math.inf

    def save(self, *, best: bool = False, background: bool = True) -> None:
        """Begin to write a checkpoint of the state as it is; all ranks call it. background False: until it is there.

        Raises RunFailedError on all ranks if this one, or the one still under way, cannot be written.
        """
        if self.saved_step < self.steps_done:
            self.wait_for_save()
            parts, whole = state_of(self.pieces, self.distributed.constants(), self.optimizer, self.average)
            self.pending_save = save_checkpoint(
                self.folder.checkpoints, step=self.steps_done, config=self.config, facts=self._facts(),
                pieces=self.pieces, parts=parts, whole=whole, communicator=self.communicator, background=True,
                keep=self.config.run.keep, best=best,
            )  # fmt: skip
            self.saved_step = self.steps_done
        if not background:
            self.wait_for_save()

    def wait_for_save(self) -> None:
        """Until the checkpoint under way, if any, is complete. Raises RunFailedError on all ranks if it cannot be."""
        pending, self.pending_save = self.pending_save, None
        if pending is not None:
            pending.wait()

    def _facts(self) -> dict[str, Any]:
        return {
            "data_fingerprint": self.training.store.fingerprint,
            "num_steps": self.num_steps,
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
            "layout": self.distributed.layout.to_mapping(),
        }

    def run(self, log: StepLog | None, progress: ProgressLine, flag: InterruptFlag, stop_step: int) -> RunOutcome:
        """Train up to ``stop_step`` steps in total. log: on rank 0 only. Raises RunFailedError on all ranks."""
        outcome = RunOutcome(steps_done=self.steps_done)
        start = time.monotonic()
        prefetcher = Prefetcher(self.loader, self._share_of_step, range(self.steps_done, stop_step))
        try:
            while self.steps_done < stop_step and outcome.exit_code == 0:
                outcome.exit_code = self._step_and_record(prefetcher, log, progress, flag, outcome)
                self._validate_and_save(log, outcome, progress)
            outcome.loop_s = time.monotonic() - start
        finally:
            prefetcher.close()
        if outcome.exit_code == 0 and self.validation is not None and outcome.validation is None:
            outcome.validation = self._validate()
        self.save(background=False)
        return outcome

    def _share_of_step(self, step: int) -> list[list[int]]:
        return self.sampler.share(step, self.distributed.layout, self.communicator.rank, self.config.batch.max_work)

    def _step_and_record(
        self, prefetcher: Prefetcher, log: StepLog | None, progress: ProgressLine,
        flag: InterruptFlag, outcome: RunOutcome,
    ) -> int:  # fmt: skip
        """One step and its line in the log; returns the exit code that a signal asks for, or 0."""
        step, timer = self.steps_done, PhaseTimer(self.communicator.device)
        rate = learning_rate(step, self.num_steps, self.config.optimizer.learning_rate, self.config.schedule)
        start = timer.now()
        self.communicator.ledger.clear()
        micro_batches = prefetcher.step(timer)
        totals, norm, tokens = self._step(step, rate, micro_batches, timer, flag)
        step_s = timer.now() - start
        mine = {
            "rank": self.communicator.rank, **micro_batches.counts,
            "phase_s": timer.phase_s, "wait_s": totals.wait_s, "step_s": step_s,
            "tokens": tokens,
        }  # fmt: skip
        ranks = self.communicator.gather_objects(mine)
        self.sent_last_step = self.communicator.ledger.rows()
        self.steps_done = outcome.steps_done = step + 1
        line = self._line(step, rate, totals, norm, ranks)
        outcome.final = final_numbers(line)
        if log is not None:
            log.append(line)
        progress.advance(self.steps_done, _note(line, sum(rank["atoms"] for rank in ranks)))
        return totals.exit_code

    def _step(
        self, step: int, rate: float, micro_batches: StepBatches, timer: PhaseTimer, flag: InterruptFlag
    ) -> tuple[StepTotals, float, dict[str, list[int]]]:
        """Gradients, their sum over ranks, the update. Returns the totals, the gradient norm and tokens per expert."""
        denominators = denominators_of(self.training.store, self.sampler.batch(step))
        self.optimizer.zero_grad(set_to_none=True)
        parts, tokens = accumulate_gradients(self.distributed, micro_batches, denominators, self.config.loss, timer)
        with timer("sync"):
            totals = sum_totals(self.communicator, parts, flag.requested)
        if not math.isfinite(totals.loss):
            self._stop_for_non_finite(step, "the loss", weights_intact=True)
        set_learning_rate(self.optimizer, rate)
        clip_norm = self.config.optimizer.clip_norm
        norm = update(self.distributed, self.optimizer, clip_norm, timer)
        if not math.isfinite(norm):
            self._stop_for_non_finite(step, "the gradient", weights_intact=clip_norm is not None)
        with timer("optimizer"):
            if self.average is not None:
                self.average.update(step)
        return totals, norm, tokens

    def _stop_for_non_finite(self, step: int, what: str, *, weights_intact: bool) -> None:
        """Name the structures to blame, on all ranks alike, and stop. weights_intact: they are not updated yet."""
        self.wait_for_save()
        offenders = None
        if weights_intact:
            self.distributed.finish_gradients()  # sums that were under way
            one_by_one = self.sampler.share(step, self.distributed.layout, self.communicator.rank, max_work=1)
            mine = find_offenders(self.distributed, self.training.store, self.loader, one_by_one, self.config.loss)
            offenders = _without_bystanders(self.communicator.gather_objects(mine))
        kept = f"step {self.saved_step}" if self.saved_step >= 0 else None
        raise RunFailedError(non_finite_sentence(step, what, offenders, kept))

    def _line(self, step: int, rate: float, totals: StepTotals, norm: float, ranks: list[dict]) -> dict[str, Any]:
        """One line of steps.jsonl; step_s is the slowest rank's."""
        tokens = add_tokens([rank.pop("tokens") for rank in ranks])
        line = {
            "step": step, "epoch": self.sampler.epoch_of(step), "loss": totals.loss,
            "energy_mae_ev_per_atom": totals.energy_mae,
            "forces_mae_ev_per_angstrom": totals.forces_mae,
            "stress_mae_ev_per_cubic_angstrom": totals.stress_mae,
            "learning_rate": rate, "gradient_norm": norm,
            "step_s": max(rank["step_s"] for rank in ranks), "ranks": ranks,
        }  # fmt: skip
        return line | ({"tokens_per_expert": tokens} if tokens else {})

    def _validate_and_save(self, log: StepLog | None, outcome: RunOutcome, progress: ProgressLine) -> None:
        run = self.config.run
        improved = False
        outcome.validation = None
        if run.validate_every and self.steps_done % run.validate_every == 0:
            outcome.validation = self._validate()
            score = self._score(outcome.validation)
            improved = score < self.best_score
            self.best_score = min(score, self.best_score)
            progress.say(f"validation after {self.steps_done} steps: {describe_errors(outcome.validation)}")
        if improved or outcome.exit_code or (run.checkpoint_every and self.steps_done % run.checkpoint_every == 0):
            if log is not None:
                log.sync()
            self.save(best=improved)

    def _validate(self) -> dict[str, Any]:
        """Errors on the validation structures, with the averaged weights where there are any."""
        assert self.validation is not None
        with self.average.applied() if self.average is not None else nullcontext():
            with self.distributed.step(training=False):
                totals = evaluate_structures(
                    partial(self.distributed.evaluate, create_graph=False),
                    self.validation.store, self.validation.indices.tolist(), self.validation_loader,
                    self.communicator, self.distributed.layout, max_work=self.config.batch.max_work,
                )  # fmt: skip
        return {name: {key: row[key] for key in ("unit", "mae", "rmse", "count")}
                for name, row in totals.document().items()}  # fmt: skip

    def _score(self, validation: dict[str, Any]) -> float:
        """What "best" means: the MAEs weighted as in the loss."""
        loss = self.config.loss
        return sum(getattr(loss, name) * (validation[name]["mae"] or 0.0) for name in ("energy", "forces", "stress"))


def _without_bystanders(found: list[list[str]]) -> list[str]:
    """Each structure once, of all ranks, by index; gradients alone are not blamed where something worse is."""
    names = sorted({name for rank in found for name in rank}, key=lambda name: int(name.split()[0]))
    worse = [name for name in names if not name.endswith("(gradient)")]
    return worse or names


def describe_errors(errors: dict[str, Any]) -> str:
    """MAEs of an evaluation in a few words."""
    parts = []
    if errors["energy"]["mae"] is not None:
        parts.append(f"energy {1e3 * errors['energy']['mae']:.1f} meV/atom")
    if errors["forces"]["mae"] is not None:
        parts.append(f"forces {errors['forces']['mae']:.4f} eV/A")
    if errors["stress"]["mae"] is not None:
        parts.append(f"stress {1e3 * errors['stress']['mae']:.2f} meV/A^3")
    return ", ".join(parts)


def _note(line: dict[str, Any], num_atoms: int) -> str:
    return (
        f"loss {line['loss']:.4f}  energy {1e3 * line['energy_mae_ev_per_atom']:.1f} meV/atom  "
        f"forces {line['forces_mae_ev_per_angstrom']:.3f} eV/A  {num_atoms / line['step_s']:.0f} atoms/s"
    )
