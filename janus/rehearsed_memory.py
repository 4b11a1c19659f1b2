"""The largest memory of a stretch of code on this process: allocated on its device, and resident on the host.

On a CPU "allocated" is what the C library's heap and the pool of work memory have lent out, looked at every few
milliseconds by a thread (glibc; elsewhere None); on a GPU it is torch's own count. It does not own what is measured.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

import psutil
import torch

from janus.kernels import pool

SAMPLING_S = 0.002
_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _HeapInfo(ctypes.Structure):
    """glibc's struct mallinfo2; hblkhd: bytes in mapped blocks, uordblks: bytes in use on the heaps."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def allocated_bytes(device: torch.device) -> int | None:
    """In use now; None where this system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if mallinfo is None:
        return None
    mallinfo.restype = _HeapInfo
    heap = mallinfo()
    return int(heap.uordblks + heap.hblkhd + pool._pool.lent_bytes)


def resident_bytes() -> int:
    """Of this process on the host, now."""
    return int(psutil.Process().memory_info().rss)


def room_bytes(device: torch.device) -> int:
    """What a new job could take of the device's memory, or of the host's (and of the control group's, if less)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    room = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return room
    return room if limit == "max" else min(room, int(limit) - int(used))


class PeakMemory:
    """A context manager; afterwards ``allocated_bytes`` and ``resident_bytes`` are the largest of the time inside.

    allocated_bytes: None where unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.allocated_bytes: int | None = allocated_bytes(device)
        self.resident_bytes = resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._device.type == "cuda":
            self.allocated_bytes = int(torch.cuda.max_memory_allocated(self._device))

    def _watch(self) -> None:
        while not self._done.wait(SAMPLING_S):
            self.resident_bytes = max(self.resident_bytes, resident_bytes())
            if self._device.type == "cpu" and self.allocated_bytes is not None:
                self.allocated_bytes = max(self.allocated_bytes, allocated_bytes(self._device) or 0)
