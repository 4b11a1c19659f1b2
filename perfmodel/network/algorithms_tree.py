"""Broadcasts from rank 0, and the trees they use: binomial, k-nomial, binary, chain, scatter and all-gather.

It owns their messages, not their price. m is the buffer. Another root is the same schedule with ranks renumbered
(pass a rotated group to the evaluator).

Sources: Thakur, Rabenseifner, Gropp 2005 (10.1177/1094342005051521); Pjesivac-Grbovic et al. 2007
(10.1007/s10586-007-0012-0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from perfmodel.network import algorithms_gather as gather
from perfmodel.network.algorithms_steps import (
    Ints,
    Recipe,
    Step,
    in_sequence,
    nothing,
    ranges,
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


def _level_tree(num_ranks: int) -> Ints:
    """Parents [n] of Open MPI's binary tree: level l has 2^l ranks; odd ranks hang below rank 1, even below rank 2."""
    parent = np.full(num_ranks, -1, dtype=np.int64)
    for rank in range(num_ranks):
        width = 1 << (rank + 1).bit_length() - 1
        children = (rank + width, rank + 2 * width)
        for child in children:
            if child < num_ranks:
                parent[child] = rank
    return parent


def binary(num_ranks: int, *, num_segments: int = 1) -> Recipe:
    """Complete binary tree, pipelined: depth + segments - 1 rounds."""
    return pipelined(_level_tree(num_ranks), num_segments=num_segments)


def split_binary(num_ranks: int, *, num_segments: int = 1) -> Recipe:
    """One half of m down each side of the binary tree, then ranks of both sides exchange halves in pairs.

    num_segments: of each half. Rank 0 gives the last rank its other half where that has no pair (n even).
    """
    n, segments = num_ranks, num_segments
    if n == 1:
        return nothing()
    tree = pipelined(_level_tree(n), num_segments=segments)

    def side(ranks: Ints) -> Ints:
        return (ranks + 1) % 2  # odd ranks: the first half

    def descent() -> Iterator[Step]:
        for step in tree.steps():
            halves = side(step.target) * segments
            inner = np.array([int(blocks[0]) for blocks in step.carried(0)], dtype=np.int64)
            yield replace(step, fraction=step.fraction / 2, carried=singles(inner + halves))

    def exchange() -> Iterator[Step]:
        odd = np.arange(1, n - 1, 2, dtype=np.int64)
        source, target = np.concatenate([odd, odd + 1]), np.concatenate([odd + 1, odd])
        if n % 2 == 0:
            source, target = np.append(source, 0), np.append(target, n - 1)
        yield uniform_step(source, target, 0.5, ranges((1 - side(target)) * segments, segments, 2 * segments))

    return in_sequence(
        2 * segments,
        Recipe(num_blocks=2 * segments, num_rounds=tree.num_rounds, steps=descent),
        Recipe(num_blocks=2 * segments, num_rounds=1, steps=exchange),
    )


