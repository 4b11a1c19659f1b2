"""Grouped products: rows sorted by expert times that expert's matrix, one product per expert and no padding.

It owns the autograd rules of the grouped product, closed under differentiation: the product with W or with W^T, and the
outer product per expert, are each other's derivatives. It does not own which rows an expert gets.
Legend: R rows, X experts, a and b channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from janus.kernels import pool
from janus.kernels.wanted import parameter_gradients_wanted


def _parts(loads: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Expert and rows of each group that has any."""
    start = 0
    for expert, load in enumerate(loads):
        if load:
            yield expert, slice(start, start + load)
        start += load


class _GroupedProduct(Function):
    """rows [R,a], weights [X,b,a] -> rows W^T [R,b]; transposed: rows [R,b] -> rows W [R,a]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, loads: tuple[int, ...], transposed: bool) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.loads, ctx.transposed = loads, transposed
        out = pool.empty(len(rows), weights.shape[2 if transposed else 1], like=rows)
        for expert, part in _parts(loads):
            matrix = weights[expert] if transposed else weights[expert].T
            torch.mm(rows[part], matrix, out=out[part])
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights = ctx.saved_tensors
        grad_rows = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_rows = _GroupedProduct.apply(cotangent, weights, ctx.loads, not ctx.transposed)
        if ctx.needs_input_grad[1] and parameter_gradients_wanted():
            left, right = (rows, cotangent) if ctx.transposed else (cotangent, rows)
            grad_weights = _GroupedOuter.apply(left, right, ctx.loads)
        return grad_rows, grad_weights, None, None


class _GroupedOuter(Function):
    """left [R,b], right [R,a] -> left^T right of each expert's rows [X,b,a]; zero where it has none."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, loads: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.loads = loads
        out = pool.empty(len(loads), left.shape[1], right.shape[1], like=left)
        start = 0
        for expert, load in enumerate(loads):
            if load:
                part = slice(start, start + load)
                torch.mm(left[part].T, right[part], out=out[expert])
            else:
                out[expert].zero_()
            start += load
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        grad_left = grad_right = None
        if ctx.needs_input_grad[0]:
            grad_left = _GroupedProduct.apply(right, cotangent, ctx.loads, False)
        if ctx.needs_input_grad[1]:
            grad_right = _GroupedProduct.apply(left, cotangent, ctx.loads, True)
        return grad_left, grad_right, None


def grouped_product(rows: Tensor, weights: Tensor, loads: Sequence[int]) -> Tensor:
    """rows [R,a] sorted by expert, weights [X,b,a], loads [X] rows of each expert -> rows W^T [R,b]."""
    assert sum(loads) == len(rows), (sum(loads), len(rows))
    assert len(loads) == len(weights), (len(loads), len(weights))
    return _GroupedProduct.apply(rows, weights, tuple(loads), False)
