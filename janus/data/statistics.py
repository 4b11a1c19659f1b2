"""Figures about a store: sizes, elements, labels, reference energies and how well its work can be balanced.

It does not own the packing (``janus/packing.py``) or how figures are printed. Never imports torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols

from janus.data.reference import NUM_ATOMIC_NUMBERS
from janus.data.store import StructureStore
from janus.packing import step_balance

PERCENTILES = (5, 25, 50, 75, 95)
QUANTITIES = ("atoms", "edges", "bonds", "angles")


def describe_store(store: StructureStore, *, num_ranks: int, structures_per_rank: int) -> dict[str, Any]:
    """Everything ``janus data stats`` shows, as plain values (schema janus.data-stats/1).

    The balance is that of one shuffled epoch in global steps of num_ranks * structures_per_rank structures, with work =
    edges + angles; efficiencies are sums over steps of mean over maximal work of the ranks, 0..1.
    """
    counts = {name: np.asarray(getattr(store, f"num_{name}")) for name in QUANTITIES}
    reference = {name: value for name, value in store.meta["reference"].items() if name != "energy_ev"}
    return {
        "schema": "janus.data-stats/1",
        "path": str(store.path),
        "fingerprint": store.fingerprint,
        "cutoff_angstrom": store.cutoff_angstrom,
        "line_cutoff_angstrom": store.line_cutoff_angstrom,
        "num_structures": len(store),
        "num_skipped": store.meta["num_skipped"],
        "totals": {name: int(values.sum()) for name, values in counts.items()},
        "percentiles": {name: _percentiles(values) for name, values in counts.items()},
        "labelled": {name: int(getattr(store, f"has_{name}").sum()) for name in ("energy", "forces", "stress")},
        "elements": _elements(store),
        "reference": reference,
        "balance": {"num_ranks": num_ranks, "structures_per_rank": structures_per_rank}
        | step_balance(store.work, num_ranks, structures_per_rank),
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    levels = np.percentile(values, PERCENTILES)
    between = {f"p{level}": float(value) for level, value in zip(PERCENTILES, levels, strict=True)}
    return {"min": float(values.min()), **between, "max": float(values.max()), "mean": float(values.mean())}


def _elements(store: StructureStore) -> list[dict[str, Any]]:
    """One row per element present: atoms, structures with it, edges from it, reference energy."""
    atoms, edges, energies = store.atoms_of_element, store.edges_of_element, store.reference_energies
    structures = np.bincount(store.arrays["composition_element"], minlength=NUM_ATOMIC_NUMBERS)
    return [
        {"symbol": chemical_symbols[number], "number": int(number), "atoms": int(atoms[number]),
         "structures": int(structures[number]), "edges": int(edges[number]),
         "reference_energy_ev": float(energies[number])}
        for number in np.flatnonzero(atoms)
    ]  # fmt: skip
