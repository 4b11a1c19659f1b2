"""How a rank that loaded MPI ends its process: at once, but as Hydra wants it.

MPICH tells Hydra in a handler of C's ``exit`` that a rank is done; a rank that ends without is taken for a crash, and
all others are killed, whatever the exit code. So MPI's handlers run, and none older than they: those of other
libraries' threads may abort. It needs ``MPI.Finalize`` before.
"""

from __future__ import annotations

import ctypes
import os
from typing import NoReturn

_libc = ctypes.CDLL(None)


def guard_older_handlers() -> None:
    """Call once, before MPI is loaded: of C's exit handlers, ``depart`` runs those that are registered from now on."""
    if hasattr(_libc, "on_exit"):  # glibc; handlers run from the newest to the oldest and are given the exit code
        _libc.on_exit(_libc._exit, None)


def depart(exit_code: int) -> NoReturn:
    """End this process now."""
    if hasattr(_libc, "on_exit"):
        _libc.exit(exit_code)
    os._exit(exit_code)