def chain(num_ranks: int, *, num_segments: int = 1, num_chains: int = 1) -> Recipe:
    """Rank r passes segments to r+1: n - 2 + segments rounds (Open MPI's pipeline; its chain has 4 side by side)."""
    others = np.arange(num_ranks - 1, dtype=np.int64)
    length = max(1, -(-(num_ranks - 1) // num_chains))
    parent = np.concatenate([[-1], np.where(others % length == 0, 0, others)]).astype(np.int64)
    return pipelined(parent, num_segments=num_segments)


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


def linear(num_ranks: int) -> Recipe:
    """One round: rank 0 posts m to every other rank."""
    n = num_ranks
    if n == 1:
        return nothing()

    def steps() -> Iterator[Step]:
        others = np.arange(1, n, dtype=np.int64)
        yield uniform_step(np.zeros(n - 1, dtype=np.int64), others, 1.0, same(np.array([0]), n - 1))

    return Recipe(num_blocks=1, num_rounds=1, steps=steps)


def _double_tree_parents(num_nodes: int) -> tuple[Ints, Ints]:
    """Parents [N] of two binary trees in which an inner node of one is (but for one) a leaf of the other.

    First: node i hangs below the node reached by clearing its lowest set bit and setting the next one (or only
    clearing it, where that is beyond N). Second: the first one shifted by one node (N odd) or mirrored (N even).
    """
    first = np.full(num_nodes, -1, dtype=np.int64)
    for node in range(1, num_nodes):
        lowest = node & -node
        upper = (node ^ lowest) | (lowest << 1)
        first[node] = upper if upper < num_nodes else node ^ lowest
    nodes = np.arange(num_nodes, dtype=np.int64)
    image = (nodes - 1) % num_nodes if num_nodes % 2 else num_nodes - 1 - nodes
    inverse = np.argsort(image)
    above = first[image]
    second = np.where(above >= 0, inverse[above], -1)
    return first, second


def double_tree_parents(num_ranks: int, ranks_per_node: int, rails: int) -> list[Ints]:
    """Parents [n] of 2 x rails trees: the double tree between nodes, a chain within each.

    Rail c's trees enter each node at place c q / rails and go on from rank to rank, wrapping around.
    """
    q = ranks_per_node
    nodes = np.arange(num_ranks // q, dtype=np.int64)
    trees = []
    for rail in range(rails):
        head = rail * q // rails
        for node_parent in _double_tree_parents(len(nodes)):
            parent = np.arange(num_ranks, dtype=np.int64)
            for step in range(q):
                ranks = nodes * q + (head + step) % q
                above = np.where(node_parent >= 0, node_parent * q + head, -1)
                parent[ranks] = above if step == 0 else nodes * q + (head + step - 1) % q
            trees.append(parent)
    return trees


def double_binary_tree(num_ranks: int, *, num_segments: int = 1, ranks_per_node: int = 1, rails: int = 1) -> Recipe:
    """All-reduce up and down two binary trees with half of m each, both ways pipelined: 2 depth + segments - 1 rounds.

    Sanders, Speck, Traeff 2009 (10.1016/j.parco.2009.09.001); NCCL 2.4 and later. num_segments: of each tree's part.
    """
    if num_ranks == 1:
        return nothing()
    trees = [_TreeFlow(parent) for parent in double_tree_parents(num_ranks, ranks_per_node, rails)]
    num_blocks = len(trees) * num_segments
    rounds = 2 * max(tree.deepest for tree in trees) + num_segments - 1

    def step(k: int) -> Step:
        parts = [
            (*tree.messages(k, num_segments), index * num_segments) for index, tree in enumerate(trees)
        ]  # fmt: skip
        source, target, segment, reduces = (np.concatenate([part[i] for part in parts]) for i in range(4))
        first = np.concatenate([np.full(len(part[0]), part[4], dtype=np.int64) for part in parts])
        return Step(
            source=source, target=target, fraction=np.full(len(source), 1 / num_blocks),
            carried=singles(segment + first), reduces=reduces.astype(bool),
        )  # fmt: skip

    return Recipe(num_blocks=num_blocks, num_rounds=rounds, steps=lambda: (step(k) for k in range(rounds)))


class _TreeFlow:
    """Segments that climb a tree and come down again; parent: [n], -1 at the root."""

    def __init__(self, parent: Ints) -> None:
        self.children = np.flatnonzero(parent >= 0).astype(np.int64)
        self.parents = parent[self.children]
        self.depth = depths(parent)[self.children]
        self.deepest = int(self.depth.max())

    def messages(self, k: int, num_segments: int) -> tuple[Ints, Ints, Ints, Ints]:
        """Source, target, segment and whether it is added, of the messages of round k."""
        up = k - (self.deepest - self.depth)
        down = k - (self.deepest + self.depth - 1)
        rising = (up >= 0) & (up < num_segments)
        falling = (down >= 0) & (down < num_segments)
        added = np.concatenate([np.ones(rising.sum(), np.int64), np.zeros(falling.sum(), np.int64)])
        return (
            np.concatenate([self.children[rising], self.parents[falling]]),
            np.concatenate([self.parents[rising], self.children[falling]]),
            np.concatenate([up[rising], down[falling]]),
            added,
        )
