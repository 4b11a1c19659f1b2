"""Reads structures from any file ASE reads, one at a time. Never imports torch.

It does not own the rules for labels (``labels.py``): it reports only what cannot be read at all, and where.
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import numpy as np
from ase.io.extxyz import read_xyz
from ase.io.formats import UnknownFileTypeError, filetype, get_compression, open_with_compression
from ase.stress import voigt_6_to_full_3x3_stress

from janus.data.problems import DataError, Problem
from janus.data.structure import Structure
from janus.errors import UserError

DATABASE_SUFFIXES = {".db": "db", ".json": "json", ".aselmdb": "aselmdb"}
DEFAULT_ID_KEY = "id"


@dataclass(frozen=True, kw_only=True)
class LabelKeys:
    """Names of the labels in the file. ``identity`` None: the key "id" is used where present, and may be absent."""

    energy: str = "energy"
    forces: str = "forces"
    stress: str = "stress"
    identity: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One structure of a file, or the problem that took its place.

    index: 0-based; identity: its explicit id, None without; problems: found while reading; other_labels: names in
    the file that look like labels but were not asked for; fraction: part of the file read so far, None if unknown.
    """

    source: str
    index: int
    structure: Structure | None = None
    identity: str | None = None
    problems: tuple[Problem, ...] = ()
    other_labels: tuple[str, ...] = ()
    fraction: float | None = None


def read_entries(path: Path | str, keys: LabelKeys | None = None) -> Iterator[Entry]:
    """Stream the structures of a file. One that cannot be read becomes an Entry with a problem.

    Raises DataError when the file as a whole is missing, empty or of no known format, UserError when the reader for
    its format is not installed.
    """
    keys = keys or LabelKeys()
    path = Path(path)
    require_file(path)
    if path.suffix in DATABASE_SUFFIXES:
        found = _database_structures(path)
    elif _format_of(path) in ("extxyz", "xyz"):
        found = _xyz_structures(path)
    else:
        found = _other_structures(path)
    for index, (atoms, problem, fraction) in enumerate(found):
        if atoms is None:
            rule, what = problem
            wrong = Problem(rule=rule, source=str(path), index=index, what=what)
            yield Entry(source=str(path), index=index, problems=(wrong,), fraction=fraction)
        else:
            yield _entry(atoms, path, index, keys, fraction)


Found = tuple[ase.Atoms | None, tuple[str, str], float | None]
FINE = ("", "")


def require_file(path: Path) -> None:
    """Raise DataError if there is no such file or nothing in it."""

    def refuse(rule: str, what: str, repair: str) -> None:
        raise DataError(Problem(rule=rule, source=str(path), index=None, what=what), repair)

    try:
        if not path.exists():
            refuse("missing-file", "no such file", "check the path")
        if path.is_dir():
            refuse("unreadable", "it is a folder", "name the files in it")
        if path.stat().st_size == 0:
            refuse("empty-file", "the file is empty", "check how it was written")
        with path.open("rb"):
            pass
    except OSError as error:
        refuse("unreadable", f"it cannot be opened ({error.strerror})", "check the path and its permissions")


