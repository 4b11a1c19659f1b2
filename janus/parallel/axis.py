"""One axis of the layout as a rank sees it: the group of ranks it shares that axis with, and the group's collectives.

Every tensor that crosses ranks in a training step goes through an ``Axis``; ``collectives.py`` makes them
differentiable. Transports: torch.distributed (``torch_axis.py``), MPI (``mpi_axis.py``). It does not own which
ranks form a group (``janus/layout.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from janus.parallel.ledger import Ledger, current_phase
from janus.parallel.waiting import Waiting

Reduction = Literal["sum", "max"]


class Pending:
    """A collective under way. ``wait`` returns when this rank's output is complete; a second wait returns at once."""

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        self._wait = wait

    def wait(self) -> None:
        """Block until the output may be read and the input may be changed."""
        if self._wait is not None:
            wait, self._wait = self._wait, None
            wait()


class Axis(ABC):
    """A group of ranks. name: as in ``janus.layout.AxisName``; ranks: of the whole job, in group order;
    index: this rank's place among them.

    Tensors are contiguous and on the axis's device. All ranks of the group call the same collectives in one order.
    A group of one rank: every collective completes at once, costs nothing and is not counted.
    ledger, waiting: this rank's, shared by all its axes.
    """

    def __init__(
        self, name: str, ranks: Sequence[int], index: int, ledger: Ledger, waiting: Waiting | None = None
    ) -> None:
        self.name, self.ranks, self.index, self.ledger = name, tuple(ranks), index, ledger
        self.waiting = Waiting() if waiting is None else waiting

    @property
    def size(self) -> int:
        """Number of ranks in the group."""
        return len(self.ranks)

    def all_to_all(
        self, output: Tensor, rows: Tensor, output_rows: Sequence[int], input_rows: Sequence[int], phase: str = ""
    ) -> Pending:
        """Rows to every rank: rows [sum(input_rows), ...] -> output [sum(output_rows), ...], in rank order."""
        if self.size == 1:
            output.copy_(rows)
            return Pending()
        row_bytes = rows[:1].numel() * rows.element_size() if len(rows) else 0
        self._count("all_to_all", (sum(input_rows) - input_rows[self.index]) * row_bytes, phase)
        return self._watched("all_to_all", lambda: self._all_to_all(output, rows, list(output_rows), list(input_rows)))

    def all_gather(self, output: Tensor, piece: Tensor, phase: str = "") -> Pending:
        """Equal pieces [b] of all ranks, in rank order -> output [n b]."""
        if self.size == 1:
            output.copy_(piece)
            return Pending()
        self._count("all_gather", (self.size - 1) * piece.numel() * piece.element_size(), phase)
        return self._watched("all_gather", lambda: self._all_gather(output, piece))

    def reduce_scatter(self, output: Tensor, whole: Tensor, phase: str = "") -> Pending:
        """Sum of all ranks' whole [n b]; this rank's piece of the sum -> output [b]."""
        if self.size == 1:
            output.copy_(whole)
            return Pending()
        self._count("reduce_scatter", (self.size - 1) * output.numel() * output.element_size(), phase)
        return self._watched("reduce_scatter", lambda: self._reduce_scatter(output, whole))

    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum", phase: str = "") -> Pending:
        """Sum or largest value over ranks, in place."""
        if self.size == 1:
            return Pending()
        whole_bytes = tensor.numel() * tensor.element_size()
        self._count("all_reduce", 2 * (self.size - 1) * whole_bytes // self.size, phase)
        return self._watched("all_reduce", lambda: self._all_reduce(tensor, reduction))

    def _watched(self, collective: str, start: Callable[[], Pending]) -> Pending:
        """Start and, later, wait where the watchdog sees it."""
        described = f"{collective} over axis {self.name}"
        with self.waiting.entering(described):
            pending = start()

        def wait() -> None:
            with self.waiting.inside(described):
                pending.wait()

        return Pending(wait)

    def _count(self, collective: str, sent_bytes: int, phase: str) -> None:
        self.ledger.add(phase or current_phase(), self.name, collective, sent_bytes)

    @abstractmethod
    def _all_to_all(self, output: Tensor, rows: Tensor, output_rows: list[int], input_rows: list[int]) -> Pending: ...

    @abstractmethod
    def _all_gather(self, output: Tensor, piece: Tensor) -> Pending: ...

    @abstractmethod
    def _reduce_scatter(self, output: Tensor, whole: Tensor) -> Pending: ...

    @abstractmethod
    def _all_reduce(self, tensor: Tensor, reduction: Reduction) -> Pending: ...


class LoneAxis(Axis):
    """A group of this rank alone."""

    def __init__(self, name: str, rank: int = 0, ledger: Ledger | None = None) -> None:
        super().__init__(name, [rank], 0, ledger if ledger is not None else Ledger())

    def _never(self, *_: object) -> Pending:
        raise AssertionError(f"axis {self.name} has one rank: nothing is sent")

    _all_to_all = _all_gather = _reduce_scatter = _all_reduce = _never
