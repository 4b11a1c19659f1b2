"""Broadcasts from rank 0, and the trees they use: binomial, k-nomial, binary, chain, scatter and all-gather.

It owns their messages, not their price. m is the buffer. Another root is the same schedule with ranks renumbered
(pass a rotated group to the evaluator).

Sources: Thakur, Rabenseifner, Gropp 2005 (10.1177/1094342005051521); Pjesivac-Grbovic et al. 2007
(10.1007/s10586-007-0012-0).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from perfmodel.network import algorithms_gather as gather
from perfmodel.network.algorithms_steps import (
    Ints,
    Recipe,
    Step,
    in_sequence,
    nothing,
    rounds_of_doubling,
    same,
    singles,
    uniform_step,
)


def binomial(num_ranks: int) -> Recipe:
    """ceil(log2 n) rounds of m: the number of ranks that have it doubles."""
    return knomial(num_ranks, radix=2)


def knomial(num_ranks: int, *, radix: int = 4) -> Recipe:
    """ceil(log_k n) rounds in which every rank that has m sends it to up to k-1 others, farthest first."""
    n = num_ranks
    if n == 1:
        return nothing()
    spans = []
    span = 1
    while span < n:
        spans.append(span)
        span *= radix

    def steps() -> Iterator[Step]:
        for span in reversed(spans):
            parents = np.arange(0, n, span * radix, dtype=np.int64)
            source = np.repeat(parents, radix - 1)
            target = source + np.tile(np.arange(radix - 1, 0, -1, dtype=np.int64) * span, len(parents))
            source, target = source[target < n], target[target < n]
            yield uniform_step(source, target, 1.0, same(np.array([0]), len(source)))

    return Recipe(num_blocks=1, num_rounds=len(spans), steps=steps)


def pipelined(parent: Ints, *, num_segments: int) -> Recipe:
    """A tree in which every rank passes segment after segment to all its children. parent: [n], -1 for rank 0."""
    depth = depths(parent)
    children = np.flatnonzero(parent >= 0).astype(np.int64)
    rounds = int(depth.max()) + num_segments - 1 if len(children) else 0

    def step(k: int) -> Step:
        segment = k - (depth[children] - 1)
        active = children[(segment >= 0) & (segment < num_segments)]
        active = active[np.argsort(parent[active], kind="stable")]
        blocks = k - (depth[active] - 1)
        return uniform_step(parent[active], active, 1 / num_segments, singles(blocks))

    return Recipe(num_blocks=num_segments, num_rounds=rounds, steps=lambda: (step(k) for k in range(rounds)))


def depths(parent: Ints) -> Ints:
    """Depth of every rank of a tree in which a parent has a smaller depth; [n], 0 for the root."""
    depth = np.zeros(len(parent), dtype=np.int64)
    above = parent.copy()
    while (above >= 0).any():
        depth += above >= 0
        above = np.where(above >= 0, parent[above], -1)
    return depth


def binary(num_ranks: int, *, num_segments: int = 1) -> Recipe:
    """Complete binary tree (children 2r+1 and 2r+2), pipelined: depth + segments - 1 rounds."""
    parent = (np.arange(num_ranks, dtype=np.int64) - 1) // 2
    return pipelined(parent, num_segments=num_segments)


def chain(num_ranks: int, *, num_segments: int = 1) -> Recipe:
    """Rank r passes segments to r+1 (Open MPI's pipeline): n - 2 + segments rounds."""
    return pipelined(np.arange(num_ranks, dtype=np.int64) - 1, num_segments=num_segments)


def binomial_scatter(num_ranks: int) -> Recipe:
    """Rank 0 hands blocks down the binomial tree: each child gets those of its subtree; ceil(log2 n) rounds."""
    n = num_ranks

    def step(k: int) -> Step:
        span = 1 << k
        source = np.arange(0, n - span, 2 * span, dtype=np.int64)
        counts = np.minimum(span, n - source - span)
        return Step(
            source=source, target=source + span, fraction=counts / n,
            carried=lambda _: [
                np.arange(s + span, s + span + c, dtype=np.int64) for s, c in zip(source, counts, strict=True)
            ],
        )  # fmt: skip

    rounds = rounds_of_doubling(n)
    return Recipe(num_blocks=n, num_rounds=rounds, steps=lambda: (step(k) for k in reversed(range(rounds))))


def scatter_allgather(num_ranks: int) -> Recipe:
    """Binomial scatter, then all-gather by recursive doubling (Bruck's where n is no power of two)."""
    return in_sequence(num_ranks, binomial_scatter(num_ranks), gather.recursive_doubling(num_ranks))


def scatter_ring(num_ranks: int) -> Recipe:
    """Binomial scatter, then ring all-gather (van de Geijn; long messages)."""
    return in_sequence(num_ranks, binomial_scatter(num_ranks), gather.ring(num_ranks))
