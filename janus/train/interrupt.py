"""Ctrl-C and SIGTERM: the first asks the run to stop at the next step boundary, a later one ends this process at once.

One keystroke can arrive twice, from the terminal and from the launcher (torchrun adds a SIGTERM of its own): what comes
within ``SAME_REQUEST_S`` of the first counts as the same request.
It does not own the agreement among ranks: ``loop.py`` sums the flags in a collective of every step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType

SAME_REQUEST_S = 2.0
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class InterruptFlag:
    """Context manager that catches both signals. requested: exit code to end with, 0 while nothing was asked.

    before_exit: called before a second signal ends the process.
    """

    def __init__(self, *, speak: bool, before_exit: Callable[[], None] | None = None) -> None:
        self._speak, self._before_exit = speak, before_exit
        self.requested, self._requested_at = 0, 0.0

    def __enter__(self) -> InterruptFlag:
        self._previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = EXIT_CODES[signal.Signals(number)]
        if self.requested and time.monotonic() - self._requested_at < SAME_REQUEST_S:
            return
        if self.requested:
            if self._before_exit is not None:
                self._before_exit()
            os._exit(code)
        self.requested, self._requested_at = code, time.monotonic()
        if self._speak:
            name = signal.Signals(number).name
            os.write(sys.stderr.fileno(), f"janus train: {name}, saving at the end of this step\n".encode())
