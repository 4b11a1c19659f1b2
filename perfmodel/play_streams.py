"""Plays a program of operations on many ranks: all at once by a recursion, or event by event where ranks share cores.

It owns the two players; their meaning is that of ``network/streams`` (a test holds them equal): an operation starts
when those before it in its stream and those it names are done, a collective when all ranks of its group have come. It
does not own which operations a step has (``step_events``).

Operations name earlier ones only and streams keep their order, so the times follow from one another in the order of the
program, for all ranks at once: with end[k, r] of operation k on rank r

    ready[k, r] = max(end of the operation before k in its stream, end of those it names)
    end[k, r]   = ready[k, r] + seconds[k, r], or the group's largest ready + seconds of a collective

Where ranks share cores (``play_shared``) running computations get min(1, cores / their number) of a core each, waiting
ranks none, and collectives need none.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.streams import Operation, Span

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Played:
    """finish_s [R]: end of each rank's last operation; spans: of every operation, where they were recorded."""

    finish_s: Floats
    spans: tuple[Span, ...] = field(default=(), repr=False)

    @property
    def step_s(self) -> float:
        return float(self.finish_s.max(initial=0.0))


@dataclass(frozen=True)
class _Group:
    """Groups of an axis, for their maxima: order of the ranks, where groups start in it, group of each rank."""

    order: Ints
    starts: Ints
    of_rank: Ints

    @classmethod
    def of(cls, numbers: Ints) -> _Group:
        order = np.argsort(numbers, kind="stable")
        _, starts, of_rank = np.unique(numbers[order], return_index=True, return_inverse=True)
        back = np.empty_like(of_rank)
        back[order] = of_rank
        return cls(order, starts, back)

    def largest(self, values: Floats) -> Floats:
        """The largest of its group, for every rank."""
        return np.asarray(np.maximum.reduceat(values[self.order], self.starts)[self.of_rank])


def play(
    program: Sequence[Operation], seconds: Sequence[Floats], groups: Mapping[str, Ints], *, record: bool = False
) -> Played:
    """Play a program on R ranks at once. seconds: of every operation on every rank [R]; groups: per axis [R]."""
    num_ranks = len(seconds[0]) if seconds else 0
    by_axis = {axis: _Group.of(np.asarray(numbers)) for axis, numbers in groups.items()}
    last_use = _last_uses(program)
    ends: dict[int, Floats] = {}
    stream_end: dict[str, Floats] = {}
    finish_s, spans = np.zeros(num_ranks), []
    for number, operation in enumerate(program):
        ready = stream_end.get(operation.stream, np.zeros(num_ranks))
        for before in operation.after:
            ready = np.maximum(ready, ends[before])
        if operation.axis is None:
            full, end = ready, ready + seconds[number]
        else:
            group = by_axis[operation.axis]
            full = group.largest(ready)
            end = full + group.largest(np.asarray(seconds[number]))
        stream_end[operation.stream] = end
        if last_use[number] > number:
            ends[number] = end
        for before in operation.after:
            if last_use[before] == number:
                ends.pop(before, None)
        np.maximum(finish_s, end, out=finish_s)
        if record:
            spans += _spans(operation, ready, full, end)
    return Played(finish_s=finish_s, spans=tuple(spans))


def _spans(operation: Operation, ready: Floats, full: Floats, end: Floats) -> list[Span]:
    return [
        Span(rank=rank, stream=operation.stream, name=operation.name, begin_s=float(ready[rank]),
             end_s=float(end[rank]), waited_s=float(full[rank] - ready[rank]))
        for rank in range(len(end)) if end[rank] > ready[rank]
    ]  # fmt: skip


def _last_uses(program: Sequence[Operation]) -> list[int]:
    last = list(range(len(program)))
    for number, operation in enumerate(program):
        for before in operation.after:
            assert before < number, f"{operation.name} waits for a later operation"
            last[before] = max(last[before], number)
    return last


def play_shared(
    program: Sequence[Operation],
    seconds: Sequence[Floats],
    groups: Mapping[str, Ints],
    cores: float,
    *,
    record: bool = False,
) -> Played:
    """Play a program on R ranks that share cores. seconds: of compute with a core of one's own, else of the clock."""
    return _Shared(program, seconds, groups, cores, record).run()


