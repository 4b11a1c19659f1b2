"""Builds a model from its configuration, on a device or on the meta device. It owns no architecture."""

from __future__ import annotations

import torch
from torch import nn

from janus.config import ModelConfig
from janus.model.matris import Matris
from janus.model.matris_moe import MatrisMoe


def build_model(
    config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> nn.Module:
    """The model with its initial parameters, the same for the same seed; ``device="meta"`` allocates nothing."""
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return _module(config).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _module(config)
    return model.to(device=device, dtype=dtype)


def _module(config: ModelConfig) -> nn.Module:
    if config.family == "matris":
        return Matris(config)
    return MatrisMoe(config)
