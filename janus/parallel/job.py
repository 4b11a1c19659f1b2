"""Runs a command's work on all ranks of a job, and turns every way it can end into one message and an exit code.

A user's mistake: printed once, 2. A failure of one rank: named, all ranks stop, 1. It does not own the work.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable

from janus.errors import UserError
from janus.parallel.communication import (
    DEFAULT_TIMEOUT_S,
    Communicator,
    DeviceChoice,
    MistakeOfAllRanksError,
    PeerLostError,
    TransportChoice,
    connect,
)
from janus.parallel.waiting import is_out_of_memory
from janus.parallel.watchdog import Watchdog

LESS_MEMORY = "lower batch.max_work, set run.recompute to true, or spread each micro-batch by parallel.graph_degree"


class RunFailedError(Exception):
    """The work must stop on all ranks, though the user's input was well formed: one sentence, exit code 1."""


def join_job(
    command: str,
    *,
    device: DeviceChoice = "auto",
    transport: TransportChoice = "auto",
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Communicator:
    """``connect``; with many ranks a mistake in device or transport is printed once and ends all of them, code 2."""
    try:
        return connect(device=device, transport=transport, timeout_s=timeout_s)
    except MistakeOfAllRanksError as mistake:
        if mistake.communicator.rank == 0:
            print(f"janus {command}: {mistake}", file=sys.stderr)
        mistake.communicator.leave(2)


def run_on_ranks(
    command: str, communicator: Communicator, work: Callable[[Watchdog], int], *, hang_timeout_s: float = 1800.0
) -> int:
    """Run ``work`` under a watchdog; it returns an exit code, the same on all ranks.

    Raises UserError only in a job of one process. With many ranks the process ends here, all ranks at one moment.
    A UserError that ``work`` lets out must be the same on all ranks (``Communicator.together``).
    """
    watchdog = Watchdog(communicator, command=command, hang_timeout_s=hang_timeout_s)
    try:
        exit_code = _under_watch(work, watchdog)
    except UserError as error:
        if communicator.world_size == 1:
            raise
        if communicator.rank == 0:
            print(f"janus {command}: {error}", file=sys.stderr)
        exit_code = 2
    watchdog.stop()
    if communicator.world_size > 1:
        if watchdog.before_exit is not None:
            watchdog.before_exit()
        communicator.leave(exit_code)
    return exit_code


def _under_watch(work: Callable[[Watchdog], int], watchdog: Watchdog) -> int:
    """Run the work; a failure is reported through the watchdog, which ends all ranks. Returns 1 after a failure of
    a job of one process.
    """
    try:
        return work(watchdog)
    except UserError:
        raise
    except RunFailedError as error:
        watchdog.report(str(error), of_all_ranks=True)
    except PeerLostError as error:
        watchdog.wait_for_verdict(str(error))
    except Exception as error:
        sentence = _out_of_memory(error)
        if sentence is None and isinstance(error, OSError):
            sentence = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        if sentence is None:  # anything else is a bug: show where, stop every rank
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {error}"
        watchdog.report(sentence)
    return 1


def _out_of_memory(error: Exception) -> str | None:
    """One sentence with the repair where memory is what was missing, else None."""
    if not is_out_of_memory(error):
        return None
    if isinstance(error, MemoryError):
        return f"{error or 'no memory left'}: {LESS_MEMORY}"
    asked = re.search(r"[Tt]ried to allocate ([\d.]+) (?:bytes|([KMG]iB))", str(error))
    if asked is None:
        return f"no memory left: {LESS_MEMORY}"
    return f"no memory for {f'{asked[1]} {asked[2]}' if asked[2] else f'{float(asked[1]) / 1e6:.1f} MB'}: {LESS_MEMORY}"
