"""Ranks as threads of one process: tests of distributed code at the speed of a function call.

A collective leaves a copy of its input under its number in the group's room and waits until every rank has left one;
the calls, sizes and dtypes of all ranks are compared. Each rank must build its own tensors and models (a parameter
shared between threads would gather the gradients of all of them), and random numbers from its own generator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from janus.parallel.axis import Axis, LoneAxis, Pending, Reduction
from janus.parallel.ledger import Ledger

Result = TypeVar("Result")
TIMEOUT_S = 60.0


class AbandonedError(Exception):
    """This rank waited for others, one of which failed or never came."""


@dataclass
class _Call:
    """One collective of one group: what each rank has left, and who has taken its result."""

    description: tuple[object, ...]
    inputs: dict[int, tuple[Tensor, list[int], list[int]]] = field(default_factory=dict)
    taken: int = 0


class _Job:
    """What the threads share: the rooms of all groups, one lock, and whether a rank has failed."""

    def __init__(self, num_ranks: int, timeout_s: float) -> None:
        self.num_ranks, self.timeout_s = num_ranks, timeout_s
        self.changed = threading.Condition()
        self.rooms: dict[tuple[object, ...], dict[int, _Call]] = {}
        self.failures: list[tuple[int, BaseException]] = []

    def wait_for(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """Inside ``changed``: until ready; raises when a rank has failed or the time is up."""
        deadline = time.monotonic() + self.timeout_s
        while not ready():
            if self.failures:
                raise AbandonedError(f"rank {self.failures[0][0]} failed during {what()}")
            if not self.changed.wait(deadline - time.monotonic()):
                raise AbandonedError(f"{what()}: not everybody came within {self.timeout_s} s")


class ThreadAxis(Axis):
    """An axis over threads. Results are exact and the same on all ranks: sums are taken in rank order."""

    def __init__(self, name: str, ranks: Sequence[int], index: int, ledger: Ledger, job: _Job, number: int) -> None:
        super().__init__(name, ranks, index, ledger)
        self._job = job
        with job.changed:
            self._room = job.rooms.setdefault((name, tuple(ranks), number), {})
        self._calls = 0

    def _all_to_all(self, output: Tensor, rows: Tensor, output_rows: list[int], input_rows: list[int]) -> Pending:
        assert len(rows) == sum(input_rows), (self.name, tuple(rows.shape), input_rows)
        assert len(output) == sum(output_rows), (self.name, tuple(output.shape), output_rows)

        def take(inputs: list[tuple[Tensor, list[int], list[int]]]) -> None:
            pieces = []
            for source, (sent, _, sent_rows) in enumerate(inputs):
                expected = output_rows[source]
                assert sent_rows[self.index] == expected, (
                    f"axis {self.name}: index {source} sends {sent_rows[self.index]} rows to index {self.index}, "
                    f"which expects {expected}"
                )
                pieces.append(sent.split(sent_rows)[self.index])
            output.copy_(torch.cat(pieces))

        row = ("all_to_all", tuple(rows.shape[1:]), rows.dtype)
        assert output.shape[1:] == rows.shape[1:], (self.name, tuple(output.shape), tuple(rows.shape))
        return self._meet(row, output, rows, take, output_rows, input_rows)

    def _all_gather(self, output: Tensor, piece: Tensor) -> Pending:
        def take(inputs: list[tuple[Tensor, list[int], list[int]]]) -> None:
            output.copy_(torch.cat([left for left, _, _ in inputs]))

        return self._meet(("all_gather", tuple(piece.shape), piece.dtype), output, piece, take)

    def _reduce_scatter(self, output: Tensor, whole: Tensor) -> Pending:
        def take(inputs: list[tuple[Tensor, list[int], list[int]]]) -> None:
            total = sum(left.chunk(self.size)[self.index] for left, _, _ in inputs)
            output.copy_(total)

        assert len(whole) == self.size * len(output), (self.name, tuple(whole.shape), tuple(output.shape))
        return self._meet(("reduce_scatter", tuple(whole.shape), whole.dtype), output, whole, take)

    def _all_reduce(self, tensor: Tensor, reduction: Reduction) -> Pending:
        def take(inputs: list[tuple[Tensor, list[int], list[int]]]) -> None:
            whole = torch.stack([left for left, _, _ in inputs])
            tensor.copy_(whole.sum(0) if reduction == "sum" else whole.amax(0))

        return self._meet(("all_reduce", reduction, tuple(tensor.shape), tensor.dtype), tensor, tensor, take)

    def _meet(
        self,
        description: tuple[object, ...],
        output: Tensor,
        left: Tensor,
        take: Callable[[list[tuple[Tensor, list[int], list[int]]]], None],
        output_rows: Sequence[int] = (),
        input_rows: Sequence[int] = (),
    ) -> Pending:
        """Leave a copy of the input; the Pending takes this rank's part once all have left theirs."""
        assert left.is_contiguous(), (self.name, description)
        assert output.is_contiguous(), (self.name, description)
        assert output.dtype == left.dtype, (self.name, output.dtype, left.dtype)
        number, self._calls = self._calls, self._calls + 1
        with self._job.changed:
            call = self._room.setdefault(number, _Call(description))
            assert call.description == description, (
                f"axis {self.name}, collective {number}: rank {self.ranks[self.index]} calls {description} "
                f"where another rank calls {call.description}"
            )
            call.inputs[self.index] = (left.detach().clone(), list(output_rows), list(input_rows))
            self._job.changed.notify_all()

        def missing() -> str:
            absent = [rank for index, rank in enumerate(self.ranks) if index not in call.inputs]
            return f"axis {self.name}, collective {number} {description}, absent ranks {absent}"

        def wait() -> None:
            with self._job.changed:
                self._job.wait_for(lambda: len(call.inputs) == self.size, missing)
                call.taken += 1
                if call.taken == self.size:
                    del self._room[number]
            with torch.no_grad():
                take([call.inputs[index] for index in range(self.size)])

        return Pending(wait)


