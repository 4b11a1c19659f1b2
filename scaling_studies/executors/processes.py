"""Processes of this host as /proc shows them (proc(5)), and those of one attempt among them. It starts none.

Every process of a local attempt carries the attempt's folder in ``JANUS_ATTEMPT``, whatever process group or session
its launcher gave it: so all of them are found, and none that belongs to somebody else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

VARIABLE = "JANUS_ATTEMPT"
GRACE_S = 10.0  # assumed: time a program gets to leave after SIGTERM
FACTS_S = 5.0  # assumed: time the attempt's script then gets to write down how it ended


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def read(pid: int, name: str) -> bytes:
    """A file of /proc/PID; empty when the process is gone or somebody else's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; empty when there is no such process."""
    return read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def start_ticks(pid: int) -> str:
    """When the process started, in clock ticks since boot; "" for none."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def is_alive(pid: int) -> bool:
    """Whether the process is there and has not ended; one that only waits to be reaped has."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def attempt_of(pid: int) -> Path | None:
    """Folder of the attempt that the process belongs to."""
    for entry in read(pid, "environ").split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == VARIABLE.encode():
            return Path(os.fsdecode(value))
    return None


def attempt_in_session(session: int) -> Path | None:
    """Folder of the attempt whose processes are left in this session; None when none are."""
    for pid in all_pids():
        fields = _stat(pid)
        if fields and int(fields[3]) == session and fields[0] not in "ZX" and (folder := attempt_of(pid)):
            return folder
    return None


def members(folder: Path) -> set[int]:
    """The living processes of an attempt, this one left out."""
    return {pid for pid in all_pids() if pid != os.getpid() and attempt_of(pid) == folder and is_alive(pid)}


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that has gone in the meantime is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end_attempt(folder: Path, script: int | None = None) -> None:
    """End every process of the attempt but this one: politely, then what is left for certain.

    script: process id of the attempt's script. While it lives it is the one that is asked, since it passes the request
    on; it outlives its program by a few seconds to write down how it ended. Without it all are asked.
    """
    if script is not None and script in members(folder):
        send(script, signal.SIGTERM)
        if not _wait(lambda: script not in members(folder), GRACE_S):
            for pid in members(folder) - {script}:
                send(pid, signal.SIGKILL)
            _wait(lambda: script not in members(folder), FACTS_S)
    else:
        for pid in members(folder):
            send(pid, signal.SIGTERM)
        _wait(lambda: not members(folder), GRACE_S)
    while left := members(folder):
        for pid in left:
            send(pid, signal.SIGKILL)
        _wait(lambda: not members(folder), 1.0)


def _wait(condition: Callable[[], bool], patience_s: float) -> bool:
    """Wait for a condition, at most so long; whether it came about."""
    end = time.monotonic() + patience_s
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met
