"""The operators that the models call, on whatever device the tensors are."""

from janus.kernels.reference import (
    attention_sums,
    gated_norm,
    gathered,
    gathered_silu,
    normalised,
    segment_sum,
    weighted_segment_sum,
)

__all__ = [
    "attention_sums",
    "gated_norm",
    "gathered",
    "gathered_silu",
    "normalised",
    "segment_sum",
    "weighted_segment_sum",
]
