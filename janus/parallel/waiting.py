"""What this rank waits for, for the watchdog to find a rank that never comes. It does not watch (``watchdog.py``)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PeerLostError(RuntimeError):
    """A collective failed: most often because another rank is gone. The watchdog knows which one."""


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
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PeerLostError(f"{collective} failed: {error}") from error
        finally:
            self.entered_at = None
