"""An axis of many ranks of which only this one exists, and the timeline of what this rank computes between its calls.

A collective is complete at once. Its output has the right shape and finite numbers: what was delivered beforehand where
the value matters (positions of ghosts, the composition of other ranks, parameters with a known whole), else this rank's
own rows in the places of the others'. Others' parts of a gathered parameter are own ones, no larger than
``LARGEST_COPY``; other ranks add nothing to a sum.

What is counted (``ledger.py``) is what a real rank counts, row by row. It does not own what a collective costs: the
timeline says when each one starts, when its result is wanted and what was computed in between
(``perfmodel/rehearsal.py`` plays it on a machine). The seconds that an axis takes to make its output are on no clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from janus.parallel.axis import Axis, Pending, Reduction
from janus.parallel.ledger import Ledger, current_phase

LARGEST_COPY = 0.1  # an own scale of 1 in a matrix of another rank would let numbers grow from block to block
Event = Literal["start", "wait", "mark"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One collective. phase: as the ledger counts it; received_bytes: what others hand to this rank."""

    phase: str
    axis: str
    collective: str
    ranks: int
    sent_bytes: int
    received_bytes: int

    def to_mapping(self) -> dict[str, Any]:
        return {"phase": self.phase, "axis": self.axis, "collective": self.collective, "ranks": self.ranks,
                "sent_bytes": self.sent_bytes, "received_bytes": self.received_bytes}  # fmt: skip


