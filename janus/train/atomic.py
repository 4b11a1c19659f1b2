"""Files that are either the old or the new version whatever happens in between: temporary name, fsync, rename.

Errors of the operating system (full disk, no permission) pass through as OSError. It does not own what is written.
"""

from __future__ import annotations

import os
import shutil
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


def make_folder_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that appears under its name only when ``fill`` has written all of it; replaces an old one."""
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for file in temporary.iterdir():
            sync_path(file)
        sync_path(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_path(path.parent)
