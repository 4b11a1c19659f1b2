"""The files of a store: append-only .npy arrays, their checked opening, and the atomic publishing of a folder.

It does not own what the arrays mean (``janus/data/store.py``). Never imports torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from janus.errors import UserError

META_NAME = "meta.json"
SCHEMA = "janus.store/1"
HASH_BLOCK_BYTES = 1 << 22
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArrayAppender:
    """Writes one .npy file row by row; NumPy leaves room in the header for the number of rows, known at the end."""

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row_shape = path, np.dtype(dtype), row_shape
        self.num_rows = 0
        self._digest = hashlib.sha256()
        self._file = path.open("wb", buffering=1 << 18)
        self._header_bytes = self._write_header()

    def _write_header(self) -> int:
        description = np.lib.format.dtype_to_descr(self.dtype)
        shape = (self.num_rows, *self.row_shape)
        np.lib.format.write_array_header_1_0(self._file, {"descr": description, "fortran_order": False, "shape": shape})
        return self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Append rows [n, *row_shape]; the values must fit the array's type exactly."""
        converted = np.ascontiguousarray(rows, dtype=self.dtype)
        assert converted.shape[1:] == self.row_shape, (self.path.name, converted.shape, self.row_shape)
        data = converted.tobytes()
        self._digest.update(data)
        self._file.write(data)
        self.num_rows += len(converted)

    def finish(self) -> dict[str, Any]:
        """Write the final header, reach the disk, and return the entry for meta.json."""
        file_bytes = self._file.tell()
        self._file.seek(0)
        header_bytes = self._write_header()
        assert header_bytes == self._header_bytes, (self.path.name, header_bytes, self._header_bytes)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"dtype": self.dtype.str, "shape": [self.num_rows, *self.row_shape], "file_bytes": file_bytes,
                "sha256": self._digest.hexdigest()}  # fmt: skip

    def close(self) -> None:
        """Release the file after a failure; what is buffered may not fit the disk any more and is of no use."""
        try:
            self._file.close()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file and see it reach the disk."""
    with path.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def checksum(meta: Mapping[str, Any]) -> str:
    """Hash of meta.json's content without the checksum itself."""
    rest = {name: value for name, value in meta.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a store. Raises UserError, naming the store, when it is missing, damaged or of another version."""
    path = folder / META_NAME
    if not folder.exists():
        raise UserError(f"no store at {folder}: check the path, or make one with `janus data pack`")
    if not path.is_file():
        raise UserError(f"{folder} is not a store, for it has no {META_NAME}: name a folder made by `janus data pack`")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        raise UserError(f"store {folder} is damaged, {META_NAME} is not valid JSON: pack its source again") from None
    except OSError as error:
        raise UserError(f"store {folder} cannot be read ({error.strerror}): check its permissions") from None
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else None
        raise UserError(f"store {folder} has schema {found!r} instead of {SCHEMA!r}: pack its source again")
    if meta.get("checksum") != checksum(meta):
        raise UserError(f"store {folder} is damaged, {META_NAME} does not match its checksum: pack its source again")
    return meta


def map_array(folder: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    """Memory-map one array after comparing size, type and shape with meta.json. Raises UserError naming the file."""
    path = folder / f"{name}.npy"
    if not path.is_file():
        raise UserError(f"store {folder} is damaged, {path.name} is missing: pack its source again")
    size = path.stat().st_size
    if size != entry["file_bytes"]:
        raise UserError(
            f"store {folder} is damaged, {path.name} has {size} bytes instead of {entry['file_bytes']}: "
            "pack its source again"
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise UserError(f"{path} cannot be read: check its permissions") from None
    except (ValueError, OSError, EOFError, SyntaxError):
        raise UserError(f"store {folder} is damaged, {path.name} has no valid header: pack its source again") from None
    if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"]:
        raise UserError(
            f"store {folder} is damaged, {path.name} is {array.dtype.str}{list(array.shape)} instead of "
            f"{entry['dtype']}{entry['shape']}: pack its source again"
        )
    return np.asarray(array)


def hash_array(array: np.ndarray) -> str:
    """sha256 of an array's bytes, read block by block."""
    digest = hashlib.sha256()
    rows = max(1, HASH_BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
    return digest.hexdigest()


@contextmanager
def disk_errors_named(target: Path) -> Iterator[None]:
    """Turn a full disk and other write errors of the operating system into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"no room left on the disk while writing {target} ({error.strerror}): free some space or write "
                "elsewhere; what was there before is unchanged"
            ) from None
        raise UserError(
            f"cannot write {target} ({error.strerror or error}): check the folder and its permissions"
        ) from None


@contextmanager
def published_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """A temporary folder beside the target that takes its place when the block ends well and vanishes when not.

    Raises UserError before anything is written when the target exists and may not be replaced. An existing store is
    moved aside by one rename and removed only after the new one is in place.
    """
    target = Path(os.path.realpath(target))
    _require_free(target, replace=replace)
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    with disk_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            _sync_folder(partial)
            _require_free(target, replace=replace)
            _exchange(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _require_free(target: Path, *, replace: bool) -> None:
    if not target.exists():
        return
    if not replace:
        raise UserError(f"{target} exists: choose another name, or replace it with --force")
    if not (target / META_NAME).is_file():
        raise UserError(f"{target} exists and is not a store, so it is not replaced: choose another name")


def _exchange(partial: Path, target: Path) -> None:
    """Put the finished folder in place; between the two renames the old one lies beside it under another name."""
    retired = target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}")
    if target.exists():
        target.rename(retired)
    try:
        partial.rename(target)
    except OSError:
        if retired.exists():
            retired.rename(target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
