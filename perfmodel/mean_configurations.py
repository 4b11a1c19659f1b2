"""Data sets of configurations of which only the mean is known: counts like the published mean, compositions drawn.

It owns these made-up counts. It does not own counts of real data (``dataset``). Nothing here is measured: what a
prediction makes of it is of a job whose configurations are alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perfmodel.dataset import NUM_ATOMIC_NUMBERS, DataCounts, ElementCounts
from perfmodel.products import Counts

# edges: published, 3.6 trillion in 473 M configurations (arXiv 2604.15821, second-hand); the others go with them in
# crystals at cutoffs of 6 and 4.5 angstrom: assumed
MEAN_CONFIGURATION = Counts(structures=1, atoms=110, edges=7611, bonds=2700, angles=64000)
NUM_ELEMENTS = 5  # of one configuration: assumed
KNOWN_ELEMENTS = 89  # of the periodic table, in data of the kind
DIFFERENT = 64  # compositions that are drawn; further configurations take them in turn


def mean_configurations(number: int, *, mean: Counts = MEAN_CONFIGURATION, spread: float = 0.0,
                        seed: int = 0) -> DataCounts:  # fmt: skip
    """``number`` configurations whose sizes are lognormal of mean 1 and this deviation of the logarithm.

    Each has five elements drawn evenly, in random shares; edges are shared out among them as the atoms are.
    """
    generator = np.random.default_rng([seed, 0xA11])
    factor = np.exp(spread * generator.standard_normal(number) - spread**2 / 2)
    atoms, edges, bonds, angles = (
        np.maximum(1, np.rint(factor * getattr(mean, name))).astype(np.int64)
        for name in ("atoms", "edges", "bonds", "angles")
    )
    return DataCounts(
        path="configurations like the mean", fingerprint="mean", atoms=atoms, edges=edges, bonds=bonds, angles=angles,
        elements=_elements(atoms, edges, generator),
    )  # fmt: skip


def _elements(atoms: NDArray, edges: NDArray, generator: np.random.Generator) -> ElementCounts:
    """Atoms and edges by element, rows of ``DIFFERENT`` compositions in turn; sums are the configurations' own."""
    kinds = np.argsort(generator.random((DIFFERENT, KNOWN_ELEMENTS)), axis=1)[:, :NUM_ELEMENTS] + 1
    assert kinds.max() < NUM_ATOMIC_NUMBERS, f"element {kinds.max()}"
    kinds.sort(axis=1)
    ends = np.cumsum(generator.dirichlet(np.full(NUM_ELEMENTS, 2.0), DIFFERENT), axis=1)
    ends[:, -1] = 1.0
    which = np.arange(len(atoms)) % DIFFERENT

    def shared_out(total: NDArray) -> NDArray:
        return np.diff(np.rint(ends[which] * total[:, None]).astype(np.int64), axis=1, prepend=0)

    of_atoms, of_edges = shared_out(atoms), shared_out(edges)
    there = of_atoms > 0
    of_edges = _only_where(of_edges, there)
    return ElementCounts(
        end=np.cumsum(there.sum(axis=1)), element=kinds[which][there], atoms=of_atoms[there], edges=of_edges[there]
    )


def _only_where(values: NDArray, there: NDArray) -> NDArray:
    """The values, those of absent elements moved to the first present one of their row."""
    moved = np.where(there, 0, values).sum(axis=1)
    result = np.where(there, values, 0)
    result[np.arange(len(result)), np.argmax(there, axis=1)] += moved
    return result
