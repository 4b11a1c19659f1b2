"""Small declarations and counts for the tests of studies."""

from __future__ import annotations

from typing import Any

import numpy as np

from perfmodel.dataset import NUM_ATOMIC_NUMBERS, DataCounts, ElementCounts
from scaling_studies.study import Study


def weak(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "w",
        "question": "How?",
        "mode": "weak",
        "ranks": (1, 2),
        "structures_per_rank": 2,
        "repeats": 2,
    }
    return Study(**{**values, **changes})


def strong(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "s",
        "question": "How?",
        "mode": "strong",
        "ranks": (1, 2),
        "structures_total": 4,
        "repeats": 2,
    }
    return Study(**{**values, **changes})


def throughput(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "t",
        "question": "How?",
        "mode": "throughput",
        "ranks": (2,),
        "structures_per_rank": (1, 2, 4),
        "repeats": 2,
    }
    return Study(**{**values, **changes})


def data(num_structures: int = 20, seed: int = 0) -> DataCounts:
    """Counts of structures drawn by number: oxygen and iron, half each; cubic periodic cells."""
    draw = np.random.default_rng(seed)
    edges = draw.integers(100, 5000, num_structures)
    atoms = draw.integers(2, 60, num_structures)
    halves = np.zeros((2, num_structures, NUM_ATOMIC_NUMBERS), dtype=np.int64)
    for table, total in zip(halves, (atoms, edges), strict=True):
        table[:, 8], table[:, 26] = total // 2, total - total // 2
    return DataCounts(
        path="drawn", fingerprint="f00d", atoms=atoms, edges=edges, bonds=edges // 3,
        angles=draw.integers(0, 9000, num_structures), elements=ElementCounts.from_dense(*halves),
        cell=2.5 * np.cbrt(atoms)[:, None, None] * np.eye(3), periodic=np.ones((num_structures, 3), dtype=bool),
    )  # fmt: skip
