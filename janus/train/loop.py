"""The training loop: steps, their records, checkpoints, validation, interrupts. All ranks run it in lockstep.

What a step does is in ``step.py``; how a run is set up and described is in ``session.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from janus.parallel.communication import Communicator
from janus.parallel.gradients import GradientBuckets
from janus.parallel.job import RunFailedError
from janus.train.checkpoint import Checkpoint, point_to_best, prune_checkpoints, save_checkpoint
from janus.train.config import TrainConfig
from janus.train.dataset import Subset
from janus.train.ema import WeightAverage
from janus.train.evaluate import evaluate_structures
from janus.train.failure import find_offenders, non_finite_sentence
from janus.train.interrupt import InterruptFlag
from janus.train.loader import BatchLoader, MicroBatch, Prefetcher
from janus.train.loss import denominators_of
from janus.train.optimizer import (
    build_optimizer,
    clip_gradients,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
    trainable,
)
from janus.train.progress import ProgressLine
from janus.train.runfolder import RunFolder
from janus.train.sampler import Sampler
from janus.train.step import (
    StepTotals,
    accumulate_gradients,
    add_tokens,
    count_micro_batches,
    count_tokens,
    synchronise,
)
from janus.train.steplog import StepLog, final_numbers
from janus.train.timing import PhaseTimer


@dataclass(kw_only=True)
class RunOutcome:
    """How a run went. exit_code: 0, or that of the signal that ended it. final: last step's numbers."""

    exit_code: int = 0
    steps_done: int = 0
    final: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] | None = None


