"""An axis over an MPI communicator, by MPI's non-blocking collectives straight on the memory of CPU tensors.

MPI waits by looking again and again, and gives up its core only to come back at once: with more ranks on a host than
cores those that wait take most of the time of those that compute. There a wait sleeps between two looks.

float32, float64, int32 and int64 are reduced; two-byte floats are moved as 16-bit integers and never reduced (MPI has
no bfloat16, and Open MPI returns wrong sums for it without an error). It does not start or end MPI
(``rendezvous.py``, ``communication.py``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from janus.parallel.axis import Axis, Pending, Reduction
from janus.parallel.ledger import Ledger
from janus.parallel.waiting import Waiting

MAX_COUNT = 2**31 - 1  # of one MPI call: counts are C ints
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 20e-6, 500e-6  # between two looks where cores are scarce
_TYPES = {
    torch.float32: MPI.FLOAT, torch.float64: MPI.DOUBLE, torch.int32: MPI.INT32_T, torch.int64: MPI.INT64_T,
    torch.float16: MPI.INT16_T, torch.bfloat16: MPI.INT16_T, torch.int16: MPI.INT16_T,
    torch.uint8: MPI.UINT8_T, torch.int8: MPI.INT8_T, torch.bool: MPI.UINT8_T,
}  # fmt: skip
_REDUCED = (torch.float32, torch.float64, torch.int32, torch.int64)
_OPERATIONS = {"sum": MPI.SUM, "max": MPI.MAX}


class MpiAxis(Axis):
    """communicator: of exactly these ranks, in this order. crowded: this host has more ranks than cores."""

    def __init__(
        self, name: str, ranks: Sequence[int], index: int, ledger: Ledger, waiting: Waiting, communicator: MPI.Comm,
        *, crowded: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(name, ranks, index, ledger, waiting)
        assert (communicator.size, communicator.rank) == (self.size, index), (communicator.size, communicator.rank)
        self._communicator, self._crowded = communicator, crowded

    def _all_to_all(self, output: Tensor, rows: Tensor, output_rows: list[int], input_rows: list[int]) -> Pending:
        """The own part is copied: MPI would make it a message that moves a piece at each look at the request."""
        width = rows.shape[1:].numel()
        ours, theirs = sum(input_rows[: self.index]), sum(output_rows[: self.index])
        own = input_rows[self.index]
        output[theirs : theirs + own].copy_(rows[ours : ours + own])
        request = self._communicator.Ialltoallv(
            [_memory(rows), self._of_others(input_rows, width), _type_of(rows)],
            [_memory(output), self._of_others(output_rows, width), _type_of(output)],
        )
        return self._pending(request, output, rows)

    def _of_others(self, counts: list[int], width: int) -> tuple[list[int], list[int]]:
        """Values and first places of every rank's part, none of this rank's own."""
        ends = list(accumulate(count * width for count in counts))
        values = [0 if rank == self.index else count * width for rank, count in enumerate(counts)]
        return values, [end - count * width for end, count in zip(ends, counts, strict=True)]

    def _all_gather(self, output: Tensor, piece: Tensor) -> Pending:
        # no counts: mpi4py reads the receiving one as per rank and writes past the end otherwise
        request = self._communicator.Iallgather([_memory(piece), _type_of(piece)], [_memory(output), _type_of(output)])
        return self._pending(request, output, piece)

    def _reduce_scatter(self, output: Tensor, whole: Tensor) -> Pending:
        _check_reduced(whole)
        request = self._communicator.Ireduce_scatter_block(
            [_memory(whole), _type_of(whole)], [_memory(output), _type_of(output)], MPI.SUM
        )
        return self._pending(request, output, whole)

    def _all_reduce(self, tensor: Tensor, reduction: Reduction) -> Pending:
        _check_reduced(tensor)
        buffer = [_memory(tensor), _type_of(tensor)]
        return self._pending(self._communicator.Iallreduce(MPI.IN_PLACE, buffer, _OPERATIONS[reduction]), tensor)

    def _pending(self, request: MPI.Request, *held: Tensor) -> Pending:
        """Waits for the request; the tensors live until then."""

        def wait(held: tuple[Tensor, ...] = held) -> None:
            pause_s = SHORTEST_PAUSE_S
            while self._crowded and not request.Test():
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            request.Wait()

        return Pending(wait)


def _memory(tensor: Tensor) -> Any:
    """The tensor's own memory as a numpy array."""
    assert tensor.device.type == "cpu", tensor.device
    assert tensor.is_contiguous(), tuple(tensor.shape)
    if tensor.numel() > MAX_COUNT:
        raise ValueError(
            f"a tensor of {tensor.numel()} values in one MPI call, which carries {MAX_COUNT}: "
            "use transport 'gloo' or more micro-batches"
        )
    moved = tensor.detach()
    return (moved.view(torch.int16) if moved.dtype in (torch.float16, torch.bfloat16) else moved).numpy()


def _type_of(tensor: Tensor) -> MPI.Datatype:
    assert tensor.dtype in _TYPES, f"MPI carries no tensor of {tensor.dtype}"
    return _TYPES[tensor.dtype]


def _check_reduced(tensor: Tensor) -> None:
    assert tensor.dtype in _REDUCED, f"a sum or maximum of {tensor.dtype} over MPI: reduce in float32"
