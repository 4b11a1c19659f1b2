"""Differentiable collectives over an axis, at once or started and finished apart, exact to any order of derivative.

The differentiated scalar is the sum over ranks of the local scalars; each backward is the true adjoint of its
collective, made of the same differentiable operators, so that a backward with ``create_graph`` can be differentiated
again:

    all_to_all(rows, out, in)   adjoint  all_to_all(rows, in, out)
    all_gather                  adjoint  reduce_scatter
    reduce_scatter              adjoint  all_gather
    all_reduce                  adjoint  all_reduce

``finish(start_x(...))`` equals ``x(...)``. What lies between the two runs while the tensors travel, in all phases: in
a backward the adjoint starts where the forward finished and is waited for where the forward started.

All ranks of the axis start and finish the same collectives in one order, whatever their counts, and all or none of
them with an operand that requires a gradient. An axis of one rank: the operand itself is returned, without an autograd
node. Under recomputation (``janus/model/recompute.py``) start and finish belong into the same block. It does not own
how tensors travel (``axis.py`` and the transports).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from janus.parallel.axis import Axis
from janus.parallel.compression import Compression
from janus.parallel.ledger import backward_phase, current_phase


def all_to_all(
    rows: Tensor,
    axis: Axis,
    output_rows: Sequence[int],
    input_rows: Sequence[int],
    compression: Compression | None = None,
) -> Tensor:
    """Rows to every rank: rows [sum(input_rows), ...] -> [sum(output_rows), ...], in rank order of their sources.

    compression: rows for other ranks travel in 16 bits, in the backward too (an axis of one rank: no effect).
    """
    return _at_once(rows, _AllToAll(axis, tuple(output_rows), tuple(input_rows), compression))


def all_gather(piece: Tensor, axis: Axis) -> Tensor:
    """Pieces [b, ...] of all ranks, equal in shape -> [n b, ...], in rank order."""
    return _at_once(piece, _AllGather(axis))


def reduce_scatter(whole: Tensor, axis: Axis) -> Tensor:
    """Sum over ranks of whole [n b, ...] -> this rank's piece of it [b, ...]."""
    return _at_once(whole, _ReduceScatter(axis))


def all_reduce(tensor: Tensor, axis: Axis) -> Tensor:
    """Sum over ranks, same shape, the same on all ranks."""
    return _at_once(tensor, _AllReduce(axis))


def start_all_to_all(
    rows: Tensor,
    axis: Axis,
    output_rows: Sequence[int],
    input_rows: Sequence[int],
    compression: Compression | None = None,
) -> Started:
    """Start ``all_to_all``; its result is ``finish`` of what this returns."""
    return _start(rows, _AllToAll(axis, tuple(output_rows), tuple(input_rows), compression))


def start_all_gather(piece: Tensor, axis: Axis) -> Started:
    """Start ``all_gather``."""
    return _start(piece, _AllGather(axis))


def start_reduce_scatter(whole: Tensor, axis: Axis) -> Started:
    """Start ``reduce_scatter``."""
    return _start(whole, _ReduceScatter(axis))


def start_all_reduce(tensor: Tensor, axis: Axis) -> Started:
    """Start ``all_reduce``."""
    return _start(tensor, _AllReduce(axis))


@dataclass(frozen=True)
class Started:
    """A collective under way. edge: what the autograd graph sees of it; flight: None where nothing travels."""

    edge: Tensor
    flight: _Flight | None


def finish(started: Started) -> Tensor:
    """The result of a started collective, once it is complete. Once per start."""
    return started.edge if started.flight is None else _Finish.apply(started.edge, started.flight)


class _Move(Protocol):
    """A linear collective. ``launch`` starts it and returns what waits for its result."""

    axis: Axis

    def launch(self, operand: Tensor, phase: str) -> Callable[[], Tensor]: ...

    def adjoint(self) -> _Move: ...


@dataclass(frozen=True)
class _AllToAll:
    axis: Axis
    output_rows: tuple[int, ...]
    input_rows: tuple[int, ...]
    compression: Compression | None = None

    def launch(self, operand: Tensor, phase: str) -> Callable[[], Tensor]:
        if self.compression is not None:
            return self.compression.launch(operand, self.axis, self.output_rows, self.input_rows, phase)
        rows = operand.contiguous()
        output = rows.new_empty((sum(self.output_rows), *rows.shape[1:]))
        return _result(self.axis.all_to_all(output, rows, self.output_rows, self.input_rows, phase).wait, output, rows)

    def adjoint(self) -> _AllToAll:
        compression = None if self.compression is None else self.compression.adjoint()
        return _AllToAll(self.axis, self.input_rows, self.output_rows, compression)


