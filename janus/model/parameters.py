"""Parameter counts read off the model itself, on the meta device. ``perfmodel`` has them as formulas."""

from __future__ import annotations

import re
from dataclasses import dataclass

from janus.config import ModelConfig
from janus.model.build import build_model

_ROUTED = re.compile(r"\.experts\.(inner|outer)$")


@dataclass(frozen=True)
class ParameterCounts:
    """total: all parameters; active: those one token meets (top-k of the routed experts); parts: by layer, summed
    over blocks.
    """

    total: int
    active: int
    parts: dict[str, int]


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of a model without allocating it."""
    parts: dict[str, int] = {}
    idle = 0
    for name, parameter in build_model(config, device="meta").named_parameters():
        part = _part(name, config.num_blocks)
        parts[part] = parts.get(part, 0) + parameter.numel()
        if _ROUTED.search(name) and config.experts is not None:
            idle += (
                parameter.numel() // config.experts.num_experts * (config.experts.num_experts - config.experts.top_k)
            )
    total = sum(parts.values())
    return ParameterCounts(total, total - idle, parts)


def _part(name: str, num_blocks: int) -> str:
    words = name.split(".")
    if words[0] != "blocks":
        return words[0].replace("_", " ")
    layer = words[2].replace("_", " ")
    if "experts" in words:
        layer += " routed experts" if _ROUTED.search(name) else " gate" if "gate" in words else " shared experts"
    return f"{num_blocks} x {layer}"
