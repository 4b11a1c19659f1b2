"""Buffers that collectives restore, so that autograd may keep a note of them instead of their memory.

A *gathered buffer* belongs to a block (0, 1, ... in order of use) and can be filled again at any time by a collective.
Inside ``GatheredBuffers.hooks()`` every tensor that autograd saves and whose storage is a gathered buffer is replaced
by (buffer, size, stride, offset); when it is wanted again, a view of the buffer, restored if it has been freed, is
returned. It does not own what the buffers hold (``sharding.py``, ``expert_weights.py``).

Which blocks are held: the one in use and the one being fetched ahead, ``keep`` = 2 in all. The direction of travel is
read off the accesses: FE and BF climb, FF and BE descend. On arrival at a block from another the one left behind is
freed, then the next in that direction is fetched asynchronously; at the turning points the last two stay. Restorations
of a block, L >= 2 blocks and m micro-batches in one step (sum over blocks; ``keep`` >= L or None: L):

    FE  L in the first micro-batch, L - keep in each further one;  FF, BF, BE  L - keep each;
    per step  keep + 4 m (L - keep)

Autograd graphs of equal structure access blocks in the same order on all ranks, so the collectives match.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from janus.parallel.axis import Pending
from janus.parallel.ledger import backward_phase, current_phase

Restore = Callable[[str], tuple[Tensor, Pending]]
# A transport's own thread may hold the memory of a collective for a moment after it is done, longer on a busy host.
# Waiting for that keeps the peak what it is said to be; a forgotten reference costs this much, and is counted.
LONGEST_GOODBYE_S = 0.05


class GatheredBuffer:
    """One buffer of a block. ``restore(phase)`` starts the collective that fills a new tensor, counted there."""

    def __init__(self, block: int, restore: Restore) -> None:
        self.block, self._restore = block, restore
        self._tensor: Tensor | None = None
        self._pending = Pending()

    @property
    def is_live(self) -> bool:
        """Whether it is held, or being fetched."""
        return self._tensor is not None

    def start(self, phase: str) -> Tensor:
        """Begin to fill a new tensor."""
        assert self._tensor is None, self.block
        self._tensor, self._pending = self._restore(phase)
        return self._tensor

    def tensor(self) -> Tensor:
        """The filled tensor."""
        assert self._tensor is not None, self.block
        self._pending.wait()
        return self._tensor

    def free(self) -> None:
        """Let go of the memory, as when its content will differ; a collective that still writes to it is waited for."""
        self._pending.wait()
        self._tensor = None


class _Saved(NamedTuple):
    """What autograd keeps of a tensor that lies in a gathered buffer, and the phase in which it was saved."""

    buffer: GatheredBuffer
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    made_in: str


class GatheredBuffers:
    """All gathered buffers of a rank and who of them is held. keep: blocks held at a time, None: all until ``drop``.

    peak_bytes, peak_blocks: the most that was alive at once since the last ``reset_peak``, by the lifetimes of the
    memory itself: a forgotten reference counts.
    """

    def __init__(self, keep: int | None = 2) -> None:
        assert keep is None or keep >= 1, keep
        self.keep = keep
        self.peak_bytes = self.peak_blocks = 0
        self._blocks: dict[int, list[GatheredBuffer]] = {}
        self._current: int | None = None
        # a weak reference keeps its key from being used by another storage, so a late save is recognised too
        self._storages: dict[int, tuple[StorageWeakRef, GatheredBuffer, int]] = {}

    def add(self, block: int, restore: Restore) -> GatheredBuffer:
        """Register a buffer of a block, on all ranks in the same order."""
        buffer = GatheredBuffer(block, restore)
        self._blocks.setdefault(block, []).append(buffer)
        return buffer

    def use(self, buffer: GatheredBuffer, phase: str | None = None) -> Tensor:
        """The whole buffer, restored if need be; its block becomes the one in use. phase: None for the current one."""
        if buffer.block != self._current or not buffer.is_live:
            self._arrive(buffer.block, current_phase() if phase is None else phase)
        return buffer.tensor()

    def prefetch(self, buffer: GatheredBuffer, phase: str) -> None:
        """Begin to fetch one buffer before anything asks for it (of the first block, at the start of a step)."""
        self._make_room([buffer.block], buffer.block)
        self._fetch(buffer, phase)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Around a whole step, the backward included: autograd saves notes of gathered buffers."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def drop(self) -> None:
        """Free every buffer: at the end of a step, before their contents change."""
        for block in self._blocks:
            self._free(block)
        self._current = None

    def reset_peak(self) -> None:
        """Measure the peak anew."""
        self.peak_bytes = self.peak_blocks = 0

    def alive(self) -> list[tuple[int, int]]:
        """(block, bytes) of every buffer whose memory is still there, whoever holds it."""
        return [(buffer.block, size) for weak, buffer, size in self._storages.values() if not weak.expired()]

    def _arrive(self, block: int, phase: str) -> None:
        """Free what is left behind, fetch the block and the one after it in the direction of travel."""
        came_from = self._current if self._current is not None else block - 1
        ahead = block + (1 if block >= came_from else -1)
        wanted = [block, ahead] if ahead in self._blocks and self.keep != 1 else [block]
        self._make_room(wanted, block)
        for one in wanted:
            for buffer in self._blocks[one]:
                self._fetch(buffer, phase)
        self._current = block

    def _make_room(self, wanted: list[int], block: int) -> None:
        """Free the blocks farthest from ``block`` that are not wanted, until all fit."""
        if self.keep is None:
            return
        held = [held for held in self._blocks if any(buffer.is_live for buffer in self._blocks[held])]
        behind = sorted((held for held in held if held not in wanted), key=lambda held: -abs(held - block))
        freed = behind[: max(0, len(behind) + len(wanted) - self.keep)]
        for farthest in freed:
            self._free(farthest)
        deadline = time.monotonic() + LONGEST_GOODBYE_S
        while any(block in freed for block, _ in self.alive()) and time.monotonic() < deadline:
            time.sleep(1e-4)

    def _fetch(self, buffer: GatheredBuffer, phase: str) -> None:
        if not buffer.is_live:
            self._watch(buffer.start(phase), buffer)

    def _free(self, block: int) -> None:
        for buffer in self._blocks[block]:
            buffer.free()

    def _watch(self, tensor: Tensor, buffer: GatheredBuffer) -> None:
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = (StorageWeakRef(storage), buffer, storage.nbytes())
        alive = self.alive()
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in alive))
        self.peak_blocks = max(self.peak_blocks, len({block for block, _ in alive}))

    def _pack(self, tensor: Tensor) -> Any:
        entry = self._storages.get(tensor.untyped_storage()._cdata)
        if entry is None:
            return tensor.detach()  # the tensor itself would be a cycle where an operator saves its own output
        return _Saved(entry[1], tensor.size(), tensor.stride(), tensor.storage_offset(), current_phase())

    def _unpack(self, saved: Any) -> Tensor:
        if not isinstance(saved, _Saved):
            return saved
        whole = self.use(saved.buffer, backward_phase(saved.made_in))
        return whole.as_strided(saved.size, saved.stride, saved.offset)
