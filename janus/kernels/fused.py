"""Autograd rules of the fused operators: each backward is again a differentiable operator, to second order.

They own which compiled loop runs in which phase (FE: forward, FF: backward, BF and BE: double backward).
The forms are held to ``reference`` by tests. Tensors are contiguous CPU float32 or float64.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from janus.kernels import loops, pool
from janus.kernels.wanted import parameter_gradients_wanted


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


_local = threading.local()


def _scratch(like: Tensor, slot: int) -> Tensor:
    """A reused work tensor of the shape of ``like``; its content lasts until the slot's next use in this thread.

    Fresh pages cost more than the arithmetic done on them, so temporaries come from here.
    """
    buffers = _local.__dict__.setdefault("buffers", {})
    flat = buffers.get((slot, like.dtype))
    if flat is None or flat.numel() < like.numel():
        flat = torch.empty(like.numel(), dtype=like.dtype)
        buffers[slot, like.dtype] = flat
    return flat[: like.numel()].view(like.shape)


def _refuse_parameter_seeds(name: str, *seeds: Tensor | None) -> None:
    if any(seed is not None for seed in seeds):
        raise RuntimeError(f"{name}: derivatives of the gradients of its parameters are not there")


def _or_zeros(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor


class _Gathered(Function):
    """sum over tables of table[index]: linear, and the transpose of ``_Distributed``."""

    @staticmethod
    def forward(ctx: Any, indices: tuple[Tensor | None, ...], *tables: Tensor) -> Tensor:
        ctx.indices, ctx.sizes = indices, tuple(len(table) for table in tables)
        whole = [table for table, index in zip(tables, indices, strict=True) if index is None]
        assert len(whole) <= 1, "add tables without an index before"
        if whole:
            total = pool.empty_like(whole[0]).copy_(whole[0])
        else:
            first = next(index for index in indices if index is not None)
            total = pool.zeros(len(first), tables[0].shape[1], like=tables[0])
        for table, index in zip(tables, indices, strict=True):
            if index is not None:
                loops.gathered_sum(total.numpy(), _array(table), _array(index))
        return total

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_Distributed.apply(ctx.indices, ctx.sizes, cotangent))


class _Distributed(Function):
    """For each index the rows summed by it (or the rows themselves): the transpose of ``_Gathered``."""

    @staticmethod
    def forward(
        ctx: Any, indices: tuple[Tensor | None, ...], sizes: tuple[int, ...], rows: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.indices = indices
        ctx.set_materialize_grads(False)
        parts = []
        for index, size in zip(indices, sizes, strict=True):
            if index is None:
                parts.append(rows.view_as(rows))
                continue
            total = pool.zeros(size, rows.shape[1], like=rows)
            loops.segment_sum(total.numpy(), _array(rows), _array(index))
            parts.append(total)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [(i, c) for i, c in zip(ctx.indices, cotangents, strict=True) if c is not None]
        if not present:
            return None, None, None
        indices, tables = zip(*present, strict=True)
        return None, None, _Gathered.apply(tuple(indices), *tables)


def gathered_sum(tables: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
    """sum over tables of table[index] -> [R,C]; an index of None (at most one) takes the rows as they are."""
    return _Gathered.apply(tuple(indices), *tables)


def gathered(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] -> [R,C]."""
    return _Gathered.apply((index,), rows)


