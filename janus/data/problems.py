"""What can be wrong with a structure or a file: the rules by name, one found problem, and the error that carries it.

It does not own the finding (``reading.py`` for files, ``labels.py`` for structures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from janus.errors import UserError

# rule -> what it says. Errors stop a pack (or are left out by --skip-bad); warnings are listed and kept.
ERRORS = {
    "missing-file": "the file exists",
    "empty-file": "the file has content",
    "unreadable": "ASE can read the file and each of its structures",
    "truncated": "the last structure is complete",
    "no-labels": "at least one structure of a file has energy or forces",
    "empty-structure": "a structure has atoms",
    "wrong-shape": "energy is one number, forces are [atoms,3], stress is [3,3] or 6 numbers (Voigt)",
    "unknown-element": "atomic numbers are 1 to 94",
    "not-finite": "positions, cell and labels are finite numbers",
    "missing-label": "every structure has an energy and forces (stress may be absent)",
    "absurd-positions": "atoms are spread over at most 1,000 A along each axis",
    "zero-volume-cell": "periodic lattice vectors are long enough, not (nearly) coplanar, and leave room for the atoms",
    "overlapping-atoms": "no two atoms, periodic images included, are nearer than the distance limit",
    "absurd-forces": "no force is above the force limit",
    "missing-id": "every structure has the id key that was asked for",
    "duplicate-id": "ids are unique over all files packed together",
    "conflicting-labels": "identical structures have the same energy per atom within the conflict limit",
}
WARNINGS = {
    "identical-structure": "a structure occurs once (identical numbers, positions, cell and boundary conditions)",
    "stress-ignored": "a stress belongs to a structure that is periodic in three directions; elsewhere it is not used",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One broken rule. index is 0-based within the file, None for the file as a whole."""

    rule: str
    source: str
    index: int | None
    what: str

    def __post_init__(self) -> None:
        assert self.rule in ERRORS or self.rule in WARNINGS, self.rule

    @property
    def is_error(self) -> bool:
        return self.rule in ERRORS

    @property
    def sentence(self) -> str:
        """File, index and rule in words."""
        place = self.source if self.index is None else f"{self.source}, index {self.index} (0-based)"
        return f"{place}: {self.what} (rule {self.rule})"

    def to_mapping(self) -> dict[str, Any]:
        return {"rule": self.rule, "source": self.source, "index": self.index, "what": self.what,
                "severity": "error" if self.is_error else "warning"}  # fmt: skip


class DataError(UserError):
    """A user error about one problem in the data."""

    def __init__(self, problem: Problem, repair: str) -> None:
        super().__init__(f"{problem.sentence}: {repair}")
        self.problem = problem
