"""Collectives that know nodes: two levels, leaders, aggregation by node, several rails.

It owns their messages, not their price. Ranks are numbered node by node, ranks_per_node = q to a node, N = n/q nodes.

Sources: two levels: Thakur, Rabenseifner, Gropp 2005 (10.1177/1094342005051521), section on SMPs; leaders: MPICH's and
Open MPI's SMP-aware collectives; node aggregation: Kumar et al. 2008 ("Scaling alltoall collective on multi-core
systems", IPDPS), with all ranks of a node taking part; several rails: NCCL's channels, one ring per NIC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from perfmodel.network import algorithms_gather as gather
from perfmodel.network import algorithms_reduce as reduce
from perfmodel.network import algorithms_tree as tree
from perfmodel.network.algorithms_steps import (
    Blocks,
    Floats,
    Ints,
    Recipe,
    Step,
    block_range,
    in_sequence,
    nothing,
    within_groups,
)


def _nodes(num_ranks: int, ranks_per_node: int) -> Ints:
    """Ranks [N, q]."""
    return np.arange(num_ranks, dtype=np.int64).reshape(-1, ranks_per_node)


def all_reduce(num_ranks: int, *, ranks_per_node: int = 1, between: str = "rabenseifner") -> Recipe:
    """Ring reduce-scatter in the node, all-reduce of m/q among ranks of equal place, ring all-gather in the node.

    between: "rabenseifner", "ring" or "recursive_doubling" for the part between nodes.
    """
    q, nodes = ranks_per_node, _nodes(num_ranks, ranks_per_node)
    inner = BETWEEN[between](len(nodes))
    parts = inner.num_blocks

    def part(_: int, block: int) -> Ints:
        return block_range(block * parts, parts, q * parts)

    def in_node(recipe: Recipe) -> Recipe:
        return within_groups(recipe, nodes, part, num_blocks=q * parts, scale=1.0)

    across = within_groups(
        inner, nodes.T, lambda place, block: np.array([place * parts + block]), num_blocks=q * parts, scale=1 / q
    )
    return in_sequence(q * parts, in_node(reduce.ring_reduce_scatter(q)), across, in_node(gather.ring(q)))


BETWEEN: dict[str, Callable[[int], Recipe]] = {
    "rabenseifner": reduce.rabenseifner,
    "ring": reduce.ring,
    "recursive_doubling": reduce.recursive_doubling,
}


def all_gather(num_ranks: int, *, ranks_per_node: int = 1) -> Recipe:
    """Ring among ranks of equal place, then ring in the node with what came from the others."""
    q, nodes = ranks_per_node, _nodes(num_ranks, ranks_per_node)
    across = within_groups(
        gather.ring(len(nodes)), nodes.T, lambda place, node: np.array([node * q + place]), num_blocks=num_ranks,
        scale=1 / q,
    )  # fmt: skip
    inside = within_groups(
        gather.ring(q), nodes, lambda _, place: nodes[:, place], num_blocks=num_ranks, scale=1.0
    )  # fmt: skip
    return in_sequence(num_ranks, across, inside)


def reduce_scatter(num_ranks: int, *, ranks_per_node: int = 1) -> Recipe:
    """Ring in the node first, then ring among ranks of equal place: the all-gather backwards."""
    q, nodes = ranks_per_node, _nodes(num_ranks, ranks_per_node)
    inside = within_groups(
        reduce.ring_reduce_scatter(q), nodes, lambda _, place: nodes[:, place], num_blocks=num_ranks, scale=1.0
    )
    across = within_groups(
        reduce.ring_reduce_scatter(len(nodes)), nodes.T, lambda place, node: np.array([node * q + place]),
        num_blocks=num_ranks, scale=1 / q,
    )  # fmt: skip
    return in_sequence(num_ranks, inside, across)


def leader(num_ranks: int, *, ranks_per_node: int = 1, between: str = "recursive_doubling") -> Recipe:
    """Binomial reduction to each node's first rank, all-reduce among those, binomial broadcast in the node."""
    nodes = _nodes(num_ranks, ranks_per_node)
    inner = BETWEEN[between](len(nodes))
    whole = np.arange(inner.num_blocks, dtype=np.int64)
    up_and_down = reduce.reduce_broadcast(ranks_per_node)
    half = up_and_down.num_rounds // 2

    def in_node(first: int, last: int) -> Recipe:
        cut = Recipe(num_blocks=1, num_rounds=half, steps=lambda: iter(list(up_and_down.steps())[first:last]))
        return within_groups(cut, nodes, lambda _, block: whole, num_blocks=len(whole), scale=1.0)

    across = within_groups(
        inner, nodes[:, :1].T, lambda _, block: np.array([block]), num_blocks=len(whole), scale=1.0
    )  # fmt: skip
    return in_sequence(len(whole), in_node(0, half), across, in_node(half, 2 * half))


