"""The folder of a checkpoint: its names, its description with the hash of every file, pointers to it, its removal.

``checkpoints/step_XXXXXXXX/`` (X = steps done) holds ``PART-RRRRR.safetensors`` (what rank R wrote of a part),
index.json (which elements of which tensor lie in which file) and checkpoint.json (settings, facts, the byte count and
SHA-256 of every file, and a checksum of itself). ``checkpoints/latest`` and ``best`` are text files with a folder's
name. Folders whose name begins with a dot are unfinished. It does not own the tensors (``checkpoint_storage.py``).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus.train.atomic import sync_path, write_text_atomically

SCHEMA = "janus.checkpoint/2"
FIRST_SCHEMA = "janus.checkpoint/1"  # one safetensors file per part, no index: read, no longer written
DESCRIPTION = "checkpoint.json"
INDEX = "index.json"
STEP_FOLDER = re.compile(r"step_(\d{8})")


class DamagedCheckpointError(Exception):
    """A checkpoint that is incomplete or differs from its hashes."""


def folder_name(step: int) -> str:
    """Name of the folder after this many steps."""
    return f"step_{step:08d}"


def partial_folder(target: Path) -> Path:
    """Where a checkpoint is written until it is complete."""
    return target.with_name(f".{target.name}.partial")


def _replaced_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def checksum_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON document but for its own ``checksum``."""
    rest = {name: value for name, value in document.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Write a document so that it reaches the disk; returns its entry (bytes, sha256) for the description."""
    content = (json.dumps(document, indent=1) + "\n").encode()
    path.write_bytes(content)
    sync_path(path)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_description(folder: Path, document: Mapping[str, Any]) -> None:
    """Write checkpoint.json with its own checksum."""
    write_json(folder / DESCRIPTION, {**document, "checksum": checksum_of(document)})


def read_description(folder: Path) -> dict[str, Any]:
    """checkpoint.json of either schema. Raises DamagedCheckpointError."""
    try:
        document = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {DESCRIPTION} is missing") from None
    except ValueError:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {DESCRIPTION} is not valid JSON") from None
    if not isinstance(document, dict) or document.get("schema") not in (SCHEMA, FIRST_SCHEMA):
        raise DamagedCheckpointError(f"checkpoint {folder} cannot be read: {DESCRIPTION} is not of schema {SCHEMA}")
    if document.get("checksum") != checksum_of(document):
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {DESCRIPTION} does not match its checksum")
    return document


def verify_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Compare a file with its byte count and SHA-256. Raises DamagedCheckpointError naming what is wrong."""
    file = folder / name
    if not file.is_file():
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} is missing")
    with file.open("rb") as stream:
        num_bytes = file.stat().st_size
        if num_bytes != entry["bytes"]:
            raise DamagedCheckpointError(
                f"checkpoint {folder} is damaged: {name} has {num_bytes} bytes instead of {entry['bytes']}"
            )
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} does not match its hash")


def publish_folder(target: Path) -> None:
    """Give a complete partial folder its name. An older folder of that name goes only once the new one is there."""
    partial, replaced = partial_folder(target), _replaced_folder(target)
    sync_path(partial)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    sync_path(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)  # what stays goes with the next left-overs


def remove_left_overs(checkpoints: Path) -> None:
    """Clear what killed saves and removals left; for the one process that writes here, while nothing is being saved."""
    for folder in sorted(checkpoints.glob(".step_*")) if checkpoints.is_dir() else []:
        target = checkpoints / folder.name[1:].partition(".")[0]
        if folder == _replaced_folder(target) and not target.exists():
            folder.rename(target)  # killed between the two renames: the older one is the last good one
        else:
            shutil.rmtree(folder)


def point_to(checkpoints: Path, pointer: str, step: int) -> None:
    """Make ``latest`` or ``best`` name the checkpoint of a step."""
    write_text_atomically(checkpoints / pointer, folder_name(step) + "\n")


def pointed_to(checkpoints: Path, pointer: str) -> str | None:
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


def prune_checkpoints(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` and those that ``latest`` and ``best`` name."""
    named = {pointed_to(checkpoints, pointer) for pointer in ("latest", "best")}
    for folder in list_checkpoints(checkpoints)[keep:]:
        if folder.name not in named:
            condemned = folder.with_name(
                f".{folder.name}.removed"
            )  # so that a removal cut short leaves no damaged checkpoint behind
            folder.rename(condemned)
            shutil.rmtree(condemned)
