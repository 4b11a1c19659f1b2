"""Files that are either the old or the new version whatever happens in between: temporary name, fsync, rename.

Errors of the operating system (full disk, no permission) pass through as OSError. It does not own what is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def sync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file as a whole by what ``write`` puts at the path that it is given."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        write(temporary)
        sync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    replace_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
