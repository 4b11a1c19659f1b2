"""Named models. It owns the choice of sizes, not the architecture. Importable without torch."""

from __future__ import annotations

import difflib

from janus.config import ExpertConfig, ModelConfig
from janus.errors import UserError


def _matris(num_blocks: int) -> ModelConfig:
    """The published MatRIS sizes (arXiv 2603.02002), original to the letter."""
    return ModelConfig(num_blocks=num_blocks, width=128, line_cutoff_angstrom=4.5, compat=True)


def _moe(
    width: int, num_experts: int, top_k: int, message_hidden: int, feature_hidden: int, shared: int
) -> ModelConfig:
    """A MatRIS-MoE size of arXiv 2604.15821; what the paper does not say is chosen here (docs/model.md)."""
    return ModelConfig(
        family="matris-moe",
        num_blocks=6,
        width=width,
        angle_width=64,
        num_heads=width // 64,
        line_cutoff_angstrom=4.5,
        experts=ExpertConfig(
            num_experts=num_experts,
            top_k=top_k,
            message_hidden=message_hidden,
            feature_hidden=feature_hidden,
            num_shared_experts=shared,
        ),
    )


PRESETS: dict[str, ModelConfig] = {
    "matris-10m": _matris(10),
    "matris-6m": _matris(6),
    "matris-4m": _matris(4),
    "matris-tiny": ModelConfig(num_blocks=2, width=32, cutoff_angstrom=5.0, line_cutoff_angstrom=3.5),
    "matris-small": ModelConfig(num_blocks=2, width=64, cutoff_angstrom=6.0, line_cutoff_angstrom=4.0),
    "matris-moe-tiny": ModelConfig(
        family="matris-moe",
        num_blocks=2,
        width=32,
        num_heads=4,
        angle_width=16,
        cutoff_angstrom=5.0,
        line_cutoff_angstrom=3.5,
        experts=ExpertConfig(num_experts=8, top_k=2, message_hidden=64, feature_hidden=32),
    ),
    "matris-moe-s": _moe(768, 32, 4, 1568, 784, 1),
    "matris-moe-m": _moe(1024, 40, 8, 2096, 1048, 1),
    "matris-moe-l": _moe(2048, 72, 16, 3072, 1024, 2),
}


def preset(name: str) -> ModelConfig:
    """The named model configuration. Raises UserError with the nearest known name."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        repair = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PRESETS)}"
        raise UserError(f"no model preset {name!r}: {repair}")
    return PRESETS[name]
