"""Times actions on this rank's device, all ranks starting together. It owns no action and draws no conclusion."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from janus.parallel.communication import Communicator


class Clock:
    """Repeats an action for about ``budget_s`` seconds and keeps every duration; ranks start each action together.

    scale: factor on all budgets. On a GPU a duration is that between two events on its stream.
    """

    def __init__(self, communicator: Communicator, scale: float = 1.0) -> None:
        self.communicator, self.scale = communicator, scale
        self.device = communicator.device

    def times(
        self, action: Callable[[], Any], *, budget_s: float = 0.06, least: int = 3, most: int = 25
    ) -> list[float]:
        """Durations of the action in seconds, after one unrecorded call."""
        action()
        self.communicator.barrier()
        seconds: list[float] = []
        end = time.perf_counter() + budget_s * self.scale
        while len(seconds) < least or (len(seconds) < most and time.perf_counter() < end):
            seconds.append(self.once(action))
        return seconds

    def together(self, action: Callable[[], Any], repeats: int) -> list[float]:
        """Durations of an action that all ranks take part in, ``repeats`` times, each started together."""
        action()
        seconds = []
        for _ in range(repeats):
            self.communicator.barrier()
            seconds.append(self.once(action))
        return seconds

    def once(self, action: Callable[[], Any]) -> float:
        """Seconds of one call."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            action()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        action()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)