def segment_sum(rows: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """rows [R,C] summed by index [R] -> [num_segments, C]."""
    return _Distributed.apply((index,), (num_segments,), rows)[0]


class _ProductGather(Function):
    """first[i] * second[j]; closed under differentiation together with ``_WeightedSegmentSum``."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, i: Tensor, second: Tensor, j: Tensor) -> Tensor:
        ctx.save_for_backward(first, i, second, j)
        out = pool.empty(len(i), first.shape[1], like=first)
        loops.product_gather(out.numpy(), _array(first), _array(i), _array(second), _array(j))
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        first, i, second, j = ctx.saved_tensors
        grad_first = grad_second = None
        if ctx.needs_input_grad[0]:
            grad_first = _WeightedSegmentSum.apply(cotangent, second, j, i, len(first))
        if ctx.needs_input_grad[2]:
            grad_second = _WeightedSegmentSum.apply(cotangent, first, i, j, len(second))
        return grad_first, None, grad_second, None


class _WeightedSegmentSum(Function):
    """sum of rows * scale[j] by i."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, j: Tensor, i: Tensor, num_segments: int) -> Tensor:
        ctx.save_for_backward(rows, scale, j, i)
        total = pool.zeros(num_segments, rows.shape[1], like=rows)
        loops.weighted_segment_sum(total.numpy(), _array(rows), _array(scale), _array(j), _array(i))
        return total

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        rows, scale, j, i = ctx.saved_tensors
        grad_rows = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_rows = _ProductGather.apply(cotangent, i, scale, j)
        if ctx.needs_input_grad[1]:
            grad_scale = _WeightedSegmentSum.apply(rows, cotangent, i, j, len(scale))
        return grad_rows, grad_scale, None, None, None


def weighted_segment_sum(rows: Tensor, scale: Tensor, scale_index: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """sum of rows * scale[scale_index] by index -> [num_segments, C]; rows [R,C], scale [S,C]."""
    return _WeightedSegmentSum.apply(rows, scale, scale_index, index, num_segments)


class _Silu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = pool.empty_like(x)
        loops.silu(out.numpy(), _array(x))
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return _SiluBackward.apply(*ctx.saved_tensors, cotangent)


class _SiluBackward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cotangent: Tensor) -> Tensor:
        ctx.save_for_backward(x, cotangent)
        out = pool.empty_like(x)
        loops.silu_backward(out.numpy(), _array(x), _array(cotangent))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor, Tensor]:
        x, cotangent = ctx.saved_tensors
        grad_x = pool.empty_like(x)
        grad_cotangent = pool.empty_like(grad_x)
        loops.silu_double_backward(grad_x.numpy(), grad_cotangent.numpy(), _array(x), _array(cotangent), _array(seed))
        return grad_x, grad_cotangent


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of x [R,C]."""
    return _Silu.apply(x)


def _affine(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """rows [R,C] matrix [C,D] + bias, into pooled memory."""
    out = pool.empty(len(rows), matrix.shape[1], like=rows)
    return torch.mm(rows, matrix, out=out) if bias is None else torch.addmm(bias, rows, matrix, out=out)


class _Product(Function):
    """rows [R,C] matrix [C,D]; its own derivative by the rows is the same operator with the matrix transposed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(rows, matrix)
        return _affine(rows, matrix, None)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        grad_rows = grad_matrix = None
        if ctx.needs_input_grad[0]:
            grad_rows = _Product.apply(cotangent, matrix.T)
        if ctx.needs_input_grad[1] and parameter_gradients_wanted():
            grad_matrix = rows.T @ cotangent
        return grad_rows, grad_matrix


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [R,C] weight^T, weight [D,C] -> [R,D]."""
    return _Product.apply(rows, weight.T)


class _SiluLinear(Function):
    """silu(x) W^T + b. Only x is kept: silu(x), and its cotangent, are made again where they are wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _affine(_silu_of(x, _scratch(x, 0)), weight.T, bias)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        wants_parameters = parameter_gradients_wanted()
        grad_x, grad_weight, grad_bias = _SiluLinearBackward.apply(*ctx.saved_tensors, cotangent, wants_parameters)
        return grad_x, grad_weight, grad_bias if ctx.has_bias else None


class _SiluLinearBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cotangent: Tensor, wants_parameters: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(x, weight, cotangent)
        ctx.set_materialize_grads(False)
        by_hidden = torch.mm(cotangent, weight, out=_scratch(x, 0))
        grad_x = pool.empty_like(x)
        loops.silu_backward(grad_x.numpy(), _array(x), by_hidden.numpy())
        if not wants_parameters:
            return grad_x, None, None
        return grad_x, cotangent.T @ _silu_of(x, _scratch(x, 0)), cotangent.sum(dim=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, seed: Tensor | None, seed_weight: Tensor | None, seed_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        _refuse_parameter_seeds("silu_linear", seed_weight, seed_bias)
        x, weight, cotangent = ctx.saved_tensors
        by_hidden = torch.mm(cotangent, weight, out=_scratch(x, 0))
        grad_x, along = pool.empty_like(x), _scratch(x, 1)
        loops.silu_double_backward(
            grad_x.numpy(), along.numpy(), _array(x), by_hidden.numpy(), _array(_or_zeros(seed, x))
        )
        return grad_x, cotangent.T @ along, _affine(along, weight.T, None), None


def _silu_of(x: Tensor, out: Tensor) -> Tensor:
    loops.silu(out.numpy(), _array(x))
    return out


def silu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(x) weight^T + bias; x [R,C], weight [D,C], bias [D] or None -> [R,D]."""
    return _SiluLinear.apply(x, weight, bias)


class _ScaledSum(Function):
    """other + scale * rows, with the sum for the scale's gradient made without a temporary."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(rows, scale)
        return torch.addcmul(other, rows, scale, out=pool.empty_like(rows))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_scale = _ScaledSumBackward.apply(*ctx.saved_tensors, cotangent, parameter_gradients_wanted())
        return grad_rows, grad_scale, cotangent


class _ScaledSumBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, scale: Tensor, cotangent: Tensor, wants_parameters: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(scale, cotangent)
        ctx.set_materialize_grads(False)
        grad_scale = None
        if wants_parameters:
            grad_scale = torch.zeros_like(scale)
            loops.column_products(grad_scale.numpy(), _array(rows), _array(cotangent))
        return torch.mul(cotangent, scale, out=pool.empty_like(cotangent)), grad_scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, seed: Tensor | None, seed_scale: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_parameter_seeds("scaled_sum", seed_scale)
        if seed is None:
            return None, None, None, None
        scale, cotangent = ctx.saved_tensors
        grad_scale = torch.zeros_like(scale)
        loops.column_products(grad_scale.numpy(), _array(seed), _array(cotangent))
        return None, grad_scale, torch.mul(seed, scale, out=pool.empty_like(seed)), None


def scaled_sum(rows: Tensor, scale: Tensor, other: Tensor) -> Tensor:
    """other + scale * rows; rows, other [R,C], scale [C]."""
    return _ScaledSum.apply(rows, scale, other)


class _GatedNorm(Function):
    @staticmethod
    def forward(ctx: Any, core: Tensor, gate: Tensor, affine: Tensor) -> Tensor:
        ctx.save_for_backward(core, gate, affine)
        out = pool.empty_like(core)
        loops.gated_norm(out.numpy(), _array(core), _array(gate), _array(affine))
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, ...]:
        return _GatedNormBackward.apply(*ctx.saved_tensors, cotangent)


