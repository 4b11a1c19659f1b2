"""Runs a command's work on all ranks of a job, and turns every way it can end into one message and an exit code.

A user's mistake: printed once, 2. A failure of one rank: named, all ranks stop, 1. It does not own the work.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import torch

from janus.errors import UserError
from janus.parallel.communication import Communicator, PeerLostError
from janus.parallel.watchdog import Watchdog


class RunFailedError(Exception):
    """The work must stop on all ranks, though the user's input was well formed: one sentence, exit code 1."""


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
    except torch.OutOfMemoryError as error:
        watchdog.report(f"{str(error).splitlines()[0]}: lower batch.max_work or set run.recompute to true")
    except MemoryError as error:
        watchdog.report(str(error) or "no memory left: lower batch.max_work or set run.recompute to true")
    except OSError as error:
        watchdog.report(f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else ""))
    except Exception as error:  # anything else is a bug: show where, stop every rank
        traceback.print_exc()
        watchdog.report(f"{type(error).__name__}: {error}")
    return 1
