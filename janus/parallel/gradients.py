"""Sums gradients over the ranks that hold equal copies of a parameter, while the backward still runs.

The loss is normalised over the global batch already, so gradients are summed, never averaged. It does not own the loss,
nor the sum over the ranks among which a parameter is divided (``sharding.py``, ``experts.py``).

A *stage* is what one all-reduce sums, and what the optimizer can update at once: a sharded unit's gradient as it lies,
or a bucket of at most ``bucket_bytes`` of other parameters with the same axis of copies. During the backward of the
last micro-batch a stage starts as soon as it is complete and all stages before it on its axis have started: one fixed
order on all ranks, from the last block down to the root. What has not started by then (a rank without micro-batches, a
parameter that the loss does not reach: zeros) starts in ``finish``. Over c copies, b bytes of a stage:

    all-reduce, phase "sync"   floor(2 (c-1) b / c) per stage and step, one call each, however many micro-batches
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from janus.parallel.axis import Axis, Pending
from janus.parallel.pieces import Piece
from janus.parallel.sharding import ShardedParameters, ShardedUnit

_IN_BLOCK = re.compile(r"blocks\.(\d+)\.")
ROOT = -1  # stands for the block number of what is outside blocks


def block_of(name: str) -> int:
    """The block that a parameter of the whole model belongs to, or ROOT."""
    match = _IN_BLOCK.match(name)
    return int(match[1]) if match else ROOT


class _Stage(ABC):
    """Gradients that one all-reduce sums. block: the lowest that it holds, which the backward reaches last."""

    def __init__(self, names: Sequence[str], axis: Axis, block: int) -> None:
        self.names, self.axis, self.block = list(names), axis, block
        self.is_started = False
        self._pending = Pending()

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether the last micro-batch has added its gradients."""

    def start(self) -> None:
        """Begin to sum what is there."""
        assert not self.is_started, self.names
        self.is_started = True
        if self.axis.size > 1:
            self._pending = self.axis.all_reduce(self._flat(), phase="sync")

    def finish(self) -> None:
        """Wait for the sum; it is in the parameters' ``grad`` then."""
        self._pending.wait()
        self.is_started = False

    @abstractmethod
    def _flat(self) -> Tensor:
        """The gradients as one tensor, which is summed in place."""


class _UnitStage(_Stage):
    """The gradient of a sharded unit: summed in place."""

    def __init__(self, unit: ShardedUnit) -> None:
        block = ROOT if unit.block is None else unit.block
        super().__init__([piece.name for piece in unit.pieces], unit.copies, block)
        self.unit, self.is_reduced = unit, False

    @property
    def is_complete(self) -> bool:
        return self.is_reduced

    def start(self) -> None:
        if self.unit.gradient() is None:
            self.unit.fill_gradient()
        super().start()

    def finish(self) -> None:
        super().finish()
        self.is_reduced = False

    def _flat(self) -> Tensor:
        gradient = self.unit.gradient()
        assert gradient is not None
        return gradient


class _BucketStage(_Stage):
    """Gradients of undivided parameters, copied together; their ``grad`` become views of the sum."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        names = [piece.name for piece in pieces]
        super().__init__(names, pieces[0].copies, min(block_of(name) for name in names))
        self.parameters = [piece.parameter for piece in pieces]
        self.num_missing = len(pieces)

    @property
    def is_complete(self) -> bool:
        return self.num_missing == 0

    def start(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        super().start()

    def finish(self) -> None:
        super().finish()
        self.num_missing = len(self.parameters)

    def _flat(self) -> Tensor:
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in self.parameters])
        start = 0
        for parameter in self.parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return flat


class GradientSums:
    """Sums the gradients of pieces over their copies, stage by stage.

    stages: names of this rank's parameters in each, in the order of their sums. The ranks of one axis of copies hold
    equal pieces, in the same order, so they start the same sums; ranks on different axes may differ in number.
    """

    def __init__(
        self, pieces: Mapping[str, Piece], sharded: ShardedParameters | None = None, *, bucket_bytes: int
    ) -> None:
        units = [] if sharded is None else sharded.units
        self._settle: Callable[[], None] = (lambda: None) if sharded is None else sharded.settle
        in_units = {piece.name for unit in units for piece in unit.pieces}
        unit_stages = {unit: _UnitStage(unit) for unit in units}
        buckets = _buckets([piece for name, piece in pieces.items() if name not in in_units], bucket_bytes)
        # the backward ends with the root; a block's own parameters are complete before its unit's sum has arrived
        self._stages: list[_Stage] = sorted(
            [*buckets, *unit_stages.values()], key=lambda stage: (-stage.block, isinstance(stage, _UnitStage))
        )
        self.stages: list[list[str]] = [stage.names for stage in self._stages]
        self._is_last = False
        for bucket in buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._counting(bucket))
        if sharded is not None:
            assert sharded.on_reduced is None, "these units' gradients are summed already"
            sharded.on_reduced = lambda unit, phase: self._unit_reduced(unit_stages[unit], phase)

    @contextmanager
    def last_micro_batch(self) -> Iterator[None]:
        """Around the last backward of a step (its forward may be inside): what is complete starts to be summed."""
        self._settle()  # the reduce-scatter that the micro-batch before has left under way
        self._is_last = True
        try:
            yield
            self._settle()
        finally:
            self._is_last = False

    def finish(self) -> Iterator[int]:
        """Complete every sum, on all ranks; yields the number of each stage as it is complete, later ones in flight.

        To be exhausted: ``for stage in sums.finish(): step_stage(optimizer, stage)``.
        """
        self._settle()
        for stage in self._stages:
            if not stage.is_started:
                stage.start()
        for number, stage in enumerate(self._stages):
            stage.finish()
            yield number

    def _counting(self, bucket: _BucketStage) -> Callable[[Tensor], None]:
        def count(_: Tensor) -> None:
            assert not bucket.is_started, f"a gradient came after the sum of {bucket.names} had started"
            if self._is_last:
                bucket.num_missing -= 1
                self._start_complete(bucket.axis)

        return count

    def _unit_reduced(self, stage: _UnitStage, phase: str) -> None:
        assert not stage.is_started, f"a gradient came after the sum of block {stage.block} had started"
        if self._is_last and phase == "BE":  # with recomputation BF adds to it first
            stage.is_reduced = True
            self._start_complete(stage.axis)

    def _start_complete(self, axis: Axis) -> None:
        """Start the stages at the head of the axis's queue that are complete."""
        for stage in self._stages:
            if stage.axis is axis and not stage.is_started:
                if not stage.is_complete:
                    return
                stage.start()


def _buckets(pieces: Sequence[Piece], bucket_bytes: int) -> list[_BucketStage]:
    """Pieces in the order in which their gradients appear, by axis of copies, at most ``bucket_bytes`` together."""
    groups: list[list[Piece]] = []
    open_groups: dict[int, tuple[list[Piece], int]] = {}
    for _, piece in sorted(enumerate(pieces), key=lambda item: (-block_of(item[1].name), -item[0])):
        group, room = open_groups.get(id(piece.copies), ([], 0))
        size = piece.parameter.numel() * piece.parameter.element_size()
        if size > room or not group:
            group, room = [], bucket_bytes
            groups.append(group)
        group.append(piece)
        open_groups[id(piece.copies)] = group, room - size
    return [_BucketStage(group) for group in groups]
