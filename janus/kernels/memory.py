"""How the process treats freed memory. It owns the allocator's settings, nothing else."""

from __future__ import annotations

import ctypes
import sys

# glibc malloc.h: parameters of mallopt, and the largest mmap threshold it accepts on 64-bit machines
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD_BYTES = 32 << 20
_KEPT_TOP_BYTES = (1 << 31) - 1
_GROWTH_BYTES = 64 << 20


def reuse_freed_memory() -> bool:
    """Keep freed blocks up to 32 MiB in the process instead of giving each back to the system.

    A training step frees and asks again for the same gigabytes; every fresh page is zeroed by the kernel first, which
    took longer than the arithmetic (docs/model.md has the figures). Returns whether the C library took the settings
    (glibc only); elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has no such setting
        return False
    settings = (
        (_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES),
        (_TRIM_THRESHOLD, _KEPT_TOP_BYTES),
        (_TOP_PAD, _GROWTH_BYTES),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
