"""The record of a training run as its folder tells it, and the predictions of its steps.

It owns reading config.toml, run.json and steps.jsonl and working out what the ranks did in each step. It does not own
the comparison (``perfmodel/run_validation.py``) nor what is printed (``validate_run.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from janus.layout import Layout
    from janus.train.config import TrainConfig
    from perfmodel.corrections import Corrections
    from perfmodel.machine import Machine
    from perfmodel.run_validation import MeasuredStep
    from perfmodel.step_time import StepPrediction
    from perfmodel.step_work import StepWork


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished or stopped run as its folder tells it. steps: those after warm-up, of all ranks."""

    folder: Path
    config: TrainConfig
    document: Mapping[str, Any]
    layout: Layout
    steps: tuple[MeasuredStep, ...]
    work: Mapping[int, float]  # edges + angles of each recorded step, over all ranks
    data: Path | None = None  # where the structures are now, if not where the settings say

    @cached_property
    def memory_bytes(self) -> int | None:
        """Of the fullest rank, None where it was not recorded."""
        found = self.document.get("peak_memory_bytes")
        return max(found) if found else None

    @cached_property
    def works(self) -> Callable[[int], StepWork]:
        """What the ranks did in a step, worked out from the store once. Raises UserError where it cannot be."""
        from janus.config import to_mapping
        from janus.data.pack import open_or_pack
        from janus.train.sampler import Sampler, split_validation
        from perfmodel.run_validation import data_counts, settings_of
        from perfmodel.step_work import step_work

        config, path = self.config, self.data or self.config.data.path
        if path is None or not path.exists():
            raise UserError(f"{self.folder}: its structures at {path} are not there: name them with --data PATH")
        store = open_or_pack(path, config.model.cutoff_angstrom, config.model.line_cutoff_angstrom)
        if self.document.get("data_fingerprint") != store.fingerprint:
            raise UserError(f"{path} does not hold the structures of the run in {self.folder} (the fingerprint differs)"
                            ": name them with --data PATH")  # fmt: skip
        counts, settings = data_counts(store), settings_of(to_mapping(config))
        indices, _ = split_validation(len(store), config.data.validation_fraction, config.data.seed)
        sampler = Sampler(store.work, indices, config.batch.structures, config.run.seed)
        known: dict[int, StepWork] = {}

        def work_of(step: int) -> StepWork:
            if step not in known:
                batch = sampler.batch(step)
                if abs(counts.of(batch).work - self.work[step]) > 0.5:
                    raise UserError(
                        f"step {step} of {self.folder} worked on {self.work[step]:.0f} edges and angles, its settings "
                        f"and data give {counts.of(batch).work:.0f}: the record is of other settings"
                    )
                known[step] = step_work(config.model, counts, batch, self.layout, settings)
            return known[step]

        return work_of


def read_run(folder: Path, warm_up: int, data: Path | None = None) -> Run:
    """A run's folder. Raises UserError where a file is missing, broken, or holds no step after warm-up."""
    from janus.config import read_toml
    from janus.layout import Layout
    from janus.train.config import train_config
    from janus.train.runfolder import SCHEMA as RUN_SCHEMA
    from janus.train.runfolder import RunFolder
    from janus.train.steplog import read_step_log
    from perfmodel.run_validation import MeasuredStep

    paths = RunFolder(folder)
    for path in (paths.config, paths.run, paths.steps):
        if not path.is_file():
            raise UserError(f"{folder} holds no run to validate ({path.name} is missing): name a folder of janus train")
    try:
        document = json.loads(paths.run.read_text(encoding="utf-8"))
        lines = [line for line in read_step_log(paths.steps) if line["step"] >= warm_up]
        if document.get("schema") != RUN_SCHEMA:
            raise UserError(f"{paths.run} has schema {document.get('schema')!r}, this program reads {RUN_SCHEMA!r}")
        layout = Layout(**document["layout"])
        lines = [line for line in lines if len(line["ranks"]) == layout.world_size]  # a resumed run may have changed
        work = {line["step"]: sum(rank["edges"] + rank["angles"] for rank in line["ranks"]) for line in lines}
        steps = tuple(MeasuredStep.of_line(line) for line in lines)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: run.json or steps.jsonl is not whole ({error!r})") from None
    if not steps:
        raise UserError(f"{folder} has no step after the {warm_up} of warm-up: give a smaller --warm-up")
    return Run(folder=folder, config=train_config(read_toml(paths.config)), document=document, layout=layout,
               steps=steps, work=work, data=data)  # fmt: skip


def spread_out(items: Sequence[Any], number: int) -> list[Any]:
    """At most ``number`` of them, the first, the last and those evenly between."""
    if len(items) <= number:
        return list(items)
    return [items[round(place * (len(items) - 1) / (number - 1))] for place in range(number)]


def predictions(
    run: Run, steps: Sequence[MeasuredStep], machine: Machine, corrections: Corrections | None = None
) -> list[StepPrediction]:
    """One of each step, from the micro-batches that the ranks worked on."""
    from perfmodel.step_time import predict

    threads = max(1, run.config.run.threads)
    return [predict(run.works(one.step), machine, corrections=corrections, threads=threads) for one in steps]


def phases_of(found: Sequence[StepPrediction]) -> list[dict[str, float]]:
    """Seconds by phase, which add up to each step."""
    from perfmodel.run_validation import with_outside

    return [with_outside(one.step_s, one.phase_s) for one in found]