class _GatedNormBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, core: Tensor, gate: Tensor, affine: Tensor, cotangent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(core, gate, affine, cotangent)
        ctx.set_materialize_grads(False)
        grad_core = pool.empty_like(core)
        grad_gate, grad_affine = pool.empty_like(grad_core), torch.zeros_like(affine)
        loops.gated_norm_backward(
            grad_core.numpy(), grad_gate.numpy(), grad_affine.numpy(),
            _array(core), _array(gate), _array(affine), _array(cotangent),
        )  # fmt: skip
        return grad_core, grad_gate, grad_affine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, seed_core: Tensor | None, seed_gate: Tensor | None, seed_affine: Tensor | None
    ) -> tuple[Tensor, ...]:
        _refuse_parameter_seeds("gated_norm", seed_affine)
        core, gate, affine, cotangent = ctx.saved_tensors
        grad_core = pool.empty_like(core)
        grad_gate, grad_affine, grad_cotangent = (
            pool.empty_like(grad_core), torch.zeros_like(affine), pool.empty_like(grad_core)
        )  # fmt: skip
        loops.gated_norm_double_backward(
            grad_core.numpy(), grad_gate.numpy(), grad_affine.numpy(), grad_cotangent.numpy(),
            _array(core), _array(gate), _array(affine), _array(cotangent),
            _array(_or_zeros(seed_core, core)), _array(_or_zeros(seed_gate, gate)),
        )  # fmt: skip
        return grad_core, grad_gate, grad_affine, grad_cotangent


def gated_norm(core: Tensor, gate: Tensor, affine: Tensor) -> Tensor:
    """silu(LN(core)) * sigmoid(LN(gate)) -> [R,C]; affine [4,C] = core weight, core bias, gate weight, gate bias."""
    return _GatedNorm.apply(core, gate, affine)


class _AttentionSums(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, envelope: Tensor, values: Tensor, index: Tensor, num_segments: int) -> Tensor:
        ctx.save_for_backward(logits, envelope, values, index)
        total = pool.zeros(num_segments, 2 * logits.shape[1], like=logits)
        loops.attention_sums(total.numpy(), _array(logits), _array(envelope), _array(values), _array(index))
        return total

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return (*_AttentionSumsBackward.apply(*ctx.saved_tensors, cotangent), None, None)


class _AttentionSumsBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, envelope: Tensor, values: Tensor, index: Tensor, cotangent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, envelope, values, index, cotangent)
        ctx.set_materialize_grads(False)
        grad_logits = pool.empty_like(logits)
        grad_values, grad_envelope = pool.empty_like(grad_logits), pool.empty_like(envelope)
        loops.attention_sums_backward(
            grad_logits.numpy(), grad_envelope.numpy(), grad_values.numpy(),
            _array(logits), _array(envelope), _array(values), _array(index), _array(cotangent),
        )  # fmt: skip
        return grad_logits, grad_envelope, grad_values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, seed_logits: Tensor | None, seed_envelope: Tensor | None, seed_values: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits, envelope, values, index, cotangent = ctx.saved_tensors
        grad_logits = pool.empty_like(logits)
        grad_values, grad_envelope = pool.empty_like(grad_logits), pool.empty_like(envelope)
        grad_cotangent = pool.zeros(*cotangent.shape, like=cotangent)
        loops.attention_sums_double_backward(
            grad_logits.numpy(), grad_envelope.numpy(), grad_values.numpy(), grad_cotangent.numpy(),
            _array(logits), _array(envelope), _array(values), _array(index), _array(cotangent),
            _array(_or_zeros(seed_logits, logits)), _array(_or_zeros(seed_envelope, envelope)),
            _array(_or_zeros(seed_values, values)),
        )  # fmt: skip
        return grad_logits, grad_envelope, grad_values, None, grad_cotangent


def attention_sums(logits: Tensor, envelope: Tensor, values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """[sum of w v, sum of w] per segment -> [num_segments, 2C], with w = envelope * exp(capped(logits)).

    logits, values [R,C]; envelope [R]; index [R].
    """
    return _AttentionSums.apply(logits, envelope, values, index, num_segments)
