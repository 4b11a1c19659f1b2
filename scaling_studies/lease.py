"""The lease of a study folder: one runner at a time, and a message that says who the other one is.

It spares two runners work and confusion. That nothing is done twice does not hang on it: attempts are claimed by
exclusive creation (``attempts``), which also holds where a network file system has no locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from janus.errors import UserError
from scaling_studies.executors.processes import is_alive, start_ticks

LEASE_FILE = ".lock"


@contextmanager
def only_runner(folder: Path) -> Iterator[None]:
    """Hold the study folder for one runner; released by the system however the runner ends. Raises UserError."""
    path = folder / LEASE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = holder(folder) or "it has not said who it is"
            raise UserError(
                f"another runner works on {folder} ({who}): wait for it, end it, or use another --out"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path} cannot be locked ({error.strerror}): put --out on a file system with locks"
            ) from None
        stream.truncate(0)
        since, pid = datetime.now(UTC).isoformat(timespec="seconds"), os.getpid()
        json.dump({"host": platform.node(), "pid": pid, "start": start_ticks(pid), "since": since}, stream)
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def holder(folder: Path) -> str:
    """Who works on the folder, in words, as it wrote down itself; "" where nobody does. It takes no lock."""
    try:
        values = json.loads((folder / LEASE_FILE).read_text(encoding="utf-8"))
        pid, host, since = int(values["pid"]), str(values["host"]), str(values["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    died = host == platform.node() and not (is_alive(pid) and start_ticks(pid) == values.get("start"))
    return "" if died else f"process {pid} on {host} since {since}"