class ThreadWorld:
    """One thread among ``size``. ledger: this rank's, shared by its axes."""

    def __init__(self, rank: int, job: _Job) -> None:
        self.rank, self.size, self._job, self.ledger = rank, job.num_ranks, job, Ledger()
        self._axes_made: dict[str, int] = {}

    def axis(self, name: str, groups: Sequence[Sequence[int]] | None = None) -> Axis:
        """This rank's axis. groups: partition of the ranks, or one group with this rank in it; None: all ranks."""
        groups = [range(self.size)] if groups is None else groups
        ranks = next(tuple(group) for group in groups if self.rank in group)
        number = self._axes_made[name] = self._axes_made.get(name, 0) + 1
        if len(ranks) == 1:
            return LoneAxis(name, self.rank, self.ledger)
        return ThreadAxis(name, ranks, ranks.index(self.rank), self.ledger, self._job, number)


def run_on_threads(
    num_ranks: int, function: Callable[[ThreadWorld], Result], *, timeout_s: float = TIMEOUT_S
) -> list[Result]:
    """Run ``function`` on every rank; returns the results in rank order.

    Raises the first exception of any rank, with a note that names the rank. timeout_s: longest wait in one collective.
    """
    job = _Job(num_ranks, timeout_s)
    results: list[Result | None] = [None] * num_ranks

    def work(rank: int) -> None:
        try:
            results[rank] = function(ThreadWorld(rank, job))
        except BaseException as error:
            with job.changed:
                job.failures.append((rank, error))
                job.changed.notify_all()

    threads = [
        threading.Thread(target=work, args=(rank,), name=f"rank-{rank}", daemon=True) for rank in range(num_ranks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if job.failures:
        rank, error = job.failures[0]
        error.add_note(f"on rank {rank} of {num_ranks}")
        raise error
    return results  # type: ignore[return-value]
