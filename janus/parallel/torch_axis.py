"""An axis over a process group of torch.distributed: gloo on CPU, NCCL on GPU. It does not make the group.

On CPU the wait blocks until the result is there. On GPU it makes the current stream wait, and the tensors must stay
alive until then, which ``Pending`` sees to. gloo has no reduce-scatter of its own: it sends what an all-reduce sends,
twice the minimum (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from janus.parallel.axis import Axis, Pending, Reduction
from janus.parallel.ledger import Ledger
from janus.parallel.waiting import Waiting

# torch 2.13 renamed both and warns at the old names
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class TorchAxis(Axis):
    """group: a process group of exactly these ranks, in this order."""

    def __init__(
        self, name: str, ranks: Sequence[int], index: int, ledger: Ledger, waiting: Waiting, group: dist.ProcessGroup
    ) -> None:
        super().__init__(name, ranks, index, ledger, waiting)
        self._group = group

    def _all_to_all(self, output: Tensor, rows: Tensor, output_rows: list[int], input_rows: list[int]) -> Pending:
        work = dist.all_to_all_single(output, rows, output_rows, input_rows, group=self._group, async_op=True)
        return _pending(work, output, rows)

    def _all_gather(self, output: Tensor, piece: Tensor) -> Pending:
        return _pending(_all_gather(output, piece, group=self._group, async_op=True), output, piece)

    def _reduce_scatter(self, output: Tensor, whole: Tensor) -> Pending:
        return _pending(_reduce_scatter(output, whole, group=self._group, async_op=True), output, whole)

    def _all_reduce(self, tensor: Tensor, reduction: Reduction) -> Pending:
        return _pending(dist.all_reduce(tensor, _OPERATIONS[reduction], group=self._group, async_op=True), tensor)


def _pending(work: dist.Work, *held: Tensor) -> Pending:
    """Waits for the work; the tensors live until then."""

    def wait(held: tuple[Tensor, ...] = held) -> None:
        work.wait()

    return Pending(wait)