def _format_of(path: Path) -> str:
    """ASE's name of the file's format. Raises DataError when ASE knows none."""
    try:
        return filetype(str(path))
    except UnknownFileTypeError:
        raise _unknown_kind(path) from None
    except (UnicodeDecodeError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        problem = Problem(
            rule="unreadable", source=str(path), index=None, what=f"its start is damaged ({_reason(error)})"
        )
        raise DataError(problem, "check how it was written") from None


def _unknown_kind(path: Path) -> DataError:
    problem = Problem(rule="unreadable", source=str(path), index=None, what="ASE does not know this kind of file")
    return DataError(problem, "convert it to extended XYZ or to an ASE database")


def _reason(error: Exception) -> str:
    """The first line of a foreign error, short enough for a sentence."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160].rstrip(".:")


def _xyz_structures(path: Path) -> Iterator[Found]:
    """(Extended) XYZ, frame by frame, without an index of the file: only one frame is in memory."""
    compressed = get_compression(str(path))[1] is not None
    size = path.stat().st_size
    done = 0
    with open_with_compression(str(path), "rt") as stream:
        try:
            for text, problem in _xyz_frames(stream):
                done += len(text)
                fraction = None if compressed else min(1.0, done / size)
                if problem != FINE:
                    yield None, problem, fraction
                else:
                    yield (*_xyz_structure(text), fraction)
        except (UnicodeDecodeError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            yield None, ("unreadable", f"the text cannot be decoded ({_reason(error)})"), None


def _xyz_frames(stream: io.TextIOBase) -> Iterator[tuple[str, tuple[str, str]]]:
    """Text of each frame: count, comment, one line per atom, up to three VEC lines."""
    line = stream.readline()
    while line:
        if not line.strip():
            line = stream.readline()
            continue
        try:
            num_atoms = int(line)
        except ValueError:
            yield line, ("unreadable", f"expected a line with the number of atoms but found {line.strip()[:60]!r}")
            return
        lines, line = [line], stream.readline()
        while line and (len(lines) < num_atoms + 2 or line.lstrip().startswith("VEC")):
            lines.append(line)
            line = stream.readline()
        if len(lines) < num_atoms + 2:
            found = max(0, len(lines) - 2)
            yield "".join(lines), ("truncated", f"the file ends after {found} of {num_atoms} atoms")
            return
        yield "".join(lines), FINE


def _xyz_structure(text: str) -> tuple[ase.Atoms | None, tuple[str, str]]:
    try:
        return next(read_xyz(io.StringIO(text), index=0)), FINE
    except KeyError as error:
        return None, ("unknown-element", f"{error.args[0]!r} is not a chemical symbol")
    except ValueError as error:
        # ASE reads the stress of an extended XYZ file from 9 numbers and nothing else
        rule = "wrong-shape" if "info item stress" in str(error) else "unreadable"
        return None, (rule, f"ASE cannot read it ({_reason(error)})")
    except Exception as error:  # ASE's parser raises anything from AssertionError to XYZError on malformed text
        return None, ("unreadable", f"ASE cannot read it ({_reason(error)})")


def _database_structures(path: Path) -> Iterator[Found]:
    """Rows of an ASE database, in the order of their row ids."""
    kind = DATABASE_SUFFIXES[path.suffix]
    options: dict[str, Any] = {"readonly": True} if kind == "aselmdb" else {}
    try:
        database = ase.db.connect(str(path), type=kind, use_lock_file=False, **options)
        total = max(1, database.count())
        for number, row in enumerate(database.select(), start=1):
            atoms = row.toatoms()
            atoms.info.update(row.data)
            atoms.info.update(row.key_value_pairs)
            yield atoms, FINE, number / total
    except ImportError:
        raise UserError(
            f"{path} is an ASE LMDB file, whose reader is an optional extra: pip install 'janus-umlip[aselmdb]'"
        ) from None
    except Exception as error:  # sqlite3, lmdb, json and zlib each have their own errors for a damaged file
        yield None, ("unreadable", f"ASE cannot read this row or the database ({_reason(error)})"), None


def _other_structures(path: Path) -> Iterator[Found]:
    try:
        for atoms in ase.io.iread(str(path), index=":"):
            yield atoms, FINE, None
    except UnknownFileTypeError:
        raise _unknown_kind(path) from None
    except Exception as error:  # as many kinds of errors as ASE has formats
        yield None, ("unreadable", f"ASE cannot read it ({_reason(error)})"), None


def _entry(atoms: ase.Atoms, path: Path, index: int, keys: LabelKeys, fraction: float | None) -> Entry:
    """A Structure from ASE's atoms; labels keep whatever shape they have, for ``labels.py`` to judge."""
    per_structure = {**atoms.info, **(atoms.calc.results if atoms.calc is not None else {})}
    per_atom = {**atoms.arrays, **(atoms.calc.results if atoms.calc is not None else {})}
    problems: list[Problem] = []

    def label(values: dict[str, Any], name: str, key: str) -> np.ndarray | None:
        if values.get(key) is None:
            return None
        try:
            if isinstance(values[key], bool | np.bool_):
                raise ValueError
            return np.asarray(values[key], dtype=np.float64)
        except (ValueError, TypeError):
            what = f"{name} is {str(values[key])[:40]!r}, which is not a number"
            problems.append(Problem(rule="wrong-shape", source=str(path), index=index, what=what))
            return None

    stress = label(per_structure, "stress", keys.stress)
    if stress is not None and stress.size in (6, 9) and stress.ndim <= 2:
        stress = voigt_6_to_full_3x3_stress(stress.ravel()) if stress.size == 6 else stress.reshape(3, 3)
    if stress is not None and not atoms.pbc.all():
        what = f"a stress is given but the boundary conditions are {''.join('TF'[not flag] for flag in atoms.pbc)}"
        problems.append(Problem(rule="stress-ignored", source=str(path), index=index, what=what))
        stress = None
    identity = atoms.info.get(keys.identity or DEFAULT_ID_KEY)
    if identity is None and keys.identity is not None:
        what = f"no id named {keys.identity!r}"
        problems.append(Problem(rule="missing-id", source=str(path), index=index, what=what))
    structure = Structure(
        numbers=np.asarray(atoms.numbers, dtype=np.int32),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        cell=np.asarray(atoms.cell.array, dtype=np.float64),
        pbc=np.asarray(atoms.pbc, dtype=bool),
        energy=label(per_structure, "energy", keys.energy),
        forces=label(per_atom, "forces", keys.forces),
        stress=stress,
        name=str(identity) if identity is not None else f"{path.name}#{index}",
    )
    wanted = {keys.energy, keys.forces, keys.stress}
    others = sorted(name for name in {*per_structure, *per_atom} - wanted if _looks_like_label(name))
    return Entry(source=str(path), index=index, structure=structure, problems=tuple(problems), fraction=fraction,
                 identity=None if identity is None else str(identity), other_labels=tuple(others))  # fmt: skip


def _looks_like_label(name: str) -> bool:
    return any(part in name.lower() for part in ("energy", "force", "stress", "virial")) and "unit" not in name.lower()
