"""Max-min fair rates of flows that share links: the compiled solver, whole and only where something changed.

It owns the rates at one moment. It does not own when flows begin and end (``event_loop``) or where messages go
(``routes``).

Flow i with rate x_i takes ``share_il * x_i`` of link l. The rates are max-min fair: none can grow without taking from
one that is not larger. Equivalent, and what the tests check: every flow crosses a *bottleneck*, a link that is full and
on which no flow is faster (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2). Progressive filling finds
them: all rates grow together until a link is full, its flows stop, the others go on. The links wait in a heap by the
rate at which they fill up; that rate never falls while flows stop, so a link is looked at again only when its turn
comes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from perfmodel.network.routes import Routes

SAME = 1e-12  # relative; rates and loads closer than this are equal: round-off of sums of a thousand terms


class Crossings(NamedTuple):
    """Which message crosses which link: rows by message, and per link a chained list of the active ones.

    offsets [M + 1], link [E], share [E], owner [E] (the message); capacity [L]; first [L], after [E], before [E]:
    entry numbers, -1 at the ends.
    """

    offsets: NDArray[np.int64]
    link: NDArray[np.int64]
    share: NDArray[np.float64]
    owner: NDArray[np.int64]
    capacity: NDArray[np.float64]
    first: NDArray[np.int64]
    after: NDArray[np.int64]
    before: NDArray[np.int64]


class Filling(NamedTuple):
    """Scratch of the solver. rate, bottleneck [M]: the answer; chosen [M]: 0 outside the flows being solved, 1 open,
    2 stopped. room, load [L]: capacity left and shares of open flows; open_flows [L]; seen [L]: in the heap's list.
    """

    rate: NDArray[np.float64]
    bottleneck: NDArray[np.int64]
    chosen: NDArray[np.int8]
    room: NDArray[np.float64]
    load: NDArray[np.float64]
    open_flows: NDArray[np.int64]
    seen: NDArray[np.int8]
    heap_key: NDArray[np.float64]
    heap_link: NDArray[np.int64]
    touched: NDArray[np.int64]
    flows: NDArray[np.int64]


def crossings_of(routes: Routes, capacity_bytes_per_s: NDArray[np.float64]) -> Crossings:
    """Empty lists over the routes of M messages. capacity: [L], may be infinite."""
    entries = len(routes.links)
    return Crossings(
        offsets=routes.offsets.astype(np.int64),
        link=routes.links.astype(np.int64),
        share=routes.shares.astype(np.float64),
        owner=np.repeat(np.arange(len(routes), dtype=np.int64), np.diff(routes.offsets)),
        capacity=capacity_bytes_per_s.astype(np.float64),
        first=np.full(len(capacity_bytes_per_s), -1, np.int64),
        after=np.full(entries, -1, np.int64),
        before=np.full(entries, -1, np.int64),
    )


def filling_of(num_messages: int, num_links: int) -> Filling:
    """Scratch for M messages and L links."""
    return Filling(
        rate=np.zeros(num_messages),
        bottleneck=np.full(num_messages, -1, np.int64),
        chosen=np.zeros(num_messages, np.int8),
        room=np.zeros(num_links),
        load=np.zeros(num_links),
        open_flows=np.zeros(num_links, np.int64),
        seen=np.zeros(num_links, np.int8),
        heap_key=np.zeros(num_links + 1),
        heap_link=np.zeros(num_links + 1, np.int64),
        touched=np.zeros(num_links, np.int64),
        flows=np.zeros(num_messages, np.int64),
    )


def fair_rates(routes: Routes, capacity_bytes_per_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Max-min fair rates [M] in bytes per second of flows that all run at once; infinite where nothing limits one."""
    crossings = crossings_of(routes, capacity_bytes_per_s)
    filling = filling_of(len(routes), len(capacity_bytes_per_s))
    _join_all(crossings)
    filling.flows[:] = np.arange(len(routes))
    solve(crossings, filling, len(routes))
    return filling.rate


@njit(cache=True)
def _join_all(crossings: Crossings) -> None:
    for message in range(len(crossings.offsets) - 1):
        join(crossings, message)


@njit(cache=True)
def join(crossings: Crossings, message: int) -> None:
    """Put an active message into the lists of its links."""
    for entry in range(crossings.offsets[message], crossings.offsets[message + 1]):
        link = crossings.link[entry]
        head = crossings.first[link]
        crossings.after[entry] = head
        crossings.before[entry] = -1
        if head >= 0:
            crossings.before[head] = entry
        crossings.first[link] = entry


