"""Work memory of the fused operators: large blocks are kept and lent again instead of returned to the system.

A training step frees and asks again for the same gigabytes. Fresh pages are zeroed by the kernel first, which took as
long as the arithmetic; a general heap that keeps them fragments to twice what is in use. Here a freed block waits in
a list of its size, and blocks lent and waiting together never exceed the most that was ever lent at once.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

SMALLEST_BYTES = 256 << 10  # below, the C library's heap serves well
_STEPS_PER_OCTAVE = 8  # block sizes grow by at most 12.5 %
_LARGEST_EXCESS = 4  # a waiting block up to so much larger is lent: batches differ in size from step to step
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def block_bytes(num_bytes: int) -> int:
    """The size of the block that serves a request: the next of eight steps between powers of two."""
    step = max(mmap.PAGESIZE, 1 << max(0, (num_bytes - 1).bit_length() - 1) >> (_STEPS_PER_OCTAVE.bit_length() - 1))
    return -(-num_bytes // step) * step


class _Lease(np.ndarray):
    """A view of a lent block; the block goes back when the last tensor on it is gone."""

    _pool: BlockPool | None = None
    _block: mmap.mmap | None = None

    def __del__(self) -> None:
        if self._pool is not None and self._block is not None:
            self._pool._take_back(self._block)


class BlockPool:
    """Lends blocks of memory as tensors. One per process, for all of its threads.

    lent_bytes, waiting_bytes: now; most_lent_bytes: the largest lent_bytes so far.
    """

    def __init__(self) -> None:
        self.lent_bytes = self.waiting_bytes = self.most_lent_bytes = 0
        self._waiting: OrderedDict[int, list[mmap.mmap]] = OrderedDict()  # sizes, the longest unused first
        self._lock = threading.RLock()  # taken again by a tensor that is freed while its thread holds it

    def empty(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous CPU tensor of float32 or float64."""
        count = 1
        for extent in shape:
            count *= extent
        num_bytes = count * dtype.itemsize
        if num_bytes < SMALLEST_BYTES:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            block = self._block(block_bytes(num_bytes))
        lease = np.frombuffer(block, dtype=_NUMPY[dtype], count=count).view(_Lease)
        lease._pool, lease._block = self, block
        return torch.from_numpy(lease).view(shape)

    def _block(self, size: int) -> mmap.mmap:
        fitting = [waiting for waiting in self._waiting if size <= waiting <= _LARGEST_EXCESS * size]
        if fitting:
            size = min(fitting)
            block = self._waiting[size].pop()
            if not self._waiting[size]:
                del self._waiting[size]
            self.waiting_bytes -= size
        else:
            self._shrink(self.most_lent_bytes - self.lent_bytes - size)
            block = self._new_block(size)
        self.lent_bytes += size
        self.most_lent_bytes = max(self.most_lent_bytes, self.lent_bytes)
        return block

    def _new_block(self, size: int) -> mmap.mmap:
        try:
            return mmap.mmap(-1, size)
        except OSError:
            raise MemoryError(
                f"no memory for {size / 1e6:.1f} MB beside {self.lent_bytes / 1e6:.0f} MB of work memory in use"
            ) from None

    def _take_back(self, block: mmap.mmap) -> None:
        size = len(block)
        with self._lock:
            self.lent_bytes -= size
            self.waiting_bytes += size
            self._waiting.setdefault(size, []).append(block)
            self._waiting.move_to_end(size)

    def _shrink(self, allowed_bytes: int) -> None:
        """Give waiting blocks back to the system, longest unused sizes first, until at most ``allowed_bytes`` wait."""
        for size in list(self._waiting):
            blocks = self._waiting[size]
            while blocks and self.waiting_bytes > max(0, allowed_bytes):
                blocks.pop()  # unmapped when its last view is gone, which is now
                self.waiting_bytes -= size
            if not blocks:
                del self._waiting[size]


_pool = BlockPool()


def empty(*shape: int, like: Tensor) -> Tensor:
    """An uninitialised tensor of the dtype of ``like`` from the process's pool."""
    return _pool.empty(shape, like.dtype)


def empty_like(like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the shape and dtype of ``like`` from the process's pool."""
    return _pool.empty(like.shape, like.dtype)


def zeros(*shape: int, like: Tensor) -> Tensor:
    """A tensor of zeros of the dtype of ``like`` from the process's pool."""
    return empty(*shape, like=like).zero_()
