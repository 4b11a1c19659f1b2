"""steps.jsonl of a run: one JSON line per step, appended as the run goes. It does not own the numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from janus.train.atomic import write_text_atomically


class StepLog:
    """Appends lines. Opening it for a run that goes on at ``first_step`` drops that step's line and later ones."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = [line for line in read_step_log(path) if line["step"] < first_step] if path.exists() else []
        write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._stream = path.open("a", encoding="utf-8")

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; a reader sees it at once."""
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Make all lines reach the disk (beside a checkpoint)."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def read_step_log(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a step log; a last line cut short by a kill is left out."""
    with path.open(encoding="utf-8") as stream:
        for text in stream:
            if text.endswith("\n"):
                yield json.loads(text)


def final_numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line without what is per rank or per expert: the summary that run.json repeats."""
    return {name: value for name, value in line.items() if name not in ("ranks", "tokens_per_expert")}
