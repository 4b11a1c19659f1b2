"""What no schedule can beat: lower bounds of collectives on links, NICs and the cut through a fabric.

It owns bounds only; times of schedules are in ``closed_form`` and ``flow_events``.

Symbols: n ranks, m bytes (as in ``schedule``), alpha seconds per message, beta seconds per byte of one rank's link in
one direction, gamma seconds per reduced byte. A rank sends one message and receives one at a time.

Source: Chan, Heimlich, Purkayastha, van de Geijn 2007 (10.1002/cpe.1206), table 1: ceil(log2 n) alpha and

    broadcast       m beta
    all-gather      (n-1)/n m beta
    reduce-scatter  (n-1)/n m beta + (n-1)/n m gamma
    all-reduce      2(n-1)/n m beta + (n-1)/n m gamma

The factors of beta and gamma need no assumption on the algorithm: so many bytes must be sent (and added) by all ranks
together that one of them has at least this share (all-reduce: Patarasuk and Yuan 2009, 10.1016/j.jpdc.2008.09.002). The
paper has no all-to-all: every rank must inject (n-1)/n m, and half of what it sends crosses any cut into halves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.network.routes import Transport
from perfmodel.network.schedule import COLLECTIVES

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Hockney:
    """alpha_s: seconds per message; beta_s_per_byte: of a rank's link, one way; gamma_s_per_byte: of a reduction."""

    alpha_s: float
    beta_s_per_byte: float
    gamma_s_per_byte: float = 0.0


def sent_fraction(collective: str, num_ranks: int) -> float:
    """Bytes that some rank must send or receive, of m: the factor of beta."""
    assert collective in COLLECTIVES, collective
    part = (num_ranks - 1) / num_ranks
    if collective == "broadcast":
        return 1.0 if num_ranks > 1 else 0.0
    return 2 * part if collective == "all_reduce" else part


def reduced_fraction(collective: str, num_ranks: int) -> float:
    """Bytes that some rank must reduce, of m: the factor of gamma."""
    return (num_ranks - 1) / num_ranks if collective in ("all_reduce", "reduce_scatter") else 0.0


def latency_bound_s(collective: str, num_ranks: int, links: Hockney, *, posted: int = 1) -> float:
    """ceil(log_(p+1) n) alpha: what one rank knows reaches p+1 times as many ranks per round of p posted messages.

    Chan et al. have p = 1. posted: the most messages that a rank starts before it waits.
    """
    assert collective in COLLECTIVES, collective
    rounds, reached = 0, 1
    while reached < num_ranks:
        rounds, reached = rounds + 1, reached * (posted + 1)
    return rounds * links.alpha_s


def bandwidth_bound_s(collective: str, num_ranks: int, size_bytes: ArrayLike, links: Hockney) -> Floats:
    """Injection bound: the bytes that a rank must send or receive, over its link."""
    sizes = np.asarray(size_bytes, dtype=np.float64)
    return np.asarray(sent_fraction(collective, num_ranks) * sizes * links.beta_s_per_byte)


def reduction_bound_s(collective: str, num_ranks: int, size_bytes: ArrayLike, links: Hockney) -> Floats:
    """The additions that fall to each rank if they are shared evenly."""
    sizes = np.asarray(size_bytes, dtype=np.float64)
    return np.asarray(reduced_fraction(collective, num_ranks) * sizes * links.gamma_s_per_byte)


def lower_bound_s(
    collective: str, num_ranks: int, size_bytes: ArrayLike, links: Hockney, *, posted: int = 1
) -> Floats:  # fmt: skip
    """The largest of the three bounds of Chan et al.; 0 for one rank and for no bytes."""
    sizes = np.asarray(size_bytes, dtype=np.float64)
    if num_ranks == 1:
        return np.zeros(sizes.shape)
    bound_s = np.maximum(
        latency_bound_s(collective, num_ranks, links, posted=posted),
        np.maximum(
            bandwidth_bound_s(collective, num_ranks, sizes, links),
            reduction_bound_s(collective, num_ranks, sizes, links),
        ),
    )
    return np.where(sizes > 0, bound_s, 0.0)


def injection_bound_s(
    collective: str, num_nodes: int, ranks_per_node: int, size_bytes: ArrayLike, node_nics_bytes_per_s: float
) -> Floats:
    """What must leave or enter a node, over all its NICs (node_nics_bytes_per_s, one direction).

    All-to-all: each of q ranks sends all but a part of m to other nodes: q m (1 - 1/N). All-gather: m (1 - 1/N) enters.
    Reduce-scatter: as much leaves at least once. All-reduce: both. Broadcast: m. 0 for one node.
    """
    sizes = np.asarray(size_bytes, dtype=np.float64)
    assert collective in COLLECTIVES, collective
    if num_nodes == 1:
        return np.zeros(sizes.shape)
    outside = 1 - 1 / num_nodes
    factor = {
        "all_to_all": ranks_per_node * outside, "all_gather": outside, "reduce_scatter": outside,
        "all_reduce": 2 * outside, "broadcast": 1.0,
    }[collective]  # fmt: skip
    return np.asarray(factor * sizes / node_nics_bytes_per_s)


def bisection_bound_s(num_ranks: int, size_bytes: ArrayLike, bisection_bytes_per_s: float) -> Floats:
    """All-to-all: of n m bytes, floor(n/2) ceil(n/2) m/n cross a balanced cut in each direction.

    bisection_bytes_per_s: one direction, of the cut that separates half of these very ranks from the others.
    """
    sizes = np.asarray(size_bytes, dtype=np.float64)
    crossing = (num_ranks // 2) * ((num_ranks + 1) // 2) / num_ranks
    return np.asarray(crossing * sizes / bisection_bytes_per_s)


def all_to_all_matrix_bound_s(traffic_matrix: Floats, size_bytes: ArrayLike, link_bytes_per_s: float) -> Floats:
    """Uneven all-to-all (m is the largest row sum): the fullest sender or receiver, what stays on a rank left out."""
    away = traffic_matrix - np.diag(np.diag(traffic_matrix))
    fullest = max(away.sum(axis=0).max(), away.sum(axis=1).max()) / traffic_matrix.sum(axis=1).max()
    return np.asarray(fullest * np.asarray(size_bytes, dtype=np.float64) / link_bytes_per_s)


def links_of(transport: Transport, rank_bytes_per_s: float, path_latency_s: float) -> Hockney:
    """alpha, beta and gamma at best of ranks with a link of rank_bytes_per_s and a path of path_latency_s."""
    reduction_bytes_per_s = transport.reduction_bytes_per_s
    if math.isfinite(transport.cache_bytes):
        reduction_bytes_per_s = max(reduction_bytes_per_s, transport.memory_reduction_bytes_per_s)
    return Hockney(
        alpha_s=transport.overhead_s + transport.latency_s + path_latency_s,
        beta_s_per_byte=1 / (rank_bytes_per_s * transport.link_fraction),
        gamma_s_per_byte=1 / reduction_bytes_per_s,
    )