@njit(cache=True)
def leave(crossings: Crossings, message: int) -> None:
    """Take a message out of the lists of its links."""
    for entry in range(crossings.offsets[message], crossings.offsets[message + 1]):
        before, after = crossings.before[entry], crossings.after[entry]
        if before >= 0:
            crossings.after[before] = after
        else:
            crossings.first[crossings.link[entry]] = after
        if after >= 0:
            crossings.before[after] = before


@njit(cache=True)
def _push(key: NDArray[np.float64], item: NDArray[np.int64], size: int, new_key: float, new_item: int) -> int:
    """Onto a binary heap in arrays. Returns the new size."""
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if key[parent] <= new_key:
            break
        key[place], item[place] = key[parent], item[parent]
        place = parent
    key[place], item[place] = new_key, new_item
    return size + 1


@njit(cache=True)
def _replace_top(key: NDArray[np.float64], item: NDArray[np.int64], size: int, new_key: float, new_item: int) -> None:
    """Put another entry in the place of the smallest."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and key[child + 1] < key[child]:
            child += 1
        if key[child] >= new_key:
            break
        key[place], item[place] = key[child], item[child]
        place = child
    key[place], item[place] = new_key, new_item


@njit(cache=True)
def _pop(key: NDArray[np.float64], item: NDArray[np.int64], size: int) -> int:
    """Drop the smallest. Returns the new size."""
    size -= 1
    if size > 0:
        _replace_top(key, item, size, key[size], item[size])
    return size


@njit(cache=True)
def solve(crossings: Crossings, filling: Filling, num_flows: int) -> int:
    """Rates of ``filling.flows[:num_flows]``, all other active flows kept as they are.

    Leaves chosen at 2 for these flows (``settle`` clears it) and returns how many links they touch, listed in
    ``filling.touched``.
    """
    num_touched = _open(crossings, filling, num_flows)
    size = 0
    for number in range(num_touched):
        link = filling.touched[number]
        if filling.load[link] > 0 and crossings.capacity[link] < np.inf:
            level = max(filling.room[link], 0.0) / filling.load[link]
            size = _push(filling.heap_key, filling.heap_link, size, level, link)
    while size > 0:
        link = filling.heap_link[0]
        if filling.open_flows[link] == 0:
            size = _pop(filling.heap_key, filling.heap_link, size)
            continue
        level = max(filling.room[link], 0.0) / filling.load[link]
        if level > filling.heap_key[0]:
            _replace_top(filling.heap_key, filling.heap_link, size, level, link)
            if filling.heap_link[0] != link:
                continue
        size = _pop(filling.heap_key, filling.heap_link, size)
        _stop_flows_of(crossings, filling, link, level)
    for number in range(num_flows):  # what no finite link limits
        flow = filling.flows[number]
        if filling.chosen[flow] == 1:
            filling.rate[flow], filling.bottleneck[flow], filling.chosen[flow] = np.inf, -1, 2
    return num_touched


@njit(cache=True)
def _open(crossings: Crossings, filling: Filling, num_flows: int) -> int:
    """Mark the flows, and give each of their links its room: what the flows that stay as they are leave of it."""
    num_touched = 0
    for number in range(num_flows):
        flow = filling.flows[number]
        filling.chosen[flow] = 1
        for entry in range(crossings.offsets[flow], crossings.offsets[flow + 1]):
            link = crossings.link[entry]
            if filling.seen[link] == 0:
                filling.seen[link] = 1
                filling.load[link] = 0.0
                filling.open_flows[link] = 0
                filling.touched[num_touched] = link
                num_touched += 1
            filling.load[link] += crossings.share[entry]
            filling.open_flows[link] += 1
    for number in range(num_touched):
        link = filling.touched[number]
        filling.seen[link] = 0
        taken = 0.0
        entry = crossings.first[link]
        while entry >= 0:
            flow = crossings.owner[entry]
            if filling.chosen[flow] == 0 and filling.rate[flow] < np.inf:
                taken += crossings.share[entry] * filling.rate[flow]
            entry = crossings.after[entry]
        filling.room[link] = crossings.capacity[link] - taken
    return num_touched


@njit(cache=True)
def _stop_flows_of(crossings: Crossings, filling: Filling, link: int, level: float) -> None:
    """The link is full: its open flows have their rate, and take it from their other links."""
    entry = crossings.first[link]
    while entry >= 0:
        flow = crossings.owner[entry]
        if filling.chosen[flow] == 1:
            filling.rate[flow], filling.bottleneck[flow], filling.chosen[flow] = level, link, 2
            for other in range(crossings.offsets[flow], crossings.offsets[flow + 1]):
                crossed = crossings.link[other]
                filling.room[crossed] -= crossings.share[other] * level
                filling.load[crossed] -= crossings.share[other]
                filling.open_flows[crossed] -= 1
        entry = crossings.after[entry]
