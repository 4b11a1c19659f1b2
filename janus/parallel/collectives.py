"""Differentiable collectives over an axis, exact to any order of differentiation.

The differentiated scalar is the sum over ranks of the local scalars; each backward is the true adjoint of its
collective, made of the same differentiable operators, so that a backward with ``create_graph`` can be differentiated
again:

    all_to_all(rows, out, in)   adjoint  all_to_all(rows, in, out)
    all_gather                  adjoint  reduce_scatter
    reduce_scatter              adjoint  all_gather
    all_reduce                  adjoint  all_reduce

All ranks of the axis call them in one order, whatever their counts, and all or none of them with an operand that
requires a gradient. An axis of one rank: the operand itself is returned, without an autograd node. It does not own
how tensors travel (``axis.py`` and the transports).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from janus.parallel.axis import Axis
from janus.parallel.ledger import backward_phase, current_phase


def all_to_all(rows: Tensor, axis: Axis, output_rows: Sequence[int], input_rows: Sequence[int]) -> Tensor:
    """Rows to every rank: rows [sum(input_rows), ...] -> [sum(output_rows), ...], in rank order of their sources."""
    if axis.size == 1:
        return rows
    return _AllToAll.apply(rows, axis, tuple(output_rows), tuple(input_rows), current_phase())


def all_gather(piece: Tensor, axis: Axis) -> Tensor:
    """Pieces [b, ...] of all ranks, equal in shape -> [n b, ...], in rank order."""
    return piece if axis.size == 1 else _AllGather.apply(piece, axis, current_phase())


def reduce_scatter(whole: Tensor, axis: Axis) -> Tensor:
    """Sum over ranks of whole [n b, ...] -> this rank's piece of it [b, ...]."""
    return whole if axis.size == 1 else _ReduceScatter.apply(whole, axis, current_phase())


def all_reduce(tensor: Tensor, axis: Axis) -> Tensor:
    """Sum over ranks, same shape, the same on all ranks."""
    return tensor if axis.size == 1 else _AllReduce.apply(tensor, axis, current_phase())


class _AllToAll(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, axis: Axis, output_rows: tuple[int, ...], input_rows: tuple[int, ...], phase: str
    ) -> Tensor:
        ctx.axis, ctx.output_rows, ctx.input_rows, ctx.made_in = axis, output_rows, input_rows, current_phase()
        output = rows.new_empty((sum(output_rows), *rows.shape[1:]))
        axis.all_to_all(output, rows.contiguous(), output_rows, input_rows, phase).wait()
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None, None]:
        phase = backward_phase(ctx.made_in)
        return _AllToAll.apply(cotangent, ctx.axis, ctx.input_rows, ctx.output_rows, phase), None, None, None, None


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, piece: Tensor, axis: Axis, phase: str) -> Tensor:
        ctx.axis, ctx.made_in = axis, current_phase()
        output = piece.new_empty((axis.size * len(piece), *piece.shape[1:]))
        axis.all_gather(output, piece.contiguous(), phase).wait()
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _ReduceScatter.apply(cotangent, ctx.axis, backward_phase(ctx.made_in)), None, None


class _ReduceScatter(Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, axis: Axis, phase: str) -> Tensor:
        ctx.axis, ctx.made_in = axis, current_phase()
        assert len(whole) % axis.size == 0, (axis.name, tuple(whole.shape), axis.size)
        output = whole.new_empty((len(whole) // axis.size, *whole.shape[1:]))
        axis.reduce_scatter(output, whole.contiguous(), phase).wait()
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _AllGather.apply(cotangent, ctx.axis, backward_phase(ctx.made_in)), None, None


class _AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis, phase: str) -> Tensor:
        ctx.axis, ctx.made_in = axis, current_phase()
        output = tensor.clone(memory_format=torch.contiguous_format)
        axis.all_reduce(output, "sum", phase).wait()
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _AllReduce.apply(cotangent, ctx.axis, backward_phase(ctx.made_in)), None, None