@dataclass(frozen=True)
class _AllGather:
    axis: Axis

    def launch(self, operand: Tensor, phase: str) -> Callable[[], Tensor]:
        piece = operand.contiguous()
        output = piece.new_empty((self.axis.size * len(piece), *piece.shape[1:]))
        return _result(self.axis.all_gather(output, piece, phase).wait, output, piece)

    def adjoint(self) -> _Move:
        return _ReduceScatter(self.axis)


@dataclass(frozen=True)
class _ReduceScatter:
    axis: Axis

    def launch(self, operand: Tensor, phase: str) -> Callable[[], Tensor]:
        assert len(operand) % self.axis.size == 0, (self.axis.name, tuple(operand.shape), self.axis.size)
        whole = operand.contiguous()
        output = whole.new_empty((len(whole) // self.axis.size, *whole.shape[1:]))
        return _result(self.axis.reduce_scatter(output, whole, phase).wait, output, whole)

    def adjoint(self) -> _Move:
        return _AllGather(self.axis)


@dataclass(frozen=True)
class _AllReduce:
    axis: Axis

    def launch(self, operand: Tensor, phase: str) -> Callable[[], Tensor]:
        output = operand.clone(memory_format=torch.contiguous_format)
        return _result(self.axis.all_reduce(output, "sum", phase).wait, output, output)

    def adjoint(self) -> _Move:
        return self


def _result(wait: Callable[[], None], output: Tensor, operand: Tensor) -> Callable[[], Tensor]:
    """Waits, then gives the output. Holds the operand until then: a transport may still be reading it."""

    def result(held: Tensor = operand) -> Tensor:
        wait()
        return output

    return result


def _at_once(operand: Tensor, move: _Move) -> Tensor:
    return operand if move.axis.size == 1 else _Collective.apply(operand, move, current_phase())


def _start(operand: Tensor, move: _Move) -> Started:
    if move.axis.size == 1:
        return Started(operand, None)
    flight = _Flight(move)
    return Started(_Start.apply(operand, flight, current_phase()), flight)


class _Collective(Function):
    """operand -> the move's result; backward: the adjoint move, as this same operator."""

    @staticmethod
    def forward(ctx: Any, operand: Tensor, move: _Move, phase: str) -> Tensor:
        ctx.move, ctx.made_in = move, current_phase()
        return move.launch(operand.detach(), phase)()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _Collective.apply(cotangent, ctx.move.adjoint(), backward_phase(ctx.made_in)), None, None


class _Flight:
    """What travels from a start to its finish outside the graph. adjoint: from the finish's backward to the start's."""

    def __init__(self, move: _Move) -> None:
        self.move = move
        self.adjoint: _Flight | None = None
        self._result: Callable[[], Tensor] | None = None

    def take_off(self, operand: Tensor, phase: str) -> None:
        assert self._result is None, f"axis {self.move.axis.name}: a collective was started twice"
        self._result = self.move.launch(operand, phase)

    def land(self) -> Tensor:
        assert self._result is not None, f"axis {self.move.axis.name}: a collective was finished twice"
        result, self._result = self._result, None
        return result()

    def turn_round(self) -> _Flight:
        """The adjoint's flight, for the start's backward to take."""
        assert self.adjoint is None, f"axis {self.move.axis.name}: an adjoint is under way already"
        self.adjoint = _Flight(self.move.adjoint())
        return self.adjoint

    def take_adjoint(self) -> _Flight:
        assert self.adjoint is not None, f"axis {self.move.axis.name}: no adjoint is under way"
        adjoint, self.adjoint = self.adjoint, None
        return adjoint


class _Start(Function):
    """operand -> a scalar without a value, the graph's edge to ``_Finish``."""

    @staticmethod
    def forward(ctx: Any, operand: Tensor, flight: _Flight, phase: str) -> Tensor:
        ctx.flight = flight
        flight.take_off(operand.detach(), phase)
        return operand.new_zeros(())

    @staticmethod
    def backward(ctx: Any, edge: Tensor) -> tuple[Tensor, None, None]:
        return _Finish.apply(edge, ctx.flight.take_adjoint()), None, None


class _Finish(Function):
    """The edge -> the result of the flight."""

    @staticmethod
    def forward(ctx: Any, edge: Tensor, flight: _Flight) -> Tensor:
        ctx.flight, ctx.made_in = flight, current_phase()
        return flight.land()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return _Start.apply(cotangent, ctx.flight.turn_round(), backward_phase(ctx.made_in)), None
