"""The attempts of a study folder: claimed, moved from state to state, never overwritten.

It owns the one JSON file per attempt and which changes of state are legal; it does not own when a state changes
(``runner``) nor what a record says (``records``).

An attempt is claimed by creating its file exclusively, under the number that follows what the claimer has read: of two
runners that decide on the same state of the folder one gets it, and the other must look again. While the attempt is
open its file is replaced atomically; a final state is never written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from janus.errors import UserError
from scaling_studies.atomic import write_atomically, write_new_atomically
from scaling_studies.records import (
    FINAL_STATES,
    MEASURED,
    OPEN_STATES,
    PLANNED,
    RECORD_FOLDER,
    RUNNING,
    SUBMITTED,
    Record,
    read_record,
    to_json,
)

ATTEMPT_FOLDER = "attempts"
NEXT_STATES = {
    PLANNED: (PLANNED, SUBMITTED, RUNNING, *FINAL_STATES),  # PLANNED again: taken over from a runner that died
    SUBMITTED: (RUNNING, *FINAL_STATES),
    RUNNING: FINAL_STATES,
}
SETTLING_S = 2.0  # assumed: above the resolution of file times anywhere; changes closer together may share one time
_CHANGE_LOCK = ".change"
_NUMBER = re.compile(r"-attempt(\d+)$")


class AttemptMovedError(UserError):
    """Somebody else has moved the attempt on in the meantime: what they wrote stays."""


class Attempts:
    """The attempts of one study folder, as their files say. Unchanged files are read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], Record | str]] = {}
        self._numbers: dict[str, int] = {}  # cell's part of the tags -> largest number in use when last read
        self._changed_ns = -1  # time of the record folder when last listed
        self._settled_s = self._listed_s = 0.0  # monotonic: from when on that time tells all, and of the last listing

    @property
    def record_folder(self) -> Path:
        return self.folder / RECORD_FOLDER

    def read(self) -> tuple[Record, ...]:
        """All records that can be read, predictions too, in the order of their file names."""
        self._refresh()
        return tuple(entry for _, entry in self._known.values() if isinstance(entry, Record))

    def refused(self) -> tuple[tuple[str, str], ...]:
        """(file name, reason) of the records that cannot be read. Their numbers are not used again."""
        self._refresh()
        return tuple((name, entry) for name, (_, entry) in self._known.items() if isinstance(entry, str))

    def open(self) -> tuple[Record, ...]:
        """Attempts that have not ended."""
        return still_open(self.read())

    def folder_of(self, record: Record) -> Path:
        """Where script, log, facts and run of the attempt lie."""
        return self.folder / ATTEMPT_FOLDER / record.tag

    def claim(self, wanted: Record) -> Record | None:
        """The wanted attempt, PLANNED, under the number after the last one that was read; its folder is made.

        None where somebody else has claimed that number since: what was read is no longer true. Raises UserError.
        """
        cell, _ = _split(replace(wanted, attempt=1).tag)
        self._numbers[cell] = self._numbers.get(cell, 0) + 1
        record = replace(wanted, state=PLANNED, attempt=self._numbers[cell])
        try:
            write_new_atomically(self._path(record), to_json(record))
        except FileExistsError:
            return None
        make_folder(self.folder_of(record))
        return record

    def advance(self, record: Record, state: str, **changes: Any) -> Record:
        """The record in its next state, written. Raises AttemptMovedError, or UserError when it cannot be written."""
        return self.replace(replace(record, state=state, **changes))

    def replace(self, record: Record) -> Record:
        """Write the next state of an attempt over the present one; see ``advance``."""
        with self._changes():
            present = self.present(record)
            if record.state not in NEXT_STATES.get(present.state, ()):
                raise AttemptMovedError(
                    f"attempt {record.tag} is {present.state} by now and cannot become {record.state}: another runner "
                    "works on this folder, end one of the two"
                )
            write_atomically(self._path(record), to_json(record))
        return record

    def present(self, record: Record) -> Record:
        """The attempt as its file says now. Raises UserError naming the file when it cannot be read."""
        found = _read(self._path(record))
        if isinstance(found, str):
            raise UserError(f"{self._path(record)}: {found}: move it away; its job, if any, will not count")
        return found

    def _path(self, record: Record) -> Path:
        return self.record_folder / record.file_name

    def _refresh(self) -> None:
        """Read what has changed. A folder whose own time has stood still for a while is not even listed."""
        changed_ns, now_s = _time_of(self.record_folder), time.monotonic()
        if changed_ns != self._changed_ns:
            self._changed_ns, self._settled_s = changed_ns, now_s + SETTLING_S
        elif self._listed_s > self._settled_s:
            return
        self._listed_s = now_s
        found = {}
        for path in sorted(self.record_folder.glob("*.json")):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            before = self._known.get(path.name)
            found[path.name] = before if before is not None and before[0] == stamp else (stamp, _read(path))
        self._known = found
        names = [Path(name).stem for name in found] + [path.name for path in (self.folder / ATTEMPT_FOLDER).glob("*")]
        self._numbers = {}
        for cell, number in map(_split, names):
            self._numbers[cell] = max(number, self._numbers.get(cell, 0))

    @contextmanager
    def _changes(self) -> Iterator[None]:
        """Between reading a state and writing the next nobody else does, where the file system has locks."""
        descriptor = os.open(self.record_folder / _CHANGE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _split(tag: str) -> tuple[str, int]:
    """The cell's part of a tag, and the attempt's number; 0 for a prediction."""
    found = _NUMBER.search(tag)
    return (tag[: found.start()], int(found.group(1))) if found else (tag, 0)


def _time_of(folder: Path) -> int:
    """Time of a folder's last change [ns]: every record is written by a new name in it. 0 for none."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def still_open(records: Iterable[Record]) -> tuple[Record, ...]:
    """The measured attempts among the records that have not ended."""
    return tuple(record for record in records if record.source == MEASURED and record.state in OPEN_STATES)


def make_folder(path: Path) -> None:
    """Make a folder that may be there. Raises UserError when the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path} ({error.strerror}): free space or choose another folder") from None


def _read(path: Path) -> Record | str:
    """The record, or why there is none."""
    try:
        return read_record(path)
    except UserError as error:
        return str(error)
