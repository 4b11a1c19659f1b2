"""The operators that models call: the fused form on a CPU, the plain definition elsewhere and in compiled graphs."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from janus.kernels import fused, grouped, reference


def _form(tensor: Tensor) -> ModuleType:
    if torch.compiler.is_compiling():  # autograd Functions in a compiled graph lose second derivatives, silently
        return reference
    return fused if tensor.device.type == "cpu" else reference


def gathered(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] -> [R,C]."""
    return _form(rows).gathered(rows, index)


def segment_sum(rows: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """rows [R,C] summed by index [R] -> [num_segments, C]."""
    return _form(rows).segment_sum(rows, index, num_segments)


def gathered_sum(tables: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    """sum over tables of table[index] -> [R,C]; an index of None (at most one) takes the rows as they are."""
    return _form(tables[0]).gathered_sum(tables, indices)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of x [R,C]."""
    return _form(x).silu(x)


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [R,C] weight^T, weight [D,C] -> [R,D]."""
    return _form(rows).linear(rows, weight)


def silu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(x) weight^T + bias; x [R,C], weight [D,C], bias [D] or None -> [R,D]."""
    return _form(x).silu_linear(x, weight, bias)


def scaled_sum(rows: Tensor, scale: Tensor, other: Tensor) -> Tensor:
    """other + scale * rows; rows, other [R,C], scale [C]."""
    return _form(rows).scaled_sum(rows, scale, other)


def gated_norm(core: Tensor, gate: Tensor, affine: Tensor) -> Tensor:
    """silu(LN(core)) * sigmoid(LN(gate)) -> [R,C]; affine [4,C] = core weight, core bias, gate weight, gate bias."""
    return _form(core).gated_norm(core, gate, affine)


def attention_sums(logits: Tensor, envelope: Tensor, values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """[sum of w v, sum of w] per segment -> [num_segments, 2C], with w = envelope * exp(capped(logits)).

    logits, values [R,C]; envelope [R]; index [R].
    """
    return _form(logits).attention_sums(logits, envelope, values, index, num_segments)


def weighted_segment_sum(rows: Tensor, scale: Tensor, scale_index: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """sum of rows * scale[scale_index] by index -> [num_segments, C]; rows [R,C], scale [S,C]."""
    return _form(rows).weighted_segment_sum(rows, scale, scale_index, index, num_segments)


def grouped_product(rows: Tensor, weights: Tensor, loads: Sequence[int]) -> Tensor:
    """rows [R,a] sorted by expert, weights [X,b,a], loads [X] rows of each expert -> rows W^T [R,b]."""
    form = grouped if _form(rows) is fused else reference
    return form.grouped_product(rows, weights, loads)
