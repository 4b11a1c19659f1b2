"""Textbook times of collectives on one level and on two (inside a node, between nodes), to hold schedules against.

It owns the formulas and nothing else: no topology, no contention.

Symbols: n ranks, m bytes of one rank's buffer, alpha seconds per message, B bytes per second of one rank's link.
Ring all-reduce 2(n-1) alpha + 2(n-1)/n m/B; all-gather and reduce-scatter half of it; pairwise all-to-all
(n-1) alpha + (n-1)/n m/B. Sources: Thakur, Rabenseifner, Gropp 2005 (10.1177/1094342005051521); Patarasuk and Yuan
2009 (10.1016/j.jpdc.2008.09.002); lower bounds Chan et al. 2007 (10.1002/cpe.1206).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Link:
    """latency_s per message and bytes_per_s per direction, as one rank sees it. math.inf bytes_per_s is allowed."""

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        assert self.latency_s >= 0, f"latency {self.latency_s} s"
        assert self.bytes_per_s > 0, f"bandwidth {self.bytes_per_s} B/s"


def _steps(link: Link, num_ranks: int, message_bytes: float, rounds: int) -> float:
    """``rounds`` passes of n-1 messages of m/n bytes each; exactly 0 for one rank or no bytes."""
    assert num_ranks >= 1, f"{num_ranks} ranks"
    assert message_bytes >= 0, f"{message_bytes} bytes"
    if num_ranks == 1 or message_bytes == 0:
        return 0.0
    each_s = link.latency_s + message_bytes / num_ranks / link.bytes_per_s
    return rounds * (num_ranks - 1) * each_s


def ring_all_reduce_s(link: Link, num_ranks: int, message_bytes: float) -> float:
    """All-reduce of ``message_bytes`` on every rank: 2(n-1) alpha + 2(n-1)/n m/B seconds."""
    return _steps(link, num_ranks, message_bytes, rounds=2)


def ring_all_gather_s(link: Link, num_ranks: int, gathered_bytes: float) -> float:
    """All-gather whose result is ``gathered_bytes`` on every rank: (n-1) alpha + (n-1)/n m/B seconds."""
    return _steps(link, num_ranks, gathered_bytes, rounds=1)


def ring_reduce_scatter_s(link: Link, num_ranks: int, reduced_bytes: float) -> float:
    """Reduce-scatter of ``reduced_bytes`` on every rank: the same as the all-gather."""
    return _steps(link, num_ranks, reduced_bytes, rounds=1)


def pairwise_all_to_all_s(link: Link, num_ranks: int, sent_bytes: float) -> float:
    """All-to-all where every rank sends ``sent_bytes`` in all, evenly, 1/n of it to itself."""
    return _steps(link, num_ranks, sent_bytes, rounds=1)


def tree_all_reduce_s(link: Link, num_ranks: int, message_bytes: float) -> float:
    """Recursive halving and doubling: 2 ceil(log2 n) alpha + 2(n-1)/n m/B seconds (latency logarithmic in n)."""
    if num_ranks == 1 or message_bytes == 0:
        return 0.0
    hops = 2 * math.ceil(math.log2(num_ranks))
    return hops * link.latency_s + 2 * (num_ranks - 1) / num_ranks * message_bytes / link.bytes_per_s


def two_level_all_reduce_s(
    inside: Link, fabric: Link, *, ranks_per_node: int, num_nodes: int, message_bytes: float
) -> float:
    """Reduce-scatter in the node, all-reduce of the pieces between nodes, all-gather in the node.

    inside: one rank's link in its node; fabric: one rank's share of its node's NICs. Between nodes every rank reduces
    its 1/ranks_per_node of the buffer with its peers (recursive halving and doubling). Exactly the one-level
    forms for one node or one rank per node.
    """
    piece_bytes = message_bytes / ranks_per_node
    return (
        ring_reduce_scatter_s(inside, ranks_per_node, message_bytes)
        + tree_all_reduce_s(fabric, num_nodes, piece_bytes)
        + ring_all_gather_s(inside, ranks_per_node, message_bytes)
    )


def all_reduce_lower_bound_s(link: Link, num_ranks: int, message_bytes: float) -> float:
    """No all-reduce on these links is faster: ceil(log2 n) alpha and 2(n-1)/n m/B (Chan et al. 2007)."""
    if num_ranks == 1 or message_bytes == 0:
        return 0.0
    bandwidth_s = 2 * (num_ranks - 1) / num_ranks * message_bytes / link.bytes_per_s
    return max(math.ceil(math.log2(num_ranks)) * link.latency_s, bandwidth_s)
