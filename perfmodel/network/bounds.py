"""What no schedule can beat: lower bounds of collectives on links, NICs and the cut through a fabric.

It owns bounds only; times of schedules are in ``closed_form`` and ``flow_events``.

Symbols: n ranks, m bytes (as in ``schedule``), alpha seconds per message, beta seconds per byte of one rank's link in
one direction, gamma seconds per reduced byte. A rank sends one message and receives one at a time.

Source: Chan, Heimlich, Purkayastha, van de Geijn 2007 (10.1002/cpe.1206), table 1: ceil(log2 n) alpha and

    broadcast       m beta
    all-gather      (n-1)/n m beta
    reduce-scatter  (n-1)/n m beta + (n-1)/n m gamma
    all-reduce      2(n-1)/n m beta + (n-1)/n m gamma

The paper has no all-to-all: there every rank must inject (n-1)/n m, and half of what it sends crosses any cut into
halves. Its bounds on bandwidth hold for algorithms that keep all ranks alike; double trees and pipelines may not be
below them either, as they are counted on the rank that sends or receives most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.network.routes import Transport
from perfmodel.network.schedule import COLLECTIVES

Ints = NDArray[np.int64]
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


def latency_bound_s(collective: str, num_ranks: int, links: Hockney) -> float:
    """ceil(log2 n) alpha: what one rank knows reaches twice as many ranks per message.

    An all-to-all and an all-gather in which a rank posts several messages at once need only one alpha.
    """
    assert collective in COLLECTIVES, collective
    return math.ceil(math.log2(num_ranks)) * links.alpha_s


def bandwidth_bound_s(collective: str, num_ranks: int, size_bytes: ArrayLike, links: Hockney) -> Floats:
    """Injection bound: the bytes that a rank must send or receive, over its link."""
    sizes = np.asarray(size_bytes, dtype=np.float64)
    return np.asarray(sent_fraction(collective, num_ranks) * sizes * links.beta_s_per_byte)


def reduction_bound_s(collective: str, num_ranks: int, size_bytes: ArrayLike, links: Hockney) -> Floats:
    """The additions that fall to each rank if they are shared evenly."""
    sizes = np.asarray(size_bytes, dtype=np.float64)
    return np.asarray(reduced_fraction(collective, num_ranks) * sizes * links.gamma_s_per_byte)


def lower_bound_s(collective: str, num_ranks: int, size_bytes: ArrayLike, links: Hockney) -> Floats:
    """The largest of the three bounds of Chan et al.; 0 for one rank and for no bytes."""
    sizes = np.asarray(size_bytes, dtype=np.float64)
    if num_ranks == 1:
        return np.zeros(sizes.shape)
    bound_s = np.maximum(
        latency_bound_s(collective, num_ranks, links),
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


def slowest_links(transport: Transport, rank_bytes_per_s: float, path_latency_s: float) -> Hockney:
    """alpha, beta and gamma of ranks that reach their links' full capacity: the bound for a fitted machine."""
    return Hockney(
        alpha_s=transport.overhead_s + transport.latency_s + path_latency_s,
        beta_s_per_byte=1 / (rank_bytes_per_s * transport.link_fraction),
        gamma_s_per_byte=1 / max(transport.reduction_bytes_per_s, transport.memory_reduction_bytes_per_s)
        if math.isfinite(transport.cache_bytes)
        else 1 / transport.reduction_bytes_per_s,
    )
