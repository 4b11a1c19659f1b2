"""Processes that end with the one that started them, however that ended."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """Have the kernel kill this process once its parent has ended (Linux). It lasts across exec, not across fork."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
