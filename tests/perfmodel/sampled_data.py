"""A small data set of structures with elements, for tests of the work and the time of steps."""

from __future__ import annotations

import numpy as np

from perfmodel.dataset import DataCounts, ElementCounts


def sampled_data(num_structures: int = 96, *, even: bool = False, seed: int = 0) -> DataCounts:
    """Structures of 4 of 57 elements. even: all with equally many atoms; else from 8 to 63."""
    generator = np.random.default_rng(seed)
    atoms = np.full(num_structures, 32) if even else generator.integers(8, 64, num_structures)
    by_element = np.zeros((num_structures, 95), dtype=int)
    for structure in range(num_structures):
        chosen = generator.choice(np.arange(3, 60), 4, replace=False)
        by_element[structure, chosen] = generator.multinomial(atoms[structure], np.ones(4) / 4)
    return DataCounts(
        path="none", fingerprint="none", atoms=atoms, edges=40 * atoms, bonds=12 * atoms, angles=130 * atoms,
        elements=ElementCounts.from_dense(by_element, 40 * by_element),
    )  # fmt: skip
