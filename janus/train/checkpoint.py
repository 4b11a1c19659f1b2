"""Checkpoints: safetensors and JSON in one folder per step, checked by hash; nothing that is loaded can execute code.

``checkpoints/step_XXXXXXXX/`` (X = steps done) holds weights.safetensors, average.safetensors (the EMA),
optimizer.safetensors and checkpoint.json, which names the settings, the sampler's position (= steps done) and the
SHA-256 of each file and of itself. ``checkpoints/latest`` and ``checkpoints/best`` are text files with a folder's name.
It does not own when a checkpoint is written (``loop.py``).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from janus import __version__
from janus.config import to_mapping
from janus.errors import UserError
from janus.train.atomic import make_folder_atomically, write_text_atomically
from janus.train.config import TrainConfig, train_config

SCHEMA = "janus.checkpoint/1"
DESCRIPTION = "checkpoint.json"
STEP_FOLDER = re.compile(r"step_(\d{8})")


class DamagedCheckpointError(Exception):
    """A checkpoint that is incomplete or differs from its hashes."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on. tensors: name of the file's part -> named tensors on the CPU.

    Parts: "weights" (parameters and buffers), "average" (EMA, absent without one), "optimizer" (moments and the
    generator's state). facts: other plain values (fingerprint of the data, validation errors ...).
    """

    step: int
    config: TrainConfig
    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def inference_weights(self) -> dict[str, Tensor]:
        """Parameters and buffers with the parameters' averages in place where there are any."""
        return {**self.tensors["weights"], **self.tensors.get("average", {})}


def folder_name(step: int) -> str:
    """Name of the folder after this many steps."""
    return f"step_{step:08d}"


def _self_checksum(description: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in description.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_checkpoint(checkpoints: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and point ``latest`` to it. Raises OSError, leaving every older checkpoint as it was."""
    target = checkpoints / folder_name(checkpoint.step)

    def fill(folder: Path) -> None:
        for part, tensors in checkpoint.tensors.items():
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            try:
                save_file(contiguous, folder / f"{part}.safetensors")
            except SafetensorError as error:
                raise OSError(str(error)) from error
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _file_hash(file)} for file in sorted(folder.iterdir())
        }
        description = {
            "schema": SCHEMA, "step": checkpoint.step, "config": to_mapping(checkpoint.config),
            "facts": dict(checkpoint.facts), "janus": __version__, "torch": torch.__version__, "files": files,
        }  # fmt: skip
        text = json.dumps(description | {"checksum": _self_checksum(description)}, indent=1)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    make_folder_atomically(target, fill)
    write_text_atomically(checkpoints / "latest", target.name + "\n")
    return target


def point_to_best(checkpoints: Path, step: int) -> None:
    """Make ``best`` name the checkpoint of a step."""
    write_text_atomically(checkpoints / "best", folder_name(step) + "\n")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and check one checkpoint. Raises DamagedCheckpointError naming the folder and what is wrong."""
    description = _read_description(folder)
    tensors = {}
    for name, entry in description["files"].items():
        file = folder / name
        if not file.is_file():
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} is missing")
        content = file.read_bytes()  # what is checked is what is used: no map of a file that may still change
        if len(content) != entry["bytes"]:
            raise DamagedCheckpointError(
                f"checkpoint {folder} is damaged: {name} has {len(content)} bytes instead of {entry['bytes']}"
            )
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} does not match its hash")
        tensors[file.stem] = load(content)
    return Checkpoint(
        step=description["step"], config=train_config(description["config"]), tensors=tensors,
        facts=description["facts"], path=folder,
    )  # fmt: skip


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {DESCRIPTION} is missing") from None
    except ValueError:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {DESCRIPTION} is not valid JSON") from None
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        raise DamagedCheckpointError(f"checkpoint {folder} cannot be read: {DESCRIPTION} is not of schema {SCHEMA}")
    if description.get("checksum") != _self_checksum(description):
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {DESCRIPTION} does not match its checksum")
    return description


def _pointed_to(checkpoints: Path, pointer: str) -> str | None:
    """The folder name in a pointer file, if it is a well-formed one."""
    path = checkpoints / pointer
    if not path.is_file():
        return None
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    return name if STEP_FOLDER.fullmatch(name) else None


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders of checkpoints, newest first."""
    if not checkpoints.is_dir():
        return []
    return sorted((p for p in checkpoints.iterdir() if STEP_FOLDER.fullmatch(p.name)), reverse=True)


def latest_good(checkpoints: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named through ``tell``. None: there is no checkpoint.

    Raises UserError when there are some but none is whole.
    """
    folders = list_checkpoints(checkpoints)
    first = _pointed_to(checkpoints, "latest")
    folders.sort(key=lambda folder: folder.name != first)  # stable: the pointed one, then newest first
    for folder in folders:
        try:
            return read_checkpoint(folder)
        except DamagedCheckpointError as error:
            tell(f"{error}; trying the one before")
    if folders:
        raise UserError(f"none of the {len(folders)} checkpoints in {checkpoints} is whole: restore one from a copy")
    return None


def open_checkpoint(path: Path, tell: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that a user names: a step's folder, ``checkpoints/latest`` or ``best``, or a whole run's folder.

    A named step must be whole; of a run the newest whole one is taken. Raises UserError.
    """
    if path.name in ("latest", "best") and path.is_file():
        name = _pointed_to(path.parent, path.name)
        if name is None:
            raise UserError(f"{path} names no checkpoint: name the step's folder itself")
        path = path.parent / name
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: name a run folder or one of its checkpoints/step_XXXXXXXX")
    if (path / DESCRIPTION).exists() or STEP_FOLDER.fullmatch(path.name):
        try:
            return read_checkpoint(path)
        except DamagedCheckpointError as error:
            raise UserError(f"{error}: name another step of the run") from None
    checkpoint = latest_good(path if path.name == "checkpoints" else path / "checkpoints", tell)
    if checkpoint is None:
        raise UserError(f"{path} holds no checkpoint: name a run folder or one of its checkpoints/step_XXXXXXXX")
    return checkpoint


def prune_checkpoints(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` and the one that ``best`` names."""
    best = _pointed_to(checkpoints, "best")
    for folder in list_checkpoints(checkpoints)[keep:]:
        if folder.name != best:
            shutil.rmtree(folder)
