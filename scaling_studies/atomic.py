"""Writing a file so that a reader sees the old content or the new, never half of one. It does not own formats."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from janus.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` through a temporary file in the same folder, fsync and rename.

    On any failure the old file stays as it was and the temporary file is removed. Raises UserError when the
    operating system refuses (disk full, no permission).
    """
    _write(path, content, lambda temporary: temporary.replace(path))


def write_new_atomically(path: Path, text: str) -> None:
    """The same for a file that must not be there yet: of two writers one wins, and the other gets FileExistsError.

    The finished temporary file is linked to its name, which is exclusive on network file systems too.
    """
    _write(path, text, lambda temporary: os.link(temporary, path))


def _write(path: Path, content: str | bytes, publish: Callable[[Path], object]) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        publish(temporary)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.exists():
            raise
        raise UserError(f"cannot write {path} ({error.strerror}): free space or choose another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
