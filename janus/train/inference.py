"""What a user names, opened, and a model from it, ready to predict. It does not own the formats (``checkpoint.py``,
``export.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from janus.errors import UserError
from janus.model.build import build_model
from janus.train.checkpoint import Checkpoint, latest_good, read_checkpoint
from janus.train.checkpoint_files import DESCRIPTION, STEP_FOLDER, DamagedCheckpointError, pointed_to
from janus.train.export import SUFFIX, read_export


def open_checkpoint(path: Path, tell: Callable[[str], None]) -> Checkpoint:
    """An exported file, a step's folder, ``checkpoints/latest`` or ``checkpoints/best``, or a whole run's folder.

    A named step must be whole; of a run the newest whole one is taken, and damaged ones are named through ``tell``.
    Raises UserError.
    """
    if path.suffix == SUFFIX and path.is_file():
        return read_export(path)
    if path.name in ("latest", "best") and path.is_file():
        name = pointed_to(path.parent, path.name)
        if name is None:
            raise UserError(f"{path} names no checkpoint: name the step's folder itself")
        path = path.parent / name
    if not path.exists():
        raise UserError(
            f"no checkpoint at {path}: name a run folder, one of its checkpoints/step_XXXXXXXX, or an exported file"
        )
    if (path / DESCRIPTION).exists() or STEP_FOLDER.fullmatch(path.name):
        try:
            return read_checkpoint(path)
        except DamagedCheckpointError as error:
            raise UserError(f"{error}: name another step of the run") from None
    checkpoint = latest_good(path if path.name == "checkpoints" else path / "checkpoints", tell)
    if checkpoint is None:
        raise UserError(
            f"{path} holds no checkpoint: name a run folder, one of its checkpoints/step_XXXXXXXX, or an exported file"
        )
    return checkpoint


def build_from_checkpoint(
    checkpoint: Checkpoint, *, device: torch.device | str, raw_weights: bool = False
) -> nn.Module:
    """The model in the run's dtype with averaged weights (EMA) where there are any, or the raw ones; gradients off.

    Raises UserError where raw weights are asked of an export that has the averages alone.
    """
    model = build_model(checkpoint.config.model, dtype=getattr(torch, checkpoint.config.run.dtype), device=device)
    model.load_state_dict(checkpoint.inference_weights(raw=raw_weights))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
