"""Ranks with a compute stream and communication streams, played in SimPy: which communication a step cannot hide.

It owns the streams, what waits for what, and collectives as meetings of groups. It does not own what a collective costs
(``closed_form``, ``flow_events``: an operation brings its seconds) or which operations a training step has
(``training_step``).

Every rank runs the same program. An operation starts when those before it in its stream and those it names are done; a
collective also waits until all ranks of its group have come, then takes its seconds for all of them. Operations of
different streams do not slow each other down. All ranks that would do the same at the same time need only one to stand
for them: the caller hands in as many ranks as differ.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import simpy
from numpy.typing import NDArray

COMPUTE = "compute"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One entry of the program. seconds: of the quiet machine, multiplied by the rank's factor where it is compute.

    axis: the collective's group axis, None for compute; after: numbers of earlier operations that must be done.
    """

    name: str
    stream: str
    seconds: float
    axis: str | None = None
    after: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a stream of a rank did: from when its operation could start to its end; waited_s: for the group."""

    rank: int
    stream: str
    name: str
    begin_s: float
    end_s: float
    waited_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StreamOutcome:
    """step_s: until the last rank is done; finish_s, compute_s, exposed_s: [R]; exposed is all that is not compute.

    transfer_s: per axis, seconds of its collectives in the program of a rank, whether hidden or not.
    """

    step_s: float
    finish_s: NDArray[np.float64]
    compute_s: NDArray[np.float64]
    transfer_s: dict[str, float]
    spans: tuple[Span, ...] = field(default=(), repr=False)

    @property
    def exposed_s(self) -> NDArray[np.float64]:
        return self.finish_s - self.compute_s


class _Meeting:
    """Ranks of one group that come to one collective; gone when all are there and its seconds have passed."""

    def __init__(self, environment: simpy.Environment, missing: int, seconds: float) -> None:
        self._environment, self._missing, self._seconds = environment, missing, seconds
        self.full_s = 0.0
        self.gone = environment.event()

    def join(self) -> simpy.Event:
        self._missing -= 1
        if self._missing == 0:
            self.full_s = float(self._environment.now)
            timeout = self._environment.timeout(self._seconds)
            timeout.callbacks.append(self._go)
        return self.gone

    def _go(self, _: simpy.Event) -> None:
        self.gone.succeed()


class _Stage:
    """The program under way on all ranks."""

    def __init__(
        self, program: Sequence[Operation], groups: Mapping[str, NDArray[np.int64]], factor: NDArray[np.float64],
        record: bool,
    ) -> None:  # fmt: skip
        self.environment = simpy.Environment()
        self.program, self.factor, self.record = program, factor, record
        self.groups = {axis: numbers.tolist() for axis, numbers in groups.items()}
        self.sizes = {axis: np.bincount(numbers).tolist() for axis, numbers in groups.items()}
        self.meetings: dict[tuple[int, int], _Meeting] = {}
        self.done = [[self.environment.event() for _ in program] for _ in factor]
        self.finish_s = np.zeros(len(factor))
        self.spans: list[Span] = []

    def stream(self, rank: int, numbers: Sequence[int]) -> Generator[simpy.Event, None, None]:
        """The process of one stream of one rank."""
        environment, done = self.environment, self.done[rank]
        for number in numbers:
            operation = self.program[number]
            for before in operation.after:
                if not done[before].processed:
                    yield done[before]
            begin_s, waited_s = environment.now, 0.0
            if operation.axis is None:
                yield environment.timeout(operation.seconds * float(self.factor[rank]))
            else:
                meeting = self._meeting(number, operation, rank)
                yield meeting.join()
                waited_s = meeting.full_s - begin_s
            done[number].succeed()
            if self.record:
                self.spans.append(Span(rank=rank, stream=operation.stream, name=operation.name, begin_s=begin_s,
                                       end_s=environment.now, waited_s=waited_s))  # fmt: skip
        self.finish_s[rank] = max(self.finish_s[rank], environment.now)

    def _meeting(self, number: int, operation: Operation, rank: int) -> _Meeting:
        assert operation.axis is not None
        group = self.groups[operation.axis][rank]
        found = self.meetings.get((number, group))
        if found is None:
            size = self.sizes[operation.axis][group]
            found = self.meetings[number, group] = _Meeting(self.environment, size, operation.seconds)
        return found


def simulate_streams(
    program: Sequence[Operation],
    groups: Mapping[str, NDArray[np.int64]],
    factor: NDArray[np.float64],
    *,
    overlap: bool = True,
    record: bool = False,
) -> StreamOutcome:
    """Run a program on R ranks.

    groups: per axis the number of each rank's group, int64 [R]; factor: [R], compute seconds over the quiet machine's;
    overlap: False: one operation of a rank at a time, in the program's order; record: keep every span.
    """
    for number, operation in enumerate(program):
        assert all(before < number for before in operation.after), f"{operation.name} waits for a later operation"
        assert operation.axis is None or operation.axis in groups, f"{operation.name}: no groups of {operation.axis}"
    stage = _Stage(program, groups, factor, record)
    by_stream: dict[str, list[int]] = {}
    for number, operation in enumerate(program):
        by_stream.setdefault(operation.stream if overlap else COMPUTE, []).append(number)
    for rank in range(len(factor)):
        for numbers in by_stream.values():
            stage.environment.process(stage.stream(rank, numbers))
    stage.environment.run()
    assert all(event.processed for row in stage.done for event in row), "operations that wait for each other"
    compute_s = sum(operation.seconds for operation in program if operation.axis is None)
    transfer_s: dict[str, float] = {}
    for operation in program:
        if operation.axis is not None:
            transfer_s[operation.axis] = transfer_s.get(operation.axis, 0.0) + operation.seconds
    return StreamOutcome(
        step_s=float(stage.finish_s.max(initial=0.0)), finish_s=stage.finish_s, compute_s=compute_s * factor,
        transfer_s=transfer_s, spans=tuple(stage.spans),
    )  # fmt: skip
