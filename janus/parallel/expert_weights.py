"""Weights of experts on the move: what a rank keeps, how others' are restored here, how gradients return to them.

One all-to-all restores the weights of the experts that a plan gives to each rank, as a matrix [m, 3 d h] with a row
(inner, outer) per expert; one in the loss's backward takes the gradients home, where they are summed. The
matrix may be registered as a gathered buffer (``gathered.py``), to be freed and restored: it is then fetched while the
block before runs, else while what lies between ``borrow`` and ``finish`` is computed. It does not own the plan.
Legend: m experts restored here, n ranks, d width, h hidden channels, X experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Shipment:
    """One plan's all-to-all of weights on this rank, in numbers: sent and arriving [n].

    places: of the experts handed out, among those kept here, by receiving rank; num_experts: m.
    """

    places: Tensor
    sent: tuple[int, ...]
    arriving: tuple[int, ...]
    num_experts: int


class WeightMover:
    """Moves one mixture's weights as the plan of the micro-batch says."""

    def __init__(self, axis: Axis, strategy: Strategy, shape: ExpertShape) -> None:
        self.axis, self.strategy, self.shape = axis, strategy, shape
        self._division = division(strategy, shape, axis.size)
        self._shipment: _Shipment | None = None
        self._buffers: GatheredBuffers | None = None
        self._buffer: GatheredBuffer | None = None

    def register(self, mixture: MixtureOfExperts, buffers: GatheredBuffers, block: int) -> None:
        """Free the restored weights after use: they belong to this block from now on."""
        self._buffers = buffers
        self._buffer = buffers.add(block, lambda phase: self.restore(mixture.inner, mixture.outer, phase))

    def aim(self, plan: ExpertPlan, device: torch.device) -> None:
        """Follow this plan from now on; what was restored by the one before is let go. Block 0 is fetched at once."""
        if self._buffer is not None:
            self._buffer.free()
        self._shipment = self._shipment_of(plan, device) if plan.moves_weights else None
        if self._buffers is not None and self._buffer is not None and self._buffer.block == 0:
            self._buffers.prefetch(self._buffer, "FE")

    def borrow(self, mixture: MixtureOfExperts) -> Loan:
        """Start to restore the weights."""
        loan = Loan(self)
        loan.edge = _Start.apply(mixture.inner, mixture.outer, loan)
        return loan

    def restore(self, inner: Tensor, outer: Tensor, phase: str) -> tuple[Tensor, Pending]:
        """Start to fill a new [m, 3 d h] from what every rank keeps; nothing is sent where the plan moves none."""
        shipment, row_numel = self._shipment, self.shape.num_weights
        if shipment is None:
            return inner.new_empty(0, row_numel), Pending()
        with torch.no_grad():
            rows = torch.cat([inner.flatten(1)[shipment.places], outer.flatten(1)[shipment.places]], dim=1)
        arrived = _room(shipment.num_experts, row_numel, inner)
        pending = self.axis.all_to_all(arrived.view(-1), rows.view(-1), shipment.arriving, shipment.sent, phase)
        if self.strategy == "tokens":  # whole rows, by home and thereby by expert
            return arrived, Pending(lambda held=rows: pending.wait())
        whole = _room(shipment.num_experts, row_numel, inner)

        def place(held: Tensor = rows) -> None:
            pending.wait()
            for message, columns in zip(arrived.view(-1).split(shipment.arriving), self._columns(whole), strict=True):
                widths = [part.shape[1] for part in columns]
                parts = message.view(shipment.num_experts, sum(widths)).split(widths, dim=1)
                for part, values in zip(columns, parts, strict=True):
                    part.copy_(values)

        return whole, Pending(place)

    def restored(self, inner: Tensor, outer: Tensor) -> tuple[Tensor, Pending]:
        """The matrix [m, 3 d h], maybe on its way: the registered one, or a new one."""
        if self._buffers is not None and self._buffer is not None:
            return self._buffers.use(self._buffer), Pending()
        return self.restore(inner, outer, current_phase())

    def views(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """inner [m,2h,d] and outer [m,d,h] in [m, 3 d h]."""
        width, hidden = self.shape.width, self.shape.hidden
        inner, outer = whole.split([2 * hidden * width, hidden * width], dim=1)
        return inner.view(-1, 2 * hidden, width), outer.view(-1, width, hidden)

    def send_home(self, by_inner: Tensor, by_outer: Tensor, phase: str) -> tuple[Tensor, Pending]:
        """Start to return gradients of restored weights; the numbers that arrive, a row per expert handed out."""
        shipment = self._shipment
        assert shipment is not None, "gradients of weights that no plan has moved"
        rows = torch.cat([by_inner.flatten(1), by_outer.flatten(1)], dim=1)
        if self.strategy == "weights":
            rows = torch.cat([torch.cat(columns, dim=1).view(-1) for columns in self._columns(rows)])
        arrived = rows.new_empty(sum(shipment.sent))
        pending = self.axis.all_to_all(arrived, rows.view(-1), shipment.sent, shipment.arriving, phase)
        return arrived, Pending(lambda held=rows: pending.wait())

    def sums(self, arrived: Tensor, kept: tuple[Tensor, Tensor]) -> Iterator[Tensor | None]:
        """Gradients of what is kept here (inner, outer) from those that arrived.

        None where nothing was handed out and experts that live here have gradients of their own ("tokens").
        """
        shipment = self._shipment
        assert shipment is not None, "gradients of weights that no plan has moved"
        places, widths = shipment.places, [part.flatten(1).shape[1] for part in kept]
        for part, values in zip(kept, arrived.view(len(places), sum(widths)).split(widths, dim=1), strict=True):
            if self.strategy == "tokens" and not len(places):
                yield None
            else:
                total = arrived.new_zeros(len(part), values.shape[1])
                yield total.index_add_(0, places, values).view_as(part)

    def _shipment_of(self, plan: ExpertPlan, device: torch.device) -> _Shipment:
        index, num_ranks = self.axis.index, self.axis.size
        restored = [np.flatnonzero(needed) for needed in plan.restored]
        if self.strategy == "weights":
            places, numels = restored, np.diff(self._division).sum(axis=0)
            counts = np.full(num_ranks, len(restored[index]))
        else:
            first, numels = int(self._division[0, index]), np.full(num_ranks, self.shape.num_weights)
            places = [experts[plan.home[experts] == index] - first for experts in restored]
            counts = np.bincount(plan.home[restored[index]], minlength=num_ranks)
        return _Shipment(
            places=torch.from_numpy(np.concatenate(places)).to(device),
            sent=tuple(len(some) * int(numels[index]) for some in places),
            arriving=tuple((counts * numels).tolist()),
            num_experts=len(restored[index]),
        )

    def _columns(self, whole: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of [m, 3 d h]: the columns of inner and of outer that each rank keeps."""
        inner, outer = self._division.tolist()
        shift = inner[-1]
        return [
            (whole[:, inner[rank] : inner[rank + 1]], whole[:, shift + outer[rank] : shift + outer[rank + 1]])
            for rank in range(self.axis.size)
        ]


class Loan:
    """Weights on their way to this rank, and later their gradients on the way home."""

    def __init__(self, mover: WeightMover) -> None:
        self.mover = mover
        self.edge: Tensor | None = None  # what the autograd graph sees between start and finish
        self.weights: tuple[Tensor, Pending] | None = None
        self.gradients: tuple[Tensor, Pending] | None = None

    def finish(self) -> tuple[Tensor, Tensor]:
        """inner [m,2h,d] and outer [m,d,h] of the experts restored here; their gradients go home."""
        return _Finish.apply(self.edge, self)


def _room(num_rows: int, num_columns: int, like: Tensor) -> Tensor:
    if like.device.type == "cpu":
        return pool.empty(num_rows, num_columns, like=like)
    return like.new_empty(num_rows, num_columns)


class _Start(Function):
    """What this rank keeps -> an edge of the graph; backward: the gradients that have come home.

    Weights have no second derivative: nothing differentiates a gradient of parameters.
    """

    @staticmethod
    def forward(ctx: Any, inner: Tensor, outer: Tensor, loan: Loan) -> Tensor:
        ctx.loan, ctx.kept = loan, (inner.detach(), outer.detach())
        loan.weights = loan.mover.restored(*ctx.kept)
        return inner.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, edge: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.loan.gradients is not None, "gradients of moved weights were not sent home"
        (arrived, pending), ctx.loan.gradients = ctx.loan.gradients, None
        pending.wait()
        return (*ctx.loan.mover.sums(arrived, ctx.kept), None)


class _Finish(Function):
    """The edge -> the matrices restored here; backward: their gradients start on the way home."""

    @staticmethod
    def forward(ctx: Any, edge: Tensor, loan: Loan) -> tuple[Tensor, Tensor]:
        ctx.loan, ctx.made_in = loan, current_phase()
        assert loan.weights is not None, "moved weights were finished twice"
        (whole, pending), loan.weights = loan.weights, None
        pending.wait()
        return loan.mover.views(whole.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_inner: Tensor, by_outer: Tensor) -> tuple[Tensor, None]:
        ctx.loan.gradients = ctx.loan.mover.send_home(by_inner, by_outer, backward_phase(ctx.made_in))
        return by_inner.new_zeros(()), None
