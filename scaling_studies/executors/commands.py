"""Asking a scheduler's own programs: run one, bound its time, keep its words. It knows no scheduler."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus.errors import UserError
from scaling_studies.executors.base import SchedulerSilentError

ANSWER_S = 90.0  # assumed: an answer that takes longer will not come


@dataclass(frozen=True, kw_only=True)
class Answer:
    """code: exit code; out, err: what the program printed."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said, on one line and cut to be shown."""
        return " ".join((self.err.strip() or self.out.strip()).split())[:300] or f"exit code {self.code}, no words"


def ask(words: Sequence[str], *, stdin: Path | None = None) -> Answer:
    """Run a program of the scheduler. stdin: file it reads.

    Raises SchedulerSilentError when it does not end in time, UserError when there is no such program.
    """
    try:
        with (stdin or Path("/dev/null")).open("rb") as stream:
            found = subprocess.run(words, stdin=stream, capture_output=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise SchedulerSilentError(f"{words[0]} gave no answer within {ANSWER_S:g} s") from None
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not on the path: load the scheduler's module, or set [executor] kind to what this host has"
        ) from None
    return Answer(
        code=found.returncode, out=found.stdout.decode(errors="replace"), err=found.stderr.decode(errors="replace")
    )
