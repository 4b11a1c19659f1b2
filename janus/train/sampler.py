"""Which structures each global step sees, and which rank works on which. A pure function of (seed, step).

Nothing is remembered between steps, so resuming needs the step number alone. It does not open a structure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus.layout import Layout
from janus.packing import pack_longest_first, split_by_cap


def split_validation(num_structures: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices for training and for validation; with a fraction above 0 at least one of each."""
    count = 0 if fraction == 0 else min(max(1, round(fraction * num_structures)), num_structures - 1)
    order = np.random.default_rng([seed, 0x5EED]).permutation(num_structures)
    return np.sort(order[count:]), np.sort(order[:count])


class Sampler:
    """Shuffled epochs over ``indices``; each step's structures are packed longest-first onto ranks.

    work: edges + angles by structure index of the store. An epoch has floor(structures / batch) steps (at least one):
    what is left over falls away, other structures in each epoch.
    """

    def __init__(self, work: np.ndarray, indices: Sequence[int] | np.ndarray, batch_structures: int, seed: int) -> None:
        self._work = np.asarray(work)
        self._indices = np.asarray(indices, dtype=np.int64)
        assert len(self._indices) > 0, "an empty training set"
        self._seed = seed
        self.batch_structures = min(batch_structures, len(self._indices))
        self.steps_per_epoch = len(self._indices) // self.batch_structures
        self._epoch_order: tuple[int, np.ndarray] = (-1, self._indices)

    def epoch_of(self, step: int) -> int:
        """Epoch that a global step belongs to."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """Structure indices of a global batch, over all ranks."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch_order[0] != epoch:
            self._epoch_order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(self._indices))
        start = position * self.batch_structures
        return self._epoch_order[1][start : start + self.batch_structures].tolist()

    def share(self, step: int, layout: Layout, rank: int, max_work: int | None) -> list[list[int]]:
        """Micro-batches (structure indices) that one rank works on in a global step, alone or with its graph group."""
        return share_in_lockstep(self._work, self.batch(step), layout, rank, max_work)


def share_in_lockstep(
    work: np.ndarray, indices: Sequence[int], layout: Layout, rank: int, max_work: int | None
) -> list[list[int]]:
    """Micro-batches of one rank. The ranks of a unit share collectives, so all of them get equally many: those of its
    busiest graph group, empty ones (no structures) behind the others'. Without units: a rank may get none at all.
    """
    shares = share_out(work, indices, layout.data_degree, max_work)
    place = layout.coordinates(rank)
    mine = shares[place.data]
    if layout.is_pure_data_parallel:
        return mine
    first = place.replica * layout.data_degree_in_unit
    longest = max(len(share) for share in shares[first : first + layout.data_degree_in_unit])
    return mine + [[] for _ in range(longest - len(mine))]


def share_out(work: np.ndarray, indices: Sequence[int], num_shares: int, max_work: int | None) -> list[list[list[int]]]:
    """Micro-batches of every share: longest-first packing over shares, then micro-batches under the work cap.

    Work 0 (an isolated atom) counts as 1, so that atoms without neighbours are spread out and capped too.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    weight = np.maximum(np.asarray(work)[chosen], 1)
    shares = []
    for items in pack_longest_first(weight, num_shares):
        pieces = [list(range(len(items)))] if items else []
        if max_work is not None and items:
            pieces = split_by_cap(weight[items], max_work)
        shares.append([[int(chosen[items[place]]) for place in piece] for piece in pieces])
    return shares
