"""Messages, ranks and links that cannot be told apart, put together: one of each class stands for all.

It owns finding the classes and the small problem made of them. It does not own what the events do with it
(``event_loop``).

Colour refinement (the one-dimensional Weisfeiler-Leman method; Grohe et al. 2014, 10.1007/978-3-662-44777-2_42): a
message's colour is made of its round, bytes, delays, its ranks' colours and those of the links it crosses; a rank's and
a link's colour of those of its messages; until no class divides any more. Then all links of a class carry equally many
messages of every class with the same shares, and all ranks of a class have the same messages in every round, so what
happens in one class happens at the same time. Ranks and fabrics need no description of their symmetry; where there is
none the classes have one member and nothing is gained.

Numbers count as equal when they agree to about 2e-13 (sums of latencies in another order). Colours are 64-bit hashes: a
million different ones fall together somewhere with a probability of 3e-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from perfmodel.network.routes import Routes

Colours = NDArray[np.uint64]
MANY_STEPS = 64  # refinement ends on its own long before, in at most as many steps as there are classes
DROPPED_BITS = np.uint64(10)


@dataclass(frozen=True, kw_only=True)
class Classes:
    """rank_class [R], message_class [M]: of every one; ranks, messages, links: the first of each class.

    routes: what a class's message crosses: classes of links, with the shares that all its members put on one link.
    received: [classes of messages], how many of it one rank receives.
    """

    rank_class: NDArray[np.int64]
    message_class: NDArray[np.int64]
    ranks: NDArray[np.int64]
    messages: NDArray[np.int64]
    links: NDArray[np.int64]
    routes: Routes
    received: NDArray[np.int64]


def find_classes(
    traits: NDArray[np.float64], source: NDArray[np.int64], target: NDArray[np.int64], routes: Routes,
    capacity: NDArray[np.float64], rank_traits: NDArray[np.float64],
) -> Classes | None:  # fmt: skip
    """Classes of M messages between R ranks; None where every rank is in a class of its own.

    traits: [K, M], numbers in which messages may differ; rank_traits: [R]; capacity: [L].
    """
    own = np.zeros(traits.shape[1], np.uint64)
    for row in traits:
        own = _hashed(own * np.uint64(3) + _bits(row))
    ranks, links = _hashed(_bits(rank_traits)), _hashed(_bits(capacity) ^ np.uint64(1))
    shares = _hashed(_bits(routes.shares))
    colours, number = np.zeros(len(source), np.uint64), 0
    for _ in range(MANY_STEPS):
        ranks, links = _refined(own, source, target, routes.offsets, routes.links, shares, ranks, links, colours)
        rank_count = len(np.unique(ranks))
        if rank_count == len(ranks):
            return None
        found = rank_count + len(np.unique(links))
        if found == number:
            return _classes(ranks, links, colours, source, target, routes)
        number = found
    return None


def _bits(values: NDArray[np.float64]) -> Colours:
    """Numbers as bits without the last few, rounded."""
    whole = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    return (whole + (np.uint64(1) << (DROPPED_BITS - np.uint64(1)))) >> DROPPED_BITS


@njit(cache=True)
def _mix(value: np.uint64) -> np.uint64:
    """Spreads 64 bits over 64 bits (splitmix64's finaliser, Steele et al. 2014, 10.1145/2660193.2660195)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _hashed(values: Colours) -> Colours:
    hashed = np.empty_like(values)
    for number in range(len(values)):
        hashed[number] = _mix(values[number] + np.uint64(0x9E3779B97F4A7C15))
    return hashed


@njit(cache=True)
def _refined(
    own: Colours, source: NDArray[np.int64], target: NDArray[np.int64], offsets: NDArray[np.int64],
    crossed: NDArray[np.int64], shares: Colours, ranks: Colours, links: Colours, colours: Colours,
) -> tuple[Colours, Colours]:  # fmt: skip
    """One step: colours of the messages (in place), then new ones of ranks and links. Sums forget the order."""
    sent, carried = np.zeros_like(ranks), np.zeros_like(links)
    for message in range(len(own)):
        met = np.uint64(0)
        for entry in range(offsets[message], offsets[message + 1]):
            met += _mix(links[crossed[entry]] + shares[entry])
        ends = _mix(ranks[source[message]]) + np.uint64(3) * _mix(ranks[target[message]])
        colour = _mix(own[message] + _mix(met) + np.uint64(5) * _mix(ends))
        colours[message] = colour
        sent[source[message]] += _mix(colour + np.uint64(7))
        sent[target[message]] += _mix(colour + np.uint64(11))
        for entry in range(offsets[message], offsets[message + 1]):
            carried[crossed[entry]] += _mix(colour ^ shares[entry])
    for rank in range(len(ranks)):
        sent[rank] = _mix(ranks[rank] + np.uint64(13) * sent[rank])
    for link in range(len(links)):
        carried[link] = _mix(links[link] + np.uint64(17) * carried[link])
    return sent, carried


def _classes(
    ranks: Colours, links: Colours, colours: Colours, source: NDArray[np.int64], target: NDArray[np.int64],
    routes: Routes,
) -> Classes:  # fmt: skip
    """The small problem: each class's first link carries what all links of its class carry."""
    _, first_rank, rank_class, rank_sizes = np.unique(ranks, return_index=True, return_inverse=True, return_counts=True)
    _, first_link, link_class = np.unique(links, return_index=True, return_inverse=True)
    _, first_message, message_class, sizes = np.unique(
        colours, return_index=True, return_inverse=True, return_counts=True
    )
    stands_for_all = np.zeros(len(links), bool)
    stands_for_all[first_link] = True
    kept = np.flatnonzero(stands_for_all[routes.links])
    message = np.searchsorted(routes.offsets, kept, side="right") - 1
    key = message_class[message] * len(first_link) + link_class[routes.links[kept]]
    keys, place = np.unique(key, return_inverse=True)
    crossing = np.bincount(keys // len(first_link), minlength=len(first_message))
    return Classes(
        rank_class=rank_class, message_class=message_class, ranks=first_rank, messages=first_message, links=first_link,
        routes=Routes(
            offsets=np.concatenate([[0], np.cumsum(crossing)]).astype(np.int64),
            links=(keys % len(first_link)).astype(np.int64),
            shares=np.bincount(place, weights=routes.shares[kept], minlength=len(keys)).astype(np.float64),
            latency_s=routes.latency_s[first_message],
        ),
        received=sizes // rank_sizes[rank_class[target[first_message]]],
    )  # fmt: skip
