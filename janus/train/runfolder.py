"""The folder of a run: who may write there, config.toml, run.json. Format: docs/training.md.

It does not own the step log (``steplog.py``) nor the checkpoints (``checkpoint.py``). Rank 0 alone writes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from janus.config import read_toml, to_mapping, to_toml
from janus.errors import UserError
from janus.parallel.guardian import FAILURE_FILE
from janus.train.atomic import write_text_atomically
from janus.train.config import TrainConfig, train_config

SCHEMA = "janus.run/1"
CONFIG_FILE, RUN_FILE, STEPS_FILE, CHECKPOINTS = "config.toml", "run.json", "steps.jsonl", "checkpoints"

# Settings that a resumed run may change: they alter neither the mathematics nor the order of the data.
FREE_ON_RESUME = {
    "data.path", "data.validation_path", "batch.max_work", "run.device", "run.threads", "run.hang_timeout_s",
    "run.recompute", "run.verify", "run.checkpoint_every", "run.validate_every", "run.keep",
}  # fmt: skip
FREE_SECTION_ON_RESUME = "parallel."  # checkpoints are resharded on load
FREE_WITH_CONSTANT_RATE = {"run.steps", "run.epochs"}


class RunFolder:
    """Paths of one run. Nothing is touched before ``claim``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.run, self.steps = path / CONFIG_FILE, path / RUN_FILE, path / STEPS_FILE
        self.checkpoints = path / CHECKPOINTS

    def holds_a_run(self) -> bool:
        """Whether a run was started here before."""
        return any(part.exists() for part in (self.config, self.run, self.steps, self.checkpoints))

    def check(self, *, resume: bool, force: bool) -> None:
        """Raise UserError when the folder cannot be used as asked; changes nothing."""
        if resume and force:
            raise UserError("--resume and --force are both given: one goes on with a run, the other removes it")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file: name a folder")
        if self.holds_a_run() and not resume and not force:
            raise UserError(f"{self.path} already holds a run: go on with --resume, replace it with --force, "
                            "or name another folder")  # fmt: skip
        if resume and not self.config.exists():
            raise UserError(f"--resume: {self.path} holds no run ({CONFIG_FILE} is missing): check the path")
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not os.access(existing, os.W_OK):
            raise UserError(f"--out {self.path} cannot be written: {existing} does not allow it")

    def claim(self, config: TrainConfig, *, force: bool) -> None:
        """Make the folder, drop an older run where ``force`` says so, and write the resolved settings."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be made ({error.strerror}): name another folder") from None
        if force:
            for part in (self.config, self.run, self.steps):
                part.unlink(missing_ok=True)
            if self.checkpoints.exists():
                shutil.rmtree(self.checkpoints)
        (self.path / FAILURE_FILE).unlink(missing_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        write_text_atomically(self.config, to_toml(to_mapping(config)))
        assert train_config(read_toml(self.config)) == config, f"{self.config} does not read back equal"

    def write_run(self, document: dict[str, Any]) -> None:
        """Replace run.json."""
        write_text_atomically(self.run, json.dumps(document, indent=1) + "\n")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def require_same_settings(started: TrainConfig, resumed: TrainConfig, folder: Path) -> None:
    """Raise UserError naming the first setting in which a resumed run contradicts the one that was started."""
    free = FREE_ON_RESUME | (FREE_WITH_CONSTANT_RATE if started.schedule.kind == "constant" else set())
    before, after = _flat(to_mapping(started)), _flat(to_mapping(resumed))
    for name in sorted((before.keys() | after.keys()) - free):
        if before.get(name) != after.get(name) and not name.startswith(FREE_SECTION_ON_RESUME):
            raise UserError(
                f"--resume: {name} is {after.get(name, 'not set')} but the run in {folder} was started with "
                f"{before.get(name, 'not set')}: leave it out, or start a new run"
            )