class _Shared:
    """The state of all streams of all ranks, in time."""

    def __init__(
        self, program: Sequence[Operation], seconds: Sequence[Floats], groups: Mapping[str, Ints], cores: float,
        record: bool,
    ) -> None:  # fmt: skip
        self.program, self.seconds, self.cores, self.record = program, seconds, cores, record
        self.num_ranks = len(seconds[0]) if seconds else 0
        self.groups = {axis: np.asarray(numbers).tolist() for axis, numbers in groups.items()}
        self.sizes = {axis: np.bincount(numbers).tolist() for axis, numbers in self.groups.items()}
        self.queues: dict[str, list[int]] = {}
        for number, operation in enumerate(program):
            self.queues.setdefault(operation.stream, []).append(number)
        self.next_of = [dict.fromkeys(self.queues, 0) for _ in range(self.num_ranks)]
        self.busy: list[set[str]] = [set() for _ in range(self.num_ranks)]
        self.done = [bytearray(len(program)) for _ in range(self.num_ranks)]
        self.running: dict[tuple[int, int], float] = {}  # (rank, operation): core seconds left
        self.arrived: dict[tuple[int, int], list[int]] = {}
        self.ready_s: dict[tuple[int, int], float] = {}
        self.full_s: dict[tuple[int, int], float] = {}
        self.collectives: list[tuple[float, int, list[int]]] = []  # heap of (end, operation, ranks)
        self.now_s = 0.0
        self.finish_s = np.zeros(self.num_ranks)
        self.spans: list[Span] = []

    def run(self) -> Played:
        for rank in range(self.num_ranks):
            self._start_what_can(rank)
        while self.running or self.collectives:
            self._advance()
        assert all(all(row) for row in self.done), "operations that wait for each other"
        return Played(finish_s=self.finish_s, spans=tuple(self.spans))

    def _advance(self) -> None:
        """To the next end of anything."""
        share = min(1.0, self.cores / len(self.running)) if self.running else 1.0
        compute_s = min(self.running.values()) / share if self.running else float("inf")
        clock_s = self.collectives[0][0] - self.now_s if self.collectives else float("inf")
        step_s = max(min(compute_s, clock_s), 0.0)
        self.now_s += step_s
        ended = []
        for key in self.running:
            self.running[key] -= step_s * share
            if self.running[key] <= 1e-12 or (step_s == compute_s and self.running[key] <= 1e-12 * self.now_s):
                ended.append(key)
        while self.collectives and self.collectives[0][0] <= self.now_s + 1e-15:
            _, number, ranks = heapq.heappop(self.collectives)
            ended += [(rank, number) for rank in ranks]
        for rank, number in ended:
            self.running.pop((rank, number), None)
            self._end(rank, number)
        for rank in {rank for rank, _ in ended}:
            self._start_what_can(rank)

    def _end(self, rank: int, number: int) -> None:
        operation = self.program[number]
        self.done[rank][number] = 1
        self.busy[rank].discard(operation.stream)
        self.next_of[rank][operation.stream] += 1
        self.finish_s[rank] = max(self.finish_s[rank], self.now_s)
        begin_s = self.ready_s.pop((rank, number))
        if self.record and self.now_s > begin_s:
            self.spans.append(Span(
                rank=rank, stream=operation.stream, name=operation.name, begin_s=begin_s, end_s=self.now_s,
                waited_s=self.full_s.pop((rank, number), begin_s) - begin_s,
            ))  # fmt: skip

    def _start_what_can(self, rank: int) -> None:
        """Start operations of a rank until none can be; those of no seconds end at once."""
        again = True
        while again:
            again = False
            for stream, numbers in self.queues.items():
                place = self.next_of[rank][stream]
                if stream in self.busy[rank] or place >= len(numbers):
                    continue
                number = numbers[place]
                if all(self.done[rank][before] for before in self.program[number].after):
                    again |= self._start(rank, number)

    def _start(self, rank: int, number: int) -> bool:
        """Whether it has ended already."""
        operation = self.program[number]
        self.busy[rank].add(operation.stream)
        self.ready_s[rank, number] = self.now_s
        if operation.axis is not None:
            self._arrive(rank, number, operation.axis)
            return False
        if self.seconds[number][rank] <= 0:
            self._end(rank, number)
            return True
        self.running[rank, number] = float(self.seconds[number][rank])
        return False

    def _arrive(self, rank: int, number: int, axis: str) -> None:
        group = self.groups[axis][rank]
        there = self.arrived.setdefault((number, group), [])
        there.append(rank)
        if len(there) == self.sizes[axis][group]:
            del self.arrived[number, group]
            seconds = max(float(self.seconds[number][one]) for one in there)
            for one in there:
                self.full_s[one, number] = self.now_s
            heapq.heappush(self.collectives, (self.now_s + seconds, number, there))
