"""Wall time of the phases of a step on this rank. It does not own what is done with the times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "FE", "FF", "BF_BE", "sync", "optimizer")


class PhaseTimer:
    """Adds up seconds per phase; called with a phase's name it is a context manager. GPUs are synchronised first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.phase_s = dict.fromkeys(PHASES, 0.0)

    def now(self) -> float:
        """Seconds on a monotonic clock, with no work of the device left outstanding."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            self.phase_s[phase] += self.now() - start