class Trainer:
    """State of a run on this rank: model, optimizer, average, sampler. ``steps_done`` is all of the sampler's state."""

    def __init__(
        self, config: TrainConfig, communicator: Communicator, model: nn.Module,
        training: Subset, validation: Subset | None, folder: RunFolder,
    ) -> None:  # fmt: skip
        self.config, self.communicator, self.model = config, communicator, model
        self.training, self.validation, self.folder = training, validation, folder
        self.parameters = trainable(model)
        self.optimizer = build_optimizer(self.parameters, config.optimizer)
        decay = config.optimizer.ema_decay
        self.average = WeightAverage(self.parameters, decay) if decay > 0 else None
        self.buckets = GradientBuckets(list(self.parameters.values()), config.parallel.bucket_bytes)
        self.sampler = Sampler(training.store.work, training.indices, config.batch.structures, config.run.seed)
        self.num_steps = config.run.num_steps(len(training.indices), config.batch.structures)
        self.loader, self.validation_loader = (self._loader_of(part) for part in (training, validation))
        self.steps_done, self.best_score, self.saved_step = 0, math.inf, -1

    def _loader_of(self, subset: Subset | None) -> BatchLoader | None:
        if subset is None:
            return None
        return BatchLoader(
            subset.store,
            cutoff_angstrom=self.config.model.cutoff_angstrom,
            line_cutoff_angstrom=self.config.model.line_cutoff_angstrom,
            dtype=getattr(torch, self.config.run.dtype),
            device=self.communicator.device,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint: weights, average, optimizer, generator, position."""
        self.model.load_state_dict(dict(checkpoint.tensors["weights"]))
        if self.average is not None:
            self.average.restore(checkpoint.tensors["average"])
        optimizer = dict(checkpoint.tensors["optimizer"])
        torch.set_rng_state(optimizer.pop("generator"))
        restore_optimizer(self.optimizer, self.parameters, optimizer)
        self.steps_done = self.saved_step = checkpoint.step
        self.best_score = checkpoint.facts["best_score"] if checkpoint.facts["best_score"] is not None else math.inf

    def save(self) -> None:
        """Write a checkpoint of the state as it is, on rank 0. Raises RunFailedError on all ranks if it cannot."""
        if self.saved_step == self.steps_done:
            return
        problem = None
        if self.communicator.rank == 0:
            try:
                save_checkpoint(self.folder.checkpoints, self._checkpoint())
                prune_checkpoints(self.folder.checkpoints, self.config.run.keep)
            except OSError as error:
                problem = f"the checkpoint of step {self.steps_done} could not be written ({error.strerror or error})"
        problem = self.communicator.gather_objects(problem)[0]
        if problem is not None:
            kept = f"that of step {self.saved_step} is intact" if self.saved_step >= 0 else "there is none before it"
            raise RunFailedError(f"{problem}; {kept}")
        self.saved_step = self.steps_done

    def _checkpoint(self) -> Checkpoint:
        tensors = {
            "weights": self.model.state_dict(),
            "optimizer": {
                "generator": torch.get_rng_state(),
                **optimizer_tensors(self.optimizer, self.parameters),
            },
        }
        if self.average is not None:
            tensors["average"] = self.average.tensors
        facts = {
            "data_fingerprint": self.training.store.fingerprint,
            "num_steps": self.num_steps,
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
        }
        return Checkpoint(step=self.steps_done, config=self.config, tensors=tensors, facts=facts)

    def run(self, log: StepLog | None, progress: ProgressLine, flag: InterruptFlag, stop_step: int) -> RunOutcome:
        """Train up to ``stop_step`` steps in total. log: on rank 0 only. Raises RunFailedError on all ranks."""
        outcome = RunOutcome(steps_done=self.steps_done)
        prefetcher = Prefetcher(self.loader, self._share_of_step, range(self.steps_done, stop_step))
        try:
            while self.steps_done < stop_step and outcome.exit_code == 0:
                outcome.exit_code = self._step_and_record(prefetcher, log, progress, flag, outcome)
                self._validate_and_save(log, outcome, progress)
        finally:
            prefetcher.close()
        if outcome.exit_code == 0 and self.validation is not None and outcome.validation is None:
            outcome.validation = self._validate()
        self.save()
        return outcome

    def _share_of_step(self, step: int) -> list[list[int]]:
        communicator = self.communicator
        layout = self.config.parallel.layout(communicator.world_size)
        return self.sampler.share(step, layout, communicator.rank, self.config.batch.max_work)

    def _step_and_record(
        self, prefetcher: Prefetcher, log: StepLog | None, progress: ProgressLine,
        flag: InterruptFlag, outcome: RunOutcome,
    ) -> int:  # fmt: skip
        """One step and its line in the log; returns the exit code that a signal asks for, or 0."""
        step, timer = self.steps_done, PhaseTimer(self.communicator.device)
        rate = learning_rate(step, self.num_steps, self.config.optimizer.learning_rate, self.config.schedule)
        start = timer.now()
        with timer("data"):
            micro_batches = [part.to(self.communicator.device) for part in prefetcher.next()]
        # before the update: the gate table that this step routes by
        tokens = count_tokens(self.model, micro_batches) if self.config.model.experts is not None else {}
        totals, norm = self._step(step, rate, micro_batches, timer, flag)
        step_s = timer.now() - start
        mine = {
            "rank": self.communicator.rank, **count_micro_batches(micro_batches),
            "phase_s": timer.phase_s, "wait_s": totals.wait_s, "step_s": step_s,
            "tokens": tokens,
        }  # fmt: skip
        ranks = self.communicator.gather_objects(mine)
        self.steps_done = outcome.steps_done = step + 1
        line = self._line(step, rate, totals, norm, ranks)
        outcome.final = final_numbers(line)
        if log is not None:
            log.append(line)
        progress.advance(self.steps_done, _note(line, sum(rank["atoms"] for rank in ranks)))
        return totals.exit_code

    def _step(
        self, step: int, rate: float, micro_batches: list[MicroBatch], timer: PhaseTimer, flag: InterruptFlag
    ) -> tuple[StepTotals, float]:
        """Gradients, their sum over ranks, the update. Returns the totals and the gradient norm."""
        denominators = denominators_of(self.training.store, self.sampler.batch(step))
        self.optimizer.zero_grad(set_to_none=True)
        parts = accumulate_gradients(
            self.model, micro_batches, denominators, self.config.loss, timer, recompute=self.config.run.recompute
        )
        with timer("sync"):
            totals = synchronise(self.communicator, self.buckets, parts, flag.requested)
        with timer("optimizer"):
            norm = clip_gradients(list(self.parameters.values()), self.config.optimizer.clip_norm)
            if not math.isfinite(totals.loss):
                self._stop_for_non_finite(step, "the loss")
            if not math.isfinite(norm):
                self._stop_for_non_finite(step, "the gradient")
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(step)
        return totals, norm

    def _stop_for_non_finite(self, step: int, what: str) -> None:
        """Name the structures to blame, on all ranks alike, and stop; the weights are those before the step."""
        indices = sorted(index for part in self._share_of_step(step) for index in part)
        mine = find_offenders(self.model, self.training.store, self.loader, indices, self.config.loss)
        offenders = [name for names in self.communicator.gather_objects(mine) for name in names]
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
            self.save()
        if improved and self.communicator.rank == 0:
            point_to_best(self.folder.checkpoints, self.steps_done)

    def _validate(self) -> dict[str, Any]:
        """Errors on the validation structures, with the averaged weights where there are any."""
        assert self.validation is not None
        arguments = (self.model, self.validation.store, self.validation.indices.tolist(), self.validation_loader)
        if self.average is None:
            totals = evaluate_structures(*arguments, self.communicator, max_work=self.config.batch.max_work)
        else:
            with self.average.applied():
                totals = evaluate_structures(*arguments, self.communicator, max_work=self.config.batch.max_work)
        return {name: {key: row[key] for key in ("unit", "mae", "rmse", "count")}
                for name, row in totals.document().items()}  # fmt: skip

    def _score(self, validation: dict[str, Any]) -> float:
        """What "best" means: the MAEs weighted as in the loss."""
        loss = self.config.loss
        return sum(getattr(loss, name) * (validation[name]["mae"] or 0.0) for name in ("energy", "forces", "stress"))


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
