"""Plain torch definitions of the fused operators: what they compute, differentiable as often as wanted.

The fused forms are held to these by tests. Legend: R rows, T targets, S sources, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LAYER_NORM_EPSILON = 1e-5
LOGIT_CAP = 20.0


def gathered(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] -> [R,C]."""
    return rows[index]


def segment_sum(rows: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """rows [R,C] summed by index [R] -> [num_segments, C]."""
    return rows.new_zeros(num_segments, rows.shape[1]).index_add(0, index, rows)


def gathered_sum(tables: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    """sum over tables of table[index] -> [R,C]; an index of None takes the rows as they are."""
    return torch.stack(
        [table if index is None else table[index] for table, index in zip(tables, indices, strict=True)]
    ).sum(dim=0)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return torch.nn.functional.silu(x)


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [R,C] weight^T, weight [D,C] -> [R,D]."""
    return rows @ weight.T


def silu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(x) weight^T + bias; x [R,C], weight [D,C], bias [D] or None -> [R,D]."""
    return torch.nn.functional.linear(torch.nn.functional.silu(x), weight, bias)


def scaled_sum(rows: Tensor, scale: Tensor, other: Tensor) -> Tensor:
    """other + scale * rows; rows, other [R,C], scale [C]."""
    return torch.addcmul(other, rows, scale)


def normalised(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation over the channels of rows [R,C]."""
    return torch.nn.functional.layer_norm(rows, rows.shape[1:], weight, bias, LAYER_NORM_EPSILON)


def gated_norm(core: Tensor, gate: Tensor, affine: Tensor) -> Tensor:
    """silu(LN(core)) * sigmoid(LN(gate)) -> [R,C]; affine [4,C] = core weight, core bias, gate weight, gate bias."""
    return torch.nn.functional.silu(normalised(core, affine[0], affine[1])) * torch.sigmoid(
        normalised(gate, affine[2], affine[3])
    )


def capped(logits: Tensor) -> Tensor:
    """Smooth bound of the logits, l / sqrt(1 + (l/20)^2), so that exp cannot overflow and needs no maximum."""
    return logits * torch.rsqrt(1 + (logits / LOGIT_CAP) ** 2)


def attention_sums(logits: Tensor, envelope: Tensor, values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """[sum of w v, sum of w] per segment -> [num_segments, 2C], with w = envelope * exp(capped(logits)).

    logits, values [R,C]; envelope [R]; index [R].
    """
    weight = envelope[:, None] * torch.exp(capped(logits))
    return segment_sum(torch.cat([weight * values, weight], dim=1), index, num_segments)


def weighted_segment_sum(rows: Tensor, scale: Tensor, scale_index: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """sum of rows * scale[scale_index] by index -> [num_segments, C]; rows [R,C], scale [S,C]."""
    return segment_sum(rows * scale[scale_index], index, num_segments)


def grouped_product(rows: Tensor, weights: Tensor, loads: Sequence[int]) -> Tensor:
    """rows [R,a] sorted by expert, weights [X,b,a], loads [X] rows of each expert -> rows W^T [R,b]."""
    if not loads:
        return rows @ weights.sum(dim=0).T  # no rows; the graph has the same ends as with some
    matrices = weights.unbind(0)  # its backward writes every gradient once; indexing would write all for each expert
    parts = rows.split(list(loads))
    return torch.cat([part @ matrix.T for part, matrix in zip(parts, matrices, strict=True)])
