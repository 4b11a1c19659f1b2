"""Counts what collectives send: calls and bytes by collective, axis and phase. It sends nothing itself.

Phases: FE energy forward, FF forces, BF and BE the backward through the force and through the energy, "sync" the
gradients' sum over replicas, "other" everything else. A collective that runs inside the loss's backward belongs to BF
when its autograd node was made in FF, and to BE when it was made in FE.

Bytes are those that this rank hands to others, as the algorithm-independent minimum of the collective over n ranks with
b bytes: all-to-all the rows for other ranks, all-gather (n-1) b of a piece of b, reduce-scatter (n-1)/n b of a whole of
b, all-reduce 2 (n-1)/n b. What a library sends beyond that is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from janus.kernels.ambient import Ambient

BACKWARD = "backward"
_phase = Ambient("other")
_MADE_IN = {"FE": "BE", "FF": "BF"}


@contextmanager
def in_phase(name: str) -> Iterator[None]:
    """Inside, collectives are counted under this phase; BACKWARD: under BF or BE, by where their node was made."""
    with _phase.holds(name):
        yield


def current_phase() -> str:
    """The phase that the running code belongs to."""
    return _phase.get()


def backward_phase(made_in: str) -> str:
    """Phase of a collective that runs in the backward of a node made in ``made_in``."""
    running = _phase.get()
    return _MADE_IN.get(made_in, made_in) if running == BACKWARD else running


def remember_phase() -> Callable[[], AbstractContextManager[None]]:
    """To be called where an autograd node is made; gives the context in which its backward runs other code."""
    made_in = current_phase()
    return lambda: in_phase(backward_phase(made_in))


@dataclass(frozen=True, order=True)
class Entry:
    """What is counted apart: for instance ("FE", "expert", "all_to_all")."""

    phase: str
    axis: str
    collective: str


@dataclass
class Ledger:
    """Calls and bytes since the last ``clear``, of one rank."""

    calls: dict[Entry, int] = field(default_factory=dict)
    sent_bytes: dict[Entry, int] = field(default_factory=dict)

    def add(self, phase: str, axis: str, collective: str, sent_bytes: int) -> None:
        """Count one call of a collective."""
        entry = Entry(phase, axis, collective)
        self.calls[entry] = self.calls.get(entry, 0) + 1
        self.sent_bytes[entry] = self.sent_bytes.get(entry, 0) + sent_bytes

    def clear(self) -> None:
        """Start counting anew."""
        self.calls.clear()
        self.sent_bytes.clear()

    def rows(self) -> list[dict[str, str | int]]:
        """Plain values, sorted: phase, axis, collective, calls, sent_bytes."""
        return [
            {"phase": e.phase, "axis": e.axis, "collective": e.collective,
             "calls": self.calls[e], "sent_bytes": self.sent_bytes[e]}
            for e in sorted(self.calls)
        ]  # fmt: skip
