"""A larger data set distributed like a known one: for machines and data that are not there yet.

It owns the drawing. Batches of the larger set are drawn from the known structures with replacement; only as many are
drawn as batches need, the number of structures of an epoch is handed on beside (``planner.Request.num_structures``).
"""

from __future__ import annotations

import numpy as np

from perfmodel.dataset import DataCounts, ElementCounts

LEAST_DRAWN = 4096


def scaled_data(data: DataCounts, num_structures: int, *, at_least: int, seed: int = 0) -> DataCounts:
    """Counts of structures drawn from ``data``; at_least: of the largest batch, at most num_structures."""
    number = min(num_structures, max(at_least, LEAST_DRAWN))
    chosen = np.random.default_rng([seed, 0x5CA1E]).integers(0, len(data.atoms), number)
    elements = None
    if data.elements is not None:
        elements = _drawn_elements(data.elements, chosen)
    columns = {name: np.asarray(getattr(data, name))[chosen] for name in ("atoms", "edges", "bonds", "angles")}
    return DataCounts(path=data.path, fingerprint=data.fingerprint, elements=elements, **columns)


def _drawn_elements(elements: ElementCounts, chosen: np.ndarray) -> ElementCounts:
    """The lines of the chosen structures, one structure after the other."""
    end = np.asarray(elements.end)[chosen]
    start = np.where(chosen > 0, np.asarray(elements.end)[np.maximum(chosen - 1, 0)], 0)
    counts = (end - start).astype(np.int64)
    lines = np.arange(counts.sum()) + np.repeat(start - (np.cumsum(counts) - counts), counts)
    element, atoms, edges = (np.asarray(column)[lines] for column in (elements.element, elements.atoms, elements.edges))
    return ElementCounts(end=np.cumsum(counts), element=element, atoms=atoms, edges=edges)
