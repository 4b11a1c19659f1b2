"""``python -m scaling_studies.executors.local_job FOLDER LIMIT_S NAME``: watches over one job of this host.

It runs the attempt's script, ends it at its time limit or when told to (SIGTERM), and leaves no process behind. It does
not need the runner that started it: when that is killed, the job and its time limit go on. It does not own what the
script does (``scripts``). Time is counted on the monotonic clock.

When the job had to be ended, ``verdict.json`` beside its log says why.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from janus.errors import UserError
from scaling_studies.atomic import write_atomically
from scaling_studies.executors.base import VERDICT_FILE
from scaling_studies.executors.processes import end_attempt
from scaling_studies.records import FAILED, TIMEOUT

TIME_IS_UP, TOLD_TO_STOP = 124, 143  # exit codes


class StoppedError(Exception):
    """Somebody asked for the end of the job."""


def main(arguments: list[str]) -> int:
    """Returns the exit code of the script, or TIME_IS_UP or TOLD_TO_STOP."""
    folder, limit_s = Path(arguments[0]), float(arguments[1])
    signal.signal(signal.SIGTERM, _stop)
    script = None
    try:
        with (folder / "log.txt").open("ab") as log:
            words = ["bash", str(folder / "job.sh")]
            script = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        code = script.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        code = TIME_IS_UP
        _write_verdict(folder, TIMEOUT, f"no end within {limit_s:g} s, stopped")
    except StoppedError:
        code = TOLD_TO_STOP
        _write_verdict(folder, FAILED, "stopped by the runner or by a person")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_attempt(folder, script.pid if script is not None else None)
    return code


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedError


def _write_verdict(folder: Path, outcome: str, reason: str) -> None:
    try:
        write_atomically(folder / VERDICT_FILE, json.dumps({"outcome": outcome, "reason": reason}) + "\n")
    except UserError as error:
        print(f"local_job: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