def broadcast(num_ranks: int, *, ranks_per_node: int = 1) -> Recipe:
    """Binomial broadcast among the nodes' first ranks, then in every node."""
    nodes = _nodes(num_ranks, ranks_per_node)
    parts = [
        within_groups(
            tree.binomial(groups.shape[1]), groups, lambda _, block: np.array([block]), num_blocks=1, scale=1.0
        )
        for groups in (nodes[:, :1].T, nodes)
    ]
    return in_sequence(1, *parts)


def rail_orders(num_ranks: int, ranks_per_node: int) -> Ints:
    """[q, n]: ring j enters each node at place j and leaves it at place j - 1, so that every NIC carries one ring."""
    q, nodes = ranks_per_node, _nodes(num_ranks, ranks_per_node)
    places = (np.arange(q)[:, None] + np.arange(q)[None, :]) % q  # [ring, position in node]
    return np.stack([nodes[:, places[ring]].ravel() for ring in range(q)])


def _on_rails(recipe: Callable[[int], Recipe], num_ranks: int, ranks_per_node: int, owned: bool) -> Recipe:
    """The same ring recipe on every rail's order at once, 1/q of m each.

    owned: ring position i brings or ends with block i, which must then belong to the rank at that position: block
    b of ring j is part j of the block of the rank at position b.
    """
    q, orders = ranks_per_node, rail_orders(num_ranks, ranks_per_node)

    def blocks_of(ring: int, block: int) -> Ints:
        return np.array([(int(orders[ring][block]) if owned else block) * q + ring])

    return within_groups(recipe(num_ranks), orders, blocks_of, num_blocks=num_ranks * q, scale=1 / q)


def _rails(recipe: Callable[[int], Recipe], num_ranks: int, ranks_per_node: int) -> Recipe:
    if num_ranks == 1:
        return nothing()
    return in_sequence(num_ranks * ranks_per_node, _on_rails(recipe, num_ranks, ranks_per_node, owned=True))


def multi_rail_all_reduce(num_ranks: int, *, ranks_per_node: int = 1) -> Recipe:
    """q rings at once, one per NIC, m/q on each."""
    return _rails(reduce.ring, num_ranks, ranks_per_node)


def multi_rail_all_gather(num_ranks: int, *, ranks_per_node: int = 1) -> Recipe:
    """q rings at once, one per NIC, 1/q of every block on each."""
    return _rails(gather.ring, num_ranks, ranks_per_node)


def multi_rail_reduce_scatter(num_ranks: int, *, ranks_per_node: int = 1) -> Recipe:
    """q rings at once, one per NIC, 1/q of every block on each."""
    return _rails(reduce.ring_reduce_scatter, num_ranks, ranks_per_node)


def node_aggregated(num_ranks: int, *, ranks_per_node: int = 1, traffic_matrix: Floats | None = None) -> Recipe:
    """All-to-all in two steps: in the node each rank collects what goes to ranks of its own place, then it exchanges
    with those: q-1 rounds of m/q, N-1 rounds of m/N, instead of n-1 rounds of m/n.
    """  # fmt: skip
    n, q, nodes = num_ranks, ranks_per_node, _nodes(num_ranks, ranks_per_node)
    num_nodes = len(nodes)
    by_place = None if traffic_matrix is None else traffic_matrix.reshape(num_nodes, q, num_nodes, q)

    def inside(shift: int) -> Step:
        """Rank (a, i) gives (a, i + shift) what goes to place i + shift of any node."""
        source, target = nodes.ravel(), np.roll(nodes, -shift, axis=1).ravel()
        place = target % q
        fraction = np.full(n, 1 / q) if by_place is None else by_place.sum(axis=2)[source // q, source % q, place]
        return _kept(source, target, fraction, lambda s, t: s * n + nodes[:, t % q])

    def across(shift: int) -> Step:
        """Rank (a, j) gives (a + shift, j) what its node's ranks have for that rank."""
        source = nodes.ravel()
        target = np.roll(nodes, -shift, axis=0).ravel()
        if by_place is None:
            fraction = np.full(n, 1 / num_nodes)
        else:
            fraction = by_place.sum(axis=1)[source // q, target // q, target % q]
        return _kept(source, target, fraction, lambda s, t: nodes[s // q] * n + t)

    def steps() -> Iterator[Step]:
        yield from (inside(shift) for shift in range(1, q))
        yield from (across(shift) for shift in range(1, num_nodes))

    return Recipe(num_blocks=n * n, num_rounds=q - 1 + num_nodes - 1, steps=steps)


def _kept(source: Ints, target: Ints, fraction: Floats, blocks_of: Callable[[int, int], Ints]) -> Step:
    kept = fraction > 0
    source, target, fraction = source[kept], target[kept], fraction[kept]

    def carried(_: int) -> Blocks:
        return [blocks_of(int(s), int(t)) for s, t in zip(source, target, strict=True)]

    return Step(source=source, target=target, fraction=fraction, carried=carried)
