"""The packed store: structures, labels and graph counts as memory-mapped arrays in one folder NAME.store.

It does not own the reading of other formats (``reading.py``) or the rules for labels (``labels.py``); the file layer
is ``store_arrays.py``. Never imports torch. Legend: S structures, N atoms of all structures together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from janus.config import require_cutoffs
from janus.data.graph import count_graph
from janus.data.reference import NUM_ATOMIC_NUMBERS, Chunk, ReferenceEnergies, fit_reference_energies
from janus.data.store_arrays import (
    META_NAME,
    SCHEMA,
    ArrayAppender,
    checksum,
    hash_array,
    map_array,
    published_folder,
    read_meta,
    write_json,
)
from janus.data.structure import Structure
from janus.errors import UserError

SKIPPED_NAME = "skipped.json"
CHUNK_STRUCTURES = 1024

# name -> (type, shape of one row). Rows are atoms, structures, (structure, element) pairs or bytes of names.
CONTENT = {
    "numbers": ("u1", ()), "positions": ("<f8", (3,)), "forces": ("<f8", (3,)),
    "atom_end": ("<i8", ()), "cell": ("<f8", (3, 3)), "pbc": ("|b1", (3,)),
    "energy": ("<f8", ()), "stress": ("<f8", (3, 3)),
    "has_energy": ("|b1", ()), "has_forces": ("|b1", ()), "has_stress": ("|b1", ()),
    "name_bytes": ("u1", ()), "name_end": ("<i8", ()),
}  # fmt: skip
COUNTS = {
    "num_atoms": ("<i8", ()), "num_edges": ("<i8", ()), "num_bonds": ("<i8", ()), "num_angles": ("<i8", ()),
    "composition_element": ("u1", ()), "composition_atoms": ("<i4", ()), "composition_edges": ("<i4", ()),
    "composition_end": ("<i8", ()),
}  # fmt: skip
ARRAYS = CONTENT | COUNTS


def write_store(
    path: Path | str,
    structures: Iterable[Structure],
    *,
    cutoff_angstrom: float,
    line_cutoff_angstrom: float,
    replace: bool = False,
    sources: Sequence[Mapping[str, Any]] = (),
    skipped: Callable[[], Mapping[str, Any]] | None = None,
) -> StructureStore:
    """Stream structures into a new store; nothing is kept in memory but the structure at hand.

    Arguments: path NAME.store; structures whose labels were checked (``labels.py``); cutoffs for the counts;
    replace: an existing store is exchanged once the new one is complete; sources: what was read, for meta.json;
    skipped: called when all structures are written, its answer becomes skipped.json.
    Raises UserError when the target exists, the disk is full, or there is no structure at all.
    """
    target = Path(path)
    if target.suffix != ".store":
        raise UserError(f"store name {target.name!r} must end in .store: use {target.stem}.store")
    require_cutoffs(cutoff_angstrom, line_cutoff_angstrom)
    with published_folder(target, replace=replace) as folder:
        entries = _append_all(folder, structures, cutoff_angstrom, line_cutoff_angstrom)
        left_out = dict(skipped()) if skipped is not None else {}
        if entries["num_atoms"]["shape"][0] == 0:
            raise UserError(f"no structure is left to write to {target}: correct the source")
        if skipped is not None:
            write_json(folder / SKIPPED_NAME, left_out)
        arrays = {name: map_array(folder, name, entry) for name, entry in entries.items()}
        meta = {
            "schema": SCHEMA,
            "num_structures": entries["num_atoms"]["shape"][0],
            "cutoff_angstrom": float(cutoff_angstrom),
            "line_cutoff_angstrom": float(line_cutoff_angstrom),
            "fingerprint": _fingerprint(entries),
            "num_skipped": int(left_out.get("num_skipped", 0)),
            "sources": [dict(source) for source in sources],
            "reference": _reference_entry(_fit(arrays)),
            "arrays": entries,
        }
        write_json(folder / META_NAME, meta | {"checksum": checksum(meta)})
        del arrays
    return StructureStore.open(target)


def _append_all(
    folder: Path, structures: Iterable[Structure], cutoff_angstrom: float, line_cutoff_angstrom: float
) -> dict[str, Any]:
    ends = {"atom_end": 0, "name_end": 0, "composition_end": 0}
    with ExitStack() as stack:
        writers: dict[str, ArrayAppender] = {}
        for name, (dtype, row_shape) in ARRAYS.items():
            writers[name] = ArrayAppender(folder / f"{name}.npy", dtype, row_shape)
            stack.callback(writers[name].close)
        for structure in structures:
            rows = _content_rows(structure) | _count_rows(structure, cutoff_angstrom, line_cutoff_angstrom)
            for end, rows_of in (("atom_end", "numbers"), ("name_end", "name_bytes"),
                                 ("composition_end", "composition_element")):  # fmt: skip
                ends[end] += len(rows[rows_of])
                rows[end] = np.array([ends[end]])
            for name, writer in writers.items():
                writer.append(rows[name])
        return {name: writer.finish() for name, writer in writers.items()}


def _content_rows(structure: Structure) -> dict[str, np.ndarray]:
    """The rows of one structure in the content arrays; absent labels are NaN, so that a misuse shows."""
    count = structure.num_atoms
    assert count > 0, structure.name
    has = {"energy": structure.energy is not None, "forces": structure.forces is not None,
           "stress": structure.stress is not None}  # fmt: skip
    rows = {
        "numbers": structure.numbers,
        "positions": structure.positions,
        "forces": structure.forces if has["forces"] else np.full((count, 3), np.nan),
        "cell": structure.cell[None],
        "pbc": structure.pbc[None],
        "energy": np.array([structure.energy if has["energy"] else np.nan]),
        "stress": structure.stress[None] if structure.stress is not None else np.full((1, 3, 3), np.nan),
        "name_bytes": np.frombuffer(structure.name.encode(), dtype=np.uint8),
    }
    for name in ("positions", "forces"):
        assert len(rows[name]) == count, (structure.name, name, len(rows[name]), count)
    return rows | {f"has_{label}": np.array([present]) for label, present in has.items()}


def _count_rows(structure: Structure, cutoff_angstrom: float, line_cutoff_angstrom: float) -> dict[str, np.ndarray]:
    """Graph counts of one structure, in total and per element of the centre."""
    counts = count_graph(structure, cutoff_angstrom, line_cutoff_angstrom)
    elements, atoms = np.unique(structure.numbers, return_counts=True)
    edges = np.bincount(structure.numbers, weights=counts.edges_of_atom, minlength=NUM_ATOMIC_NUMBERS)
    return {
        "num_atoms": np.array([structure.num_atoms]),
        "num_edges": np.array([counts.num_edges]),
        "num_bonds": np.array([counts.num_bonds]),
        "num_angles": np.array([counts.num_angles]),
        "composition_element": elements,
        "composition_atoms": atoms,
        "composition_edges": edges[elements].astype(np.int64),
    }


def _fingerprint(entries: Mapping[str, Any]) -> str:
    """Hash of the structures and labels, whatever the cutoffs."""
    return hashlib.sha256("".join(entries[name]["sha256"] for name in sorted(CONTENT)).encode()).hexdigest()


def _composition(arrays: Mapping[str, np.ndarray], column: str, start: int, stop: int) -> np.ndarray:
    """Dense [stop-start, 95] int64 of one per-element count of a run of structures."""
    ends = arrays["composition_end"]
    first = int(ends[start - 1]) if start else 0
    rows = np.repeat(np.arange(stop - start), np.diff(ends[start:stop], prepend=first))
    last = first + len(rows)
    dense = np.zeros((stop - start, NUM_ATOMIC_NUMBERS), dtype=np.int64)
    dense[rows, arrays["composition_element"][first:last]] = arrays[column][first:last]
    return dense


def _fit(arrays: Mapping[str, np.ndarray]) -> ReferenceEnergies:
    """Reference energies of all structures with an energy, a chunk at a time."""

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(arrays["energy"]), CHUNK_STRUCTURES):
            stop = min(start + CHUNK_STRUCTURES, len(arrays["energy"]))
            labelled = arrays["has_energy"][start:stop]
            atoms = _composition(arrays, "composition_atoms", start, stop)
            yield atoms[labelled], arrays["energy"][start:stop][labelled]

    return fit_reference_energies(chunks)


def _reference_entry(fit: ReferenceEnergies) -> dict[str, Any]:
    energies = {str(z): float(fit.by_atomic_number[z]) for z in np.flatnonzero(fit.by_atomic_number)}
    rest = {name: value for name, value in asdict(fit).items() if name != "by_atomic_number"}
    if fit.num_structures == 0:
        rest |= {"rmse_ev_per_atom": None, "mae_ev_per_atom": None}
    return {"energy_ev": energies, **rest}


@dataclass(frozen=True, kw_only=True, eq=False)
class StructureStore:
    """An open store. ``store[i]`` is a Structure; count arrays [S] int64 are memory-mapped and never open a sample.

    path: its folder; meta: content of meta.json; arrays: the mapped arrays by name (docs/data.md lists them).
    """

    path: Path
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    cutoff_angstrom: float
    line_cutoff_angstrom: float

    @classmethod
    def open(cls, path: Path | str) -> StructureStore:
        """Open a store, comparing every file's size, type and shape with meta.json. Raises UserError if damaged."""
        folder = Path(path)
        meta = read_meta(folder)
        arrays = {name: map_array(folder, name, meta["arrays"][name]) for name in ARRAYS}
        return cls(path=folder, meta=meta, arrays=arrays, cutoff_angstrom=meta["cutoff_angstrom"],
                   line_cutoff_angstrom=meta["line_cutoff_angstrom"])  # fmt: skip

    def verify(self) -> list[str]:
        """Compare the content of every array file with its hash; one sentence per damaged file, none if all is well."""
        return [
            f"store {self.path} is damaged, {name}.npy does not match its hash: pack its source again"
            for name in ARRAYS
            if hash_array(map_array(self.path, name, self.meta["arrays"][name])) != self.meta["arrays"][name]["sha256"]
        ]

    def __len__(self) -> int:
        return len(self.num_atoms)

    def __getitem__(self, index: int) -> Structure:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"structure {index} of {len(self)} in {self.path}")
        arrays, stop = self.arrays, int(self.arrays["atom_end"][position])
        atoms = slice(stop - int(self.num_atoms[position]), stop)
        return Structure(
            numbers=arrays["numbers"][atoms].astype(np.int32),
            positions=arrays["positions"][atoms].copy(),
            cell=arrays["cell"][position].copy(),
            pbc=arrays["pbc"][position].copy(),
            energy=float(arrays["energy"][position]) if self.has_energy[position] else None,
            forces=arrays["forces"][atoms].copy() if self.has_forces[position] else None,
            stress=arrays["stress"][position].copy() if self.has_stress[position] else None,
            name=self.name_of(position),
        )

    def __iter__(self) -> Iterator[Structure]:
        return (self[index] for index in range(len(self)))

    def name_of(self, index: int) -> str:
        """Name of one structure."""
        ends = self.arrays["name_end"]
        start = int(ends[index - 1]) if index else 0
        return self.arrays["name_bytes"][start : int(ends[index])].tobytes().decode()

    @property
    def names(self) -> list[str]:
        """Names of all structures (a list in memory: use ``name_of`` for large stores)."""
        return [self.name_of(index) for index in range(len(self))]

    @property
    def num_atoms(self) -> np.ndarray:
        return self.arrays["num_atoms"]

    @property
    def num_edges(self) -> np.ndarray:
        """Directed edges within the pair cutoff [S]."""
        return self.arrays["num_edges"]

    @property
    def num_bonds(self) -> np.ndarray:
        """Directed edges within the line cutoff [S]."""
        return self.arrays["num_bonds"]

    @property
    def num_angles(self) -> np.ndarray:
        """Ordered pairs of distinct bonds at one centre [S]."""
        return self.arrays["num_angles"]

    @property
    def has_energy(self) -> np.ndarray:
        return self.arrays["has_energy"]

    @property
    def has_forces(self) -> np.ndarray:
        return self.arrays["has_forces"]

    @property
    def has_stress(self) -> np.ndarray:
        return self.arrays["has_stress"]

    @property
    def work(self) -> np.ndarray:
        """Work of each structure [S] int64: directed edges + angles."""
        return self.num_edges + self.num_angles

    def element_counts(self, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Atoms and edges of each element in a run of structures: two [stop-start,95] int64, by centre element."""
        last = len(self) if stop is None else stop
        return (_composition(self.arrays, "composition_atoms", start, last),
                _composition(self.arrays, "composition_edges", start, last))  # fmt: skip

    @cached_property
    def element_atoms(self) -> np.ndarray:
        """Atoms of each element in each structure [S,95] int64 (760 bytes per structure; see ``element_counts``)."""
        return self.element_counts()[0]

    @cached_property
    def element_edges(self) -> np.ndarray:
        """Directed edges by element of the centre in each structure [S,95] int64 (see ``element_counts``)."""
        return self.element_counts()[1]

    @property
    def atoms_of_element(self) -> np.ndarray:
        """Atoms of each element in the whole store [95] int64."""
        return self._element_total("composition_atoms")

    @property
    def edges_of_element(self) -> np.ndarray:
        """Directed edges by element of the centre in the whole store [95] int64."""
        return self._element_total("composition_edges")

    def _element_total(self, column: str) -> np.ndarray:
        total = np.zeros(NUM_ATOMIC_NUMBERS, dtype=np.int64)
        for start in range(0, len(self.arrays[column]), CHUNK_STRUCTURES):
            part = slice(start, start + CHUNK_STRUCTURES)
            np.add.at(total, self.arrays["composition_element"][part], self.arrays[column][part])
        return total

    @property
    def reference(self) -> ReferenceEnergies:
        """Reference energies per element with their residual, fitted when the store was packed."""
        entry = dict(self.meta["reference"])
        energies = np.zeros(NUM_ATOMIC_NUMBERS)
        for number, energy in entry.pop("energy_ev").items():
            energies[int(number)] = energy
        residual = {name: float("nan") if entry[name] is None else entry[name]
                    for name in ("rmse_ev_per_atom", "mae_ev_per_atom")}  # fmt: skip
        return ReferenceEnergies(by_atomic_number=energies, **(entry | residual))

    @property
    def reference_energies(self) -> np.ndarray:
        """Reference energy by atomic number [95] float64, eV; 0 where the element is absent."""
        return self.reference.by_atomic_number

    @property
    def fingerprint(self) -> str:
        """Hash of structures and labels; the same for other cutoffs."""
        return self.meta["fingerprint"]

    def recount(self, cutoff_angstrom: float, line_cutoff_angstrom: float) -> StructureStore:
        """This store with counts for other cutoffs, held in memory; itself when the cutoffs are the same already."""
        require_cutoffs(cutoff_angstrom, line_cutoff_angstrom)
        if (cutoff_angstrom, line_cutoff_angstrom) == (self.cutoff_angstrom, self.line_cutoff_angstrom):
            return self
        columns: dict[str, list[np.ndarray]] = {name: [] for name in COUNTS if name != "composition_end"}
        for structure in self:
            for name, rows in _count_rows(structure, cutoff_angstrom, line_cutoff_angstrom).items():
                columns[name].append(rows)
        counts = {name: np.concatenate(rows).astype(ARRAYS[name][0]) for name, rows in columns.items()}
        return replace(self, arrays={**self.arrays, **counts}, cutoff_angstrom=cutoff_angstrom,
                       line_cutoff_angstrom=line_cutoff_angstrom)  # fmt: skip
