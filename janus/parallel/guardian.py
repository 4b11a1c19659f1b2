"""A tiny shell process beside each rank that says which rank was killed.

A rank that dies by SIGKILL cannot speak, and MPI launchers then kill all others within milliseconds, before any of
them could. The guardian lives in its own session, sees the end of its rank's pipe, and the first guardian of a job
(an exclusively created file in the run folder decides) names its rank on stderr. It does not stop anything.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

FAILURE_FILE = "failure.txt"
# $1 message, $2 file that only the first may create ("set -C" refuses to overwrite)
SCRIPT = 'read -r word || { set -C; { echo "$1" > "$2"; } 2>/dev/null && echo "$1" >&2; }'


class Guardian:
    """Watches this process until dismissed. folder: where the failure file goes (shared by all ranks)."""

    def __init__(self, folder: Path, rank: int) -> None:
        message = (
            f"janus: rank {rank} (process {os.getpid()} on {socket.gethostname()}) ended without a word: "
            "it was killed (out of memory?) or crashed; all ranks stop"
        )
        self._process = subprocess.Popen(
            ["sh", "-c", SCRIPT, "guardian", message, str(folder / FAILURE_FILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """This rank ends in an orderly way: nothing to report."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        try:
            self._process.stdin.write(b"done\n")
            self._process.stdin.close()
        except BrokenPipeError:
            return  # the guardian was killed itself
        self._process.wait()