class Timeline:
    """Calls of this rank in order, and the seconds that it computed before each start, each wait and each mark.

    On a GPU seconds are those between events of its stream, read at the end: nothing is synchronised meanwhile.
    Nothing is kept until ``begin`` is called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_on = device, False
        self.calls: list[Call] = []
        self.during = "outside"
        self._events: list[tuple[Event, int | None, str, Any, Any]] = []
        self._resumed: Any = None

    def begin(self) -> None:
        """Forget what was, and keep everything from now on."""
        self.calls, self._events, self._is_on = [], [], True
        self._resumed = self._now()

    def end(self) -> list[dict[str, Any]]:
        """Stop. Rows of at ("start", "wait", "mark"), call (number; None of a mark), during (the phase of the
        trainer's timer in which the seconds were spent) and compute_s, since the row before.
        """
        self.record("mark", None)
        self._is_on = False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return [
            {"at": at, "call": call, "during": during, "compute_s": self._seconds(begin, until)}
            for at, call, during, begin, until in self._events
        ]

    def enter(self, phase: str) -> str:
        """The trainer's timer comes to another phase; returns the one before."""
        self.record("mark", None)
        before, self.during = self.during, phase
        return before

    def record(self, at: Event, call: int | None) -> None:
        """Close the interval of computing that ends here, and open the next one."""
        self.pause(at, call)
        self.resume()

    def pause(self, at: Event, call: int | None) -> None:
        """Close the interval of computing that ends here."""
        if self._is_on:
            self._events.append((at, call, self.during, self._resumed, self._now()))

    def resume(self) -> None:
        """Computing goes on."""
        if self._is_on:
            self._resumed = self._now()

    def start(self, call: Call) -> int | None:
        """A collective starts: its number. The clock stands until ``resume``."""
        if not self._is_on:
            return None
        self.calls.append(call)
        self.pause("start", len(self.calls) - 1)
        return len(self.calls) - 1

    def wait(self, number: int | None) -> None:
        """The result of a collective is wanted."""
        if number is not None:
            self.record("wait", number)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _seconds(self, begin: Any, until: Any) -> float:
        if self._device.type != "cuda":
            return max(0.0, until - begin)
        return max(0.0, begin.elapsed_time(until) / 1e3)


class RehearsedAxis(Axis):
    """This rank's group, without the others."""

    def __init__(self, name: str, ranks: Sequence[int], index: int, ledger: Ledger, timeline: Timeline) -> None:
        super().__init__(name, ranks, index, ledger)
        assert self.size > 1, f"axis {name} has one rank: use LoneAxis"
        self._timeline = timeline
        self._call: Call | None = None
        self._delivered: dict[str, deque[Tensor]] = {}
        self._wholes: dict[int, Tensor] = {}

    def deliver(self, collective: str, content: Tensor) -> None:
        """What the next call of a collective gives, in place of copies."""
        self._delivered.setdefault(collective, deque()).append(content)

    def know_whole(self, piece: Tensor, whole: Tensor) -> None:
        """What every gather of this very piece gives: whole [n b] of piece [b]."""
        assert len(whole) == self.size * len(piece), (self.name, len(whole), self.size, len(piece))
        self._wholes[piece.data_ptr()] = whole

    def known_wholes(self) -> list[Tensor]:
        """What is kept for ``know_whole``."""
        return list(self._wholes.values())

    def _count(self, collective: str, sent_bytes: int, phase: str) -> None:
        super()._count(collective, sent_bytes, phase)
        self._call = Call(
            phase=phase or current_phase(), axis=self.name, collective=collective, ranks=self.size,
            sent_bytes=sent_bytes, received_bytes=sent_bytes,
        )  # fmt: skip

    @torch.no_grad()
    def _all_to_all(self, output: Tensor, rows: Tensor, output_rows: list[int], input_rows: list[int]) -> Pending:
        assert len(rows) == sum(input_rows), (self.name, tuple(rows.shape), input_rows)
        assert len(output) == sum(output_rows), (self.name, tuple(output.shape), output_rows)
        row_bytes = output[:1].numel() * output.element_size() if len(output) else 0
        number = self._start((sum(output_rows) - output_rows[self.index]) * row_bytes)
        if not self._fill_delivered("all_to_all", output):
            for room, own in zip(output.split(output_rows), rows.split(input_rows), strict=True):
                fill_rows(room, own if len(own) else rows)
        return self._pending(number)

    @torch.no_grad()
    def _all_gather(self, output: Tensor, piece: Tensor) -> Pending:
        number = self._start((self.size - 1) * piece.nbytes)
        whole = self._wholes.get(piece.data_ptr()) if piece.numel() else None
        if whole is not None:
            output.copy_(whole)
        elif not self._fill_delivered("all_gather", output):
            places = output.view(self.size, *piece.shape)
            if piece.is_floating_point():
                torch.clamp(piece, -LARGEST_COPY, LARGEST_COPY, out=places[0])
            else:
                places[0].copy_(piece)
            for place in places[1:]:
                place.copy_(places[0])
            places[self.index].copy_(piece)
        return self._pending(number)

    @torch.no_grad()
    def _reduce_scatter(self, output: Tensor, whole: Tensor) -> Pending:
        assert len(whole) == self.size * len(output), (self.name, tuple(whole.shape), tuple(output.shape))
        number = self._start((self.size - 1) * output.nbytes)
        output.copy_(whole.chunk(self.size)[self.index])
        return self._pending(number)

    def _all_reduce(self, tensor: Tensor, reduction: Reduction) -> Pending:
        return self._pending(self._start(2 * (self.size - 1) * tensor.nbytes // self.size))

    def _start(self, received_bytes: int) -> int | None:
        call, self._call = self._call, None
        assert call is not None, f"axis {self.name}: a collective was not counted"
        return self._timeline.start(Call(**(call.to_mapping() | {"received_bytes": received_bytes})))

    def _pending(self, number: int | None) -> Pending:
        self._timeline.resume()
        return Pending(lambda: self._timeline.wait(number))

    def _fill_delivered(self, collective: str, output: Tensor) -> bool:
        waiting = self._delivered.get(collective)
        if not waiting:
            return False
        content = waiting.popleft()
        assert content.numel() == output.numel(), (self.name, collective, tuple(content.shape), tuple(output.shape))
        output.view(-1).copy_(content.reshape(-1))
        return True


def fill_rows(room: Tensor, own: Tensor) -> None:
    """own [r, ...] over and over -> room [q, ...]; zeros where there are no own rows.

    Rows in 16 bits begin with a header of exponents (``compression.py``), which is no number: they are not repeated.
    """
    if not len(own):
        room.zero_()
        return
    count = min(len(room), len(own))
    room[:count].copy_(own[:count])
    if room.dtype == torch.float16:
        room[count:].zero_()
        return
    while count < len(room):
        more = min(count, len(room) - count)
        room[count : count + more].copy_(room[:more])
        count += more
