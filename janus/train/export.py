"""One-file export of a potential for inference: a safetensors file whose header holds all that is needed to use it.

The tensors are the parameters and buffers of the undistributed model, averaged parameters where there are any. The
header's metadata has one entry, ``janus``: a JSON document of schema janus.potential/1 with ``weights`` (average or
raw), ``model``, ``dtype``, ``step``, ``facts``, versions, and a checksum over itself and the tensors. Any safetensors
reader opens the file; nothing in it can execute code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from janus import __version__
from janus.config import to_mapping
from janus.errors import UserError
from janus.train.atomic import replace_atomically
from janus.train.checkpoint import Checkpoint
from janus.train.checkpoint_storage import tensor_bytes, write_safetensors
from janus.train.config import train_config

SCHEMA = "janus.potential/1"
SUFFIX = ".safetensors"


def export_checkpoint(checkpoint: Checkpoint, out: Path, *, raw: bool = False) -> dict[str, Any]:
    """Write the file, whole or not at all; returns the header's document with ``bytes`` and ``sha256`` of the file.

    raw: the last step's parameters instead of their averages. Raises UserError, OSError.
    """
    tensors = checkpoint.inference_weights(raw=raw)
    averaged = "average" in checkpoint.tensors and not raw
    document = {
        "schema": SCHEMA, "weights": "average" if averaged else "raw", "step": checkpoint.step,
        "dtype": checkpoint.config.run.dtype, "config": to_mapping(checkpoint.config),
        "facts": dict(checkpoint.facts), "janus": __version__, "torch": torch.__version__,
    }  # fmt: skip
    document["checksum"] = _checksum(document, tensors)
    written: dict[str, Any] = {}

    def write(path: Path) -> None:
        written.update(write_safetensors(path, tensors, {"janus": json.dumps(document)}))

    replace_atomically(out, write)
    return document | written


def read_export(path: Path) -> Checkpoint:
    """Verify and open an exported file. Raises UserError naming the file and what is wrong."""
    try:
        with safe_open(path, framework="pt") as stored:
            document = json.loads((stored.metadata() or {}).get("janus", "null"))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): export it again") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UserError(f"{path} was not written by `janus export` (no header of schema {SCHEMA}): export a checkpoint")
    if document.get("checksum") != _checksum(document, tensors):
        raise UserError(f"{path} is damaged: it does not match its checksum: export it again")
    part = "average" if document["weights"] == "average" else "weights"
    return Checkpoint(
        step=document["step"], config=train_config(document["config"]), tensors={part: tensors},
        facts=document["facts"], path=path,
    )  # fmt: skip


def _checksum(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the document but for its checksum, and every tensor's name and elements."""
    rest = {name: value for name, value in document.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()
