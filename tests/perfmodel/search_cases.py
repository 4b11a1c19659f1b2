"""A data set made up for tests of searches: sizes and compositions spread as in real ones, known element by element."""

from __future__ import annotations

import numpy as np

from perfmodel.dataset import DataCounts, ElementCounts


def spread_data(number: int = 600, seed: int = 0, scale: float = 1.0) -> DataCounts:
    """Structures of 4 to 400 atoms, two to five of 94 elements each."""
    random = np.random.default_rng(seed)
    atoms = np.clip(random.lognormal(np.log(40 * scale), 0.6, number), 4, 400).astype(int)
    edges = (atoms * random.normal(55, 6, number).clip(30)).astype(int)
    bonds = (edges * 0.4).astype(int)
    angles = (bonds * random.normal(20, 3, number)).astype(int)
    kinds = random.integers(2, 6, number)
    end, row = np.cumsum(kinds), np.repeat(np.arange(number), kinds)
    share = random.random(end[-1]) + 0.2
    share /= np.bincount(row, share)[row]
    return DataCounts(
        path="made.store", fingerprint="f", atoms=atoms, edges=edges, bonds=bonds, angles=angles,
        elements=ElementCounts(
            end=end, element=random.integers(1, 95, end[-1]), atoms=np.maximum(1, share * atoms[row]).astype(int),
            edges=(share * edges[row]).astype(int),
        ),
    )  # fmt: skip
