"""Small declarations and counts for the tests of studies."""

from __future__ import annotations

from typing import Any

import numpy as np

from scaling_studies.cells import DataCounts
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
    draw = np.random.default_rng(seed)
    edges = draw.integers(100, 5000, num_structures)
    return DataCounts(
        fingerprint="f00d", atoms=draw.integers(2, 60, num_structures), edges=edges, bonds=edges // 3,
        angles=draw.integers(0, 9000, num_structures),
    )  # fmt: skip
