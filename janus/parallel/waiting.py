"""What this rank waits for, for the watchdog to find a rank that never comes. It does not watch (``watchdog.py``)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc", "Cannot allocate memory")


class PeerLostError(RuntimeError):
    """A collective failed: most often because another rank is gone. The watchdog knows which one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this process could not get memory, on its device or host. torch has no class for the host's refusal."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


class Waiting:
    """collectives_entered: those that this rank has started; entered_at: when it began to wait for one (monotonic
    seconds), None while it does not wait.
    """

    def __init__(self) -> None:
        self.collectives_entered = 0
        self.entered_at: float | None = None

    @contextmanager
    def entering(self, collective: str) -> Iterator[None]:
        """Around the start of a collective (and its wait, where both are one call)."""
        self.collectives_entered += 1
        with self.inside(collective):
            yield

    @contextmanager
    def inside(self, collective: str) -> Iterator[None]:
        """Around the wait for a collective entered before. A failure of the transport becomes PeerLostError."""
        self.entered_at = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise PeerLostError(f"{collective} failed: {error}") from error
        finally:
            self.entered_at = None
