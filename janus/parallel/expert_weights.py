"""Weights of experts on the move: what a rank keeps, how others' are restored here, how gradients return to them.

One all-to-all restores the weights of the experts that a plan gives to each rank, as a matrix [m, 3 d h] with a row
(inner, outer) per expert; one in the loss's backward takes the gradients home, where they are summed. The matrix may be
registered as a gathered buffer (``gathered.py``), to be freed and restored. It does not own the plan.
Legend: m experts restored here, n ranks, d width, h hidden channels, X experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from janus.kernels import pool
from janus.model.experts import MixtureOfExperts
from janus.parallel.axis import Axis, Pending
from janus.parallel.gathered import GatheredBuffer, GatheredBuffers
from janus.parallel.ledger import backward_phase, current_phase
from janus.placement import ExpertPlan, ExpertShape, Strategy, blocks, division


def kept_parts(whole: Tensor, axis: Axis, strategy: Strategy) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """What this rank keeps of all experts' matrices [X, a, b], and its ranges of the flattened whole.

    "tokens": whole experts [x, a, b]; "weights": a range of each [X, c].
    """
    num_experts, matrix_numel = len(whole), whole[0].numel()
    if strategy == "tokens" or axis.size == 1:
        start, stop = blocks(num_experts, axis.size)[axis.index : axis.index + 2].tolist()
        return whole[start:stop], ((start * matrix_numel, stop * matrix_numel),) if stop > start else ()
    start, stop = blocks(matrix_numel, axis.size)[axis.index : axis.index + 2].tolist()
    rows = range(num_experts) if stop > start else ()
    chunks = tuple((row * matrix_numel + start, row * matrix_numel + stop) for row in rows)
    return whole.flatten(1)[:, start:stop], chunks


class WeightMover:
    """Moves one mixture's weights as the plan of the micro-batch says."""

    def __init__(self, axis: Axis, strategy: Strategy, shape: ExpertShape) -> None:
        self.axis, self.strategy, self.shape = axis, strategy, shape
        self._division = division(strategy, shape, axis.size)
        self._plan: ExpertPlan | None = None
        self._mixture: MixtureOfExperts | None = None
        self._buffers: GatheredBuffers | None = None
        self._buffer: GatheredBuffer | None = None
        self.handed_out: list[Tensor] = []  # per rank: places of its experts among those kept here
        self.num_restored: list[int] = []  # per rank: experts restored here of which it keeps something

    def register(self, mixture: MixtureOfExperts, buffers: GatheredBuffers, block: int) -> None:
        """Free the restored weights after use: they belong to this block from now on."""
        self._mixture, self._buffers = mixture, buffers
        self._buffer = buffers.add(block, lambda phase: self.start(mixture.inner, mixture.outer, phase))

    def aim(self, plan: ExpertPlan) -> None:
        """Follow this plan from now on; what was restored by the one before is let go."""
        if self._buffer is not None:
            self._buffer.free()
        self._plan, index = plan, self.axis.index
        restored = [np.flatnonzero(needed) for needed in plan.restored]
        if self.strategy == "weights":
            self.handed_out = [torch.from_numpy(experts) for experts in restored]
            self.num_restored = [len(restored[index])] * self.axis.size
        else:
            first = int(self._division[0, index])
            self.handed_out = [torch.from_numpy(experts[plan.home[experts] == index] - first) for experts in restored]
            self.num_restored = np.bincount(plan.home[restored[index]], minlength=self.axis.size).tolist()

    @property
    def part_numels(self) -> list[tuple[int, int]]:
        """Per rank: numbers of inner and of outer in a row that it sends."""
        if self.strategy == "weights":
            return [(int(i), int(o)) for i, o in np.diff(self._division).T]
        half = self.shape.width * self.shape.hidden
        return [(2 * half, half)] * self.axis.size

    def prefetch(self) -> None:
        """Begin to restore what is registered under block 0, before the forward pass asks for it."""
        if self._buffers is not None and self._buffer is not None and self._buffer.block == 0:
            self._buffers.prefetch(self._buffer, "FE")

    def restored(self, mixture: MixtureOfExperts) -> tuple[Tensor, Tensor]:
        """inner [m,2h,d] and outer [m,d,h] of the experts restored here; their gradients go home."""
        return _Restored.apply(mixture.inner, mixture.outer, self)

    def whole(self, inner: Tensor, outer: Tensor) -> Tensor:
        """The restored matrix [m, 3 d h]."""
        if self._buffers is not None and self._buffer is not None:
            return self._buffers.use(self._buffer)
        whole, pending = self.start(inner, outer, current_phase())
        pending.wait()
        return whole

    def start(self, inner: Tensor, outer: Tensor, phase: str) -> tuple[Tensor, Pending]:
        """Start to fill a new [m, 3 d h]; nothing is sent where the plan moves no weights."""
        num_experts = self.num_restored[0] if self.strategy == "weights" else sum(self.num_restored or [0])
        if self._plan is None or not self._plan.moves_weights:
            return inner.new_empty(0, self.shape.num_weights), Pending()
        with torch.no_grad():
            places = torch.cat(self.handed_out).to(inner.device)
            rows = torch.cat([inner.flatten(1)[places], outer.flatten(1)[places]], dim=1).flatten()
        numels = [sum(pair) for pair in self.part_numels]
        sent = [len(places) * numels[self.axis.index] for places in self.handed_out]
        arriving = [count * numel for count, numel in zip(self.num_restored, numels, strict=True)]
        arrived = _room(num_experts, self.shape.num_weights, inner)
        pending = self.axis.all_to_all(arrived.view(-1), rows, arriving, sent, phase)
        if self.strategy == "tokens":
            return arrived, Pending(lambda held=rows: pending.wait())
        whole = _room(num_experts, self.shape.num_weights, inner)

        def place(held: Tensor = rows) -> None:
            pending.wait()
            messages = arrived.view(-1).split(arriving)
            for message, numel, columns in zip(messages, numels, self._columns(whole), strict=True):
                at = 0
                for part in columns:
                    part.copy_(message.view(num_experts, numel)[:, at : at + part.shape[1]])
                    at += part.shape[1]

        return whole, Pending(place)

    def _columns(self, whole: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of [m, 3 d h]: the columns of inner and of outer that each rank keeps."""
        inner, outer = self._division.tolist()
        shift = inner[-1]
        return [
            (whole[:, inner[rank] : inner[rank + 1]], whole[:, shift + outer[rank] : shift + outer[rank + 1]])
            for rank in range(self.axis.size)
        ]

    def views(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """inner [m,2h,d] and outer [m,d,h] in [m, 3 d h]."""
        width, hidden = self.shape.width, self.shape.hidden
        return (
            whole[:, : 2 * hidden * width].view(-1, 2 * hidden, width),
            whole[:, 2 * hidden * width :].view(-1, width, hidden),
        )

    def gradients_home(self, by_inner: Tensor, by_outer: Tensor, like: tuple[Tensor, Tensor], phase: str) -> Any:
        """Gradients of restored weights [m,2h,d], [m,d,h] -> sums of them at home, like ``like``.

        None where nothing was lent and experts that live here have gradients of their own ("tokens").
        """
        rows = torch.cat([by_inner.flatten(1), by_outer.flatten(1)], dim=1)
        if self.strategy == "weights":
            rows = torch.cat([torch.cat(columns, dim=1).view(-1) for columns in self._columns(rows)])
        numels = [sum(pair) for pair in self.part_numels]
        mine = numels[self.axis.index]
        arriving = [len(places) * mine for places in self.handed_out]
        sent = [count * numel for count, numel in zip(self.num_restored, numels, strict=True)]
        arrived = rows.new_empty(sum(arriving))
        self.axis.all_to_all(arrived, rows.view(-1), arriving, sent, phase).wait()
        places = torch.cat(self.handed_out).to(rows.device)
        if self.strategy == "tokens" and not len(places):
            return None, None
        arrived = arrived.view(len(places), mine)
        inner_numel = self.part_numels[self.axis.index][0]
        return tuple(
            rows.new_zeros(len(parameter), parameter.flatten(1).shape[1]).index_add_(0, places, part).view_as(parameter)
            for parameter, part in zip(like, (arrived[:, :inner_numel], arrived[:, inner_numel:]), strict=True)
        )


def _room(num_rows: int, num_columns: int, like: Tensor) -> Tensor:
    if like.device.type == "cpu":
        return pool.empty(num_rows, num_columns, like=like)
    return like.new_empty(num_rows, num_columns)


class _Restored(Function):
    """The parts that this rank keeps -> the matrices restored here; backward: gradients return to where they are kept.

    The parts themselves have no second derivative: nothing differentiates a gradient of parameters.
    """

    @staticmethod
    def forward(ctx: Any, inner: Tensor, outer: Tensor, mover: WeightMover) -> tuple[Tensor, Tensor]:
        ctx.mover, ctx.like, ctx.made_in = mover, (inner.detach(), outer.detach()), current_phase()
        return mover.views(mover.whole(inner.detach(), outer.detach()).detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_inner: Tensor, by_outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gradients = ctx.mover.gradients_home(by_inner, by_outer, ctx.like, backward_phase(ctx.made_in))
        return (*gradients, None)
