"""A model from a checkpoint, ready to predict. It does not own the checkpoint's format (``checkpoint.py``)."""

from __future__ import annotations

import torch
from torch import nn

from janus.model.build import build_model
from janus.train.checkpoint import Checkpoint


def build_from_checkpoint(
    checkpoint: Checkpoint, *, device: torch.device | str, raw_weights: bool = False
) -> nn.Module:
    """The model in the run's dtype with averaged weights (EMA) where there are any, or the raw ones; gradients off."""
    model = build_model(checkpoint.config.model, dtype=getattr(torch, checkpoint.config.run.dtype), device=device)
    model.load_state_dict(dict(checkpoint.tensors["weights"]) if raw_weights else checkpoint.inference_weights())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
