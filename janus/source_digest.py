"""The identity of the trainer's code: a digest of the sources that decide a measurement.

It owns which sources those are: all of this package but what runs beside training (command line, calibration,
calculator, rehearsals). It does not own revisions and diffs (``scaling_studies.code_version``). Never imports torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
NOT_COUNTED = ("cli", "calibrate", "calculator", "rehears")  # starts of names directly in the package
DIGITS = 12


def counted_sources(package: Path = PACKAGE) -> list[Path]:
    """Python files of the package that count, by path, sorted."""
    found = (path.relative_to(package) for path in package.rglob("*.py"))
    return sorted(path for path in found if not path.parts[0].startswith(NOT_COUNTED))


def source_digest(package: Path = PACKAGE) -> str:
    """Twelve hexadecimal digits of the SHA-256 of names and contents of the sources that count."""
    total = hashlib.sha256()
    for path in counted_sources(package):
        content = hashlib.sha256((package / path).read_bytes()).hexdigest()
        total.update(f"{path.as_posix()} {content}\n".encode())
    return total.hexdigest()[:DIGITS]
