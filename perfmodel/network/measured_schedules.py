"""Schedules of measured implementations that the registry does not have: trees whose nodes post all children at once.

It owns their messages. It does not own the algorithms that libraries are offered (``algorithms``).

Open MPI sends down an unsegmented tree with one isend per child and waits for all of them, so that the children share
the parent's link and none can start before the others: a binomial broadcast of m among 32 ranks takes 5+4+3+2+1 = 15
times m/B (measured on two machines), where sends one after the other would take 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.schedule import Round, Schedule

Ints = NDArray[np.int64]


def knomial_at_once(num_ranks: int, *, radix: int = 2) -> Schedule:
    """Broadcast down the k-nomial tree from rank 0, depth by depth; every rank sends to all its children at once."""
    parent, depth = _knomial_tree(num_ranks, radix)
    children = np.flatnonzero(parent >= 0).astype(np.int64)
    children = children[np.lexsort((-children, parent[children]))]
    levels = [children[depth[children] == level] for level in range(1, int(depth.max(initial=0)) + 1)]

    def rounds() -> Iterator[Round]:
        for level in levels:
            yield Round(source=parent[level], target=level, fraction=np.ones(len(level)), reduced=np.zeros(len(level)))

    return Schedule(
        collective="broadcast", algorithm="knomial_at_once", num_ranks=num_ranks, num_rounds=len(levels),
        make_rounds=rounds,
    )  # fmt: skip


def _knomial_tree(num_ranks: int, radix: int) -> tuple[Ints, Ints]:
    """(parent of each rank, -1 at the root; depth). The parent: the lowest digit above 0, to base radix, set to 0."""
    parent = np.full(num_ranks, -1, dtype=np.int64)
    depth = np.zeros(num_ranks, dtype=np.int64)
    for rank in range(1, num_ranks):
        span = 1
        while rank // span % radix == 0:
            span *= radix
        parent[rank] = rank - rank // span % radix * span
        depth[rank] = depth[parent[rank]] + 1
    return parent, depth


MAKERS: dict[str, Callable[..., Schedule]] = {"knomial_at_once": knomial_at_once}
