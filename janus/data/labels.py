"""The rules a labelled structure must keep, and the account of what broke them. Never imports torch.

It does not own the reading of files (``reading.py``) or the names of the rules (``problems.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from janus.data.graph import find_pairs
from janus.data.problems import DataError, Problem
from janus.data.reading import Entry
from janus.data.reference import NUM_ATOMIC_NUMBERS
from janus.data.seen import SeenDigests, digest_of
from janus.data.structure import Structure
from janus.errors import UserError

MAX_ATOMIC_NUMBER = NUM_ATOMIC_NUMBERS - 1
SHORTEST_LATTICE_VECTOR_ANGSTROM = 0.5  # assumed: below any bond length
FLATTEST_CELL = 1e-3  # assumed: volume over the product of the lengths of the periodic lattice vectors
DENSEST_CELL_ANGSTROM3_PER_ATOM = 0.5  # assumed: atomic metallic hydrogen at 500 GPa has about 1.1
WIDEST_SPREAD_ANGSTROM = 1000.0  # assumed; vesin 0.6 ends the process on wires and slabs spread over 10,000 A or more
SEARCH_RADIUS_ANGSTROM = 3.0
REPAIR = "correct the file, or leave such structures out with --skip-bad"


@dataclass(frozen=True, kw_only=True)
class LabelLimits:
    """Limits of the rules that need one; infinity (or 0 for the distance) turns a rule off.

    max_force_ev_per_angstrom: assumed; the largest force of a random 1,000 of MPtrj is 70.
    min_distance_angstrom: assumed; the shortest bond, H2, is 0.74.
    max_conflict_ev_per_atom: assumed; difference in energy of identical structures.
    """

    max_force_ev_per_angstrom: float = 100.0
    min_distance_angstrom: float = 0.3
    max_conflict_ev_per_atom: float = 1e-3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise UserError(f"{name} is {value}: it must be 0 or more")


Finding = tuple[str, str]


def structure_findings(structure: Structure, limits: LabelLimits) -> list[Finding]:
    """(rule, what) for every rule one structure breaks by itself; rules that need sound data wait for it."""
    if structure.num_atoms == 0:
        return [("empty-structure", "it has no atoms")]
    findings = _shape_findings(structure)
    if any(rule == "wrong-shape" and not what.startswith(("energy", "forces", "stress")) for rule, what in findings):
        return findings
    findings += _element_findings(structure) + _finite_findings(structure) + _missing_findings(structure)
    if not (np.isfinite(structure.positions).all() and np.isfinite(structure.cell).all()):
        return findings
    geometry = _spread_findings(structure) + _cell_findings(structure)
    return findings + (geometry or _distance_findings(structure, limits)) + _force_findings(structure, limits)


def _shape_findings(structure: Structure) -> list[Finding]:
    count = structure.num_atoms
    expected = {"numbers": (count,), "positions": (count, 3), "cell": (3, 3), "pbc": (3,), "energy": (),
                "forces": (count, 3), "stress": (3, 3)}  # fmt: skip
    shapes = {name: np.shape(getattr(structure, name)) for name in expected if getattr(structure, name) is not None}
    return [
        ("wrong-shape", f"{name} has shape {list(shape)} instead of {list(expected[name])}")
        for name, shape in shapes.items()
        if shape != expected[name]
    ]


def _element_findings(structure: Structure) -> list[Finding]:
    wrong = np.flatnonzero((structure.numbers < 1) | (structure.numbers > MAX_ATOMIC_NUMBER))
    if not len(wrong):
        return []
    number = int(structure.numbers[wrong[0]])
    return [("unknown-element", f"atom {wrong[0]} has atomic number {number}, outside 1 to {MAX_ATOMIC_NUMBER}")]


def _finite_findings(structure: Structure) -> list[Finding]:
    findings = []
    for name in ("positions", "cell", "energy", "forces", "stress"):
        value = getattr(structure, name)
        if value is None or np.isfinite(value).all():
            continue
        bad = np.argwhere(~np.isfinite(np.atleast_1d(value)))[0]
        where = f" of atom {bad[0]}" if name in ("positions", "forces") else ""
        findings.append(("not-finite", f"{name}{where} is {np.atleast_1d(value)[tuple(bad)]}"))
    return findings


def _missing_findings(structure: Structure) -> list[Finding]:
    missing = [name for name in ("energy", "forces") if getattr(structure, name) is None]
    return [("missing-label", f"no {' and no '.join(missing)}")] if missing else []


def _spread_findings(structure: Structure) -> list[Finding]:
    spread = float(np.ptp(structure.positions, axis=0).max())
    if spread <= WIDEST_SPREAD_ANGSTROM:
        return []
    return [("absurd-positions", f"its atoms are spread over {spread:.4g} A, above {WIDEST_SPREAD_ANGSTROM:g} A")]


def _cell_findings(structure: Structure) -> list[Finding]:
    """Degenerate periodic cells, by the lengths, the flatness and (in three directions) the room for the atoms."""
    vectors = structure.cell[structure.pbc]
    if not len(vectors):
        return []
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() < SHORTEST_LATTICE_VECTOR_ANGSTROM:
        return [("zero-volume-cell", f"a periodic lattice vector is {lengths.min():.3g} A long, below "
                 f"{SHORTEST_LATTICE_VECTOR_ANGSTROM} A")]  # fmt: skip
    unit = vectors / lengths[:, None]
    flatness = float(np.sqrt(max(0.0, np.linalg.det(unit @ unit.T))))
    if flatness < FLATTEST_CELL:
        return [("zero-volume-cell", "its periodic lattice vectors are (nearly) linearly dependent, volume over "
                 f"product of lengths is {flatness:.2g}, below {FLATTEST_CELL}")]  # fmt: skip
    room = abs(float(np.linalg.det(structure.cell))) / structure.num_atoms
    if len(vectors) == 3 and room < DENSEST_CELL_ANGSTROM3_PER_ATOM:
        return [("zero-volume-cell", f"its volume is {room:.3g} A^3 per atom, below "
                 f"{DENSEST_CELL_ANGSTROM3_PER_ATOM}")]  # fmt: skip
    return []


def _distance_findings(structure: Structure, limits: LabelLimits) -> list[Finding]:
    limit = limits.min_distance_angstrom
    if limit == 0.0:
        return []
    _, first, count = np.unique(structure.positions, axis=0, return_index=True, return_counts=True)
    if (count > 1).any():  # also keeps thousands of atoms at one place from becoming millions of pairs below
        atom = int(first[np.argmax(count > 1)])
        return [("overlapping-atoms", f"atom {atom} and another are at the same place")]
    # a search radius of some angstrom is faster than the limit itself, for which vesin makes thousands of tiny bins
    one, other, distance = find_pairs(structure, max(limit, SEARCH_RADIUS_ANGSTROM), "ijd")
    pair = int(np.argmin(distance)) if len(distance) else -1
    if pair < 0 or distance[pair] >= limit:
        return []
    return [("overlapping-atoms", f"atoms {one[pair]} and {other[pair]} are {distance[pair]:.3g} A apart, below the "
             f"limit of {limit} A")]  # fmt: skip


def _force_findings(structure: Structure, limits: LabelLimits) -> list[Finding]:
    if structure.forces is None or structure.forces.shape != structure.positions.shape:
        return []
    size = np.linalg.norm(np.nan_to_num(structure.forces), axis=1)
    atom = int(np.argmax(size))
    if size[atom] <= limits.max_force_ev_per_angstrom:
        return []
    return [("absurd-forces", f"the force on atom {atom} is {size[atom]:.4g} eV/A, above the limit of "
             f"{limits.max_force_ev_per_angstrom:g}")]  # fmt: skip


class LabelChecker:
    """Checks entries in order, remembering ids and structures over all files for the rules on duplicates."""

    def __init__(self, limits: LabelLimits | None = None) -> None:
        self.limits = limits or LabelLimits()
        self._identities = SeenDigests()
        self._structures = SeenDigests()
        self._first_of_source: list[tuple[str, int]] = []
        self._ordinal = 0

    def check(self, entry: Entry) -> list[Problem]:
        """Everything wrong with one entry, warnings included; only sound structures are remembered."""
        if not self._first_of_source or entry.index == 0:
            self._first_of_source.append((entry.source, self._ordinal - entry.index))
        problems = list(entry.problems)
        if entry.structure is not None:
            findings = structure_findings(entry.structure, self.limits)
            shaped = {problem.what.split(" ")[0] for problem in entry.problems if problem.rule == "wrong-shape"}
            findings = [_explained(finding, entry) for finding in findings if not _is_missing_only(finding, shaped)]
            problems += [self._problem(entry, finding) for finding in findings]
            if not any(problem.is_error for problem in problems):
                problems += [self._problem(entry, finding) for finding in self._duplicate_findings(entry)]
        self._ordinal += 1
        return problems

    def _problem(self, entry: Entry, finding: Finding) -> Problem:
        return Problem(rule=finding[0], source=entry.source, index=entry.index, what=finding[1])

    def _duplicate_findings(self, entry: Entry) -> list[Finding]:
        structure = entry.structure
        assert structure is not None
        assert structure.energy is not None, entry
        findings: list[Finding] = []
        identity = None if entry.identity is None else digest_of(entry.identity.encode())
        earlier = None if identity is None else self._identities.find(identity)
        if earlier is not None:
            findings.append(("duplicate-id", f"id {entry.identity!r} was already that of {self._place(earlier[0])}"))
        geometry = digest_of(structure.numbers.tobytes(), structure.positions.tobytes(), structure.cell.tobytes(),
                             structure.pbc.tobytes())  # fmt: skip
        energy = float(structure.energy) / structure.num_atoms
        twin = self._structures.find(geometry)
        if twin is not None:
            place, difference = self._place(twin[0]), abs(energy - twin[1])
            conflict = difference > self.limits.max_conflict_ev_per_atom
            rule = "conflicting-labels" if conflict else "identical-structure"
            findings.append((rule, f"the same structure as {place}, energies differ by {difference:.3g} eV/atom"))
        if all(rule == "identical-structure" for rule, _ in findings):
            if identity is not None:
                self._identities.add(identity, self._ordinal)
            if twin is None:
                self._structures.add(geometry, self._ordinal, energy)
        return findings

    def _place(self, ordinal: int) -> str:
        """File and index of an earlier entry; the file is left out when there is but one."""
        source, first = next(pair for pair in reversed(self._first_of_source) if pair[1] <= ordinal)
        index = f"index {ordinal - first}"
        return index if len(self._first_of_source) == 1 else f"{index} of {source}"


def _is_missing_only(finding: Finding, shaped: set[str]) -> bool:
    """True for "no energy" when the reader already said that the energy is not a number."""
    return finding[0] == "missing-label" and set(finding[1].replace("no ", "").split(" and ")) <= shaped


def _explained(finding: Finding, entry: Entry) -> Finding:
    """A missing label with the label-like names that the file has instead."""
    if finding[0] != "missing-label" or not entry.other_labels:
        return finding
    return finding[
        0
    ], f"{finding[1]}, but the file has {', '.join(entry.other_labels)} (see --energy-key, --forces-key)"


@dataclass
class LabelReport:
    """Account of a run of checks: how many entries were seen, every problem, and what was left out."""

    num_entries: int = 0
    num_labelled: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.is_error]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.is_error]

    @property
    def count_of_rule(self) -> dict[str, int]:
        return dict(Counter(problem.rule for problem in self.problems))

    @property
    def num_bad(self) -> int:
        """Structures (and files) with at least one error."""
        return len({(problem.source, problem.index) for problem in self.errors})

    def to_mapping(self) -> dict[str, Any]:
        """The content of skipped.json: count per rule, each index per rule and file, each problem."""
        indices: dict[str, dict[str, list[int | None]]] = {}
        for problem in self.problems:
            indices.setdefault(problem.rule, {}).setdefault(problem.source, []).append(problem.index)
        return {
            "schema": "janus.skipped/1", "num_entries": self.num_entries, "num_skipped": self.num_bad,
            "num_warnings": len(self.warnings), "count_of_rule": self.count_of_rule, "indices_of_rule": indices,
            "problems": [problem.to_mapping() for problem in self.problems],
        }  # fmt: skip


def check_entries(
    entries: Iterable[Entry], checker: LabelChecker, report: LabelReport,
    *, on_entry: Callable[[Entry], None] | None = None,
) -> Iterator[tuple[Entry, list[Problem]]]:  # fmt: skip
    """Check a stream, filling the report as it goes. A file without any label ends with a no-labels problem."""
    labelled_before = report.num_labelled
    last: Entry | None = None
    for entry in entries:
        problems = checker.check(entry)
        structure = entry.structure
        report.num_entries += 1
        report.num_labelled += structure is not None and (structure.energy is not None or structure.forces is not None)
        report.problems += problems
        if on_entry is not None:
            on_entry(entry)
        yield entry, problems
        last = entry
    if last is not None and last.structure is not None and report.num_labelled == labelled_before:
        what = f"none of its {last.index + 1} structures has an energy or forces"
        report.problems.append(Problem(rule="no-labels", source=last.source, index=None, what=what))


def sound_structures(
    entries: Iterable[Entry], checker: LabelChecker, report: LabelReport,
    *, skip_bad: bool = False, on_entry: Callable[[Entry], None] | None = None,
) -> Iterator[Structure]:  # fmt: skip
    """Structures that keep every rule. Raises DataError at the first that does not; skip_bad lists it instead."""
    for entry, problems in check_entries(entries, checker, report, on_entry=on_entry):
        errors = [problem for problem in problems if problem.is_error]
        if errors and not skip_bad:
            raise DataError(errors[0], REPAIR)
        if not errors:
            assert entry.structure is not None, entry
            yield replace(entry.structure, energy=float(entry.structure.energy))  # type: ignore[arg-type]
