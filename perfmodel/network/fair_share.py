"""Max-min fair rates of flows that share links: a compiled solver that looks only at what a change reaches.

It owns the rates at one moment. It does not own when flows begin and end (``event_loop``) or where messages go
(``routes``).

Flow i with rate x_i takes ``share_il * x_i`` of link l. The rates are max-min fair: none can grow without taking from
one that is not larger. Equivalent, and what the tests check: every flow crosses a *bottleneck*, a link that is full and
on which no flow is faster (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2).

Progressive filling finds the rates: all grow together until a link is full, its flows stop, the others go on. The links
wait in a heap by the rate at which they fill up; that rate never falls while flows stop, so a link is looked at again
only when its turn comes.

After a change only the flows are solved whose bottleneck saw it, with all others held; then every link they cross is
checked, and flows whose bottleneck no longer holds join them, until none does. What is left as it was has its old
bottleneck, so the answer is that of the whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from perfmodel.network.routes import Routes

SAME = 1e-11  # relative: rates and loads closer than this are equal; round-off of sums of some thousand terms
HELD, OPEN, STOPPED = 0, 1, 2  # states of a flow in a solution

# A flow crosses ``crossings[begin:end]``; rate now, next_rate by the solution under way, bottleneck -1: none.
FLOW = np.dtype([("begin", "i8"), ("end", "i8"), ("rate", "f8"), ("next_rate", "f8"), ("bottleneck", "i8"),
                 ("next_bottleneck", "i8"), ("state", "i8")])  # fmt: skip
# One flow on one link, chained with the other active ones of that link; -1 at the ends.
CROSSING = np.dtype([("link", "i8"), ("owner", "i8"), ("share", "f8"), ("after", "i8"), ("before", "i8")])
# room: capacity that held flows leave; load: shares of the open flows; num_open: how many those are.
LINK = np.dtype([("capacity", "f8"), ("first", "i8"), ("room", "f8"), ("load", "f8"), ("num_open", "i8"),
                 ("seen", "i8"), ("changed", "i8")])  # fmt: skip
HEAP = np.dtype([("key", "f8"), ("item", "i8")])  # binary heaps, smallest key first

NEW = -2  # bottleneck of a flow that has none yet


class Sharing(NamedTuple):
    """Flows on links. listed: the flows being solved; touched, changed: lists of links; counts: length of changed."""

    flows: NDArray
    crossings: NDArray
    links: NDArray
    heap: NDArray
    listed: NDArray[np.int64]
    touched: NDArray[np.int64]
    changed: NDArray[np.int64]
    counts: NDArray[np.int64]


def sharing_of(routes: Routes, capacity_bytes_per_s: NDArray[np.float64]) -> Sharing:
    """M messages, none of them active, on L links [capacity L, may be infinite]."""
    flows = np.zeros(len(routes), FLOW)
    flows["begin"], flows["end"] = routes.offsets[:-1], routes.offsets[1:]
    flows["bottleneck"] = NEW
    crossings = np.zeros(len(routes.links), CROSSING)
    crossings["link"], crossings["share"] = routes.links, routes.shares
    crossings["owner"] = np.repeat(np.arange(len(routes)), np.diff(routes.offsets))
    num_links = len(capacity_bytes_per_s)
    links = np.zeros(num_links, LINK)
    links["capacity"], links["first"] = capacity_bytes_per_s, -1
    return Sharing(
        flows=flows, crossings=crossings, links=links, heap=np.zeros(num_links + 1, HEAP),
        listed=np.zeros(len(routes), np.int64), touched=np.zeros(num_links, np.int64),
        changed=np.zeros(num_links, np.int64), counts=np.zeros(1, np.int64),
    )  # fmt: skip


def fair_rates(routes: Routes, capacity_bytes_per_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Max-min fair rates [M] in bytes per second of flows that all run at once; infinite where nothing limits one."""
    sharing = sharing_of(routes, capacity_bytes_per_s)
    _join_all(sharing)
    solved = share_again(sharing)
    rates = np.full(len(routes), np.inf)  # a flow without links is in no link's list
    rates[sharing.listed[:solved]] = sharing.flows["next_rate"][sharing.listed[:solved]]
    return rates


@njit(cache=True)
def _join_all(sharing: Sharing) -> None:
    for flow in range(len(sharing.flows)):
        join(sharing, flow)


@njit(cache=True)
def join(sharing: Sharing, flow: int) -> None:
    """A flow becomes active, with no rate yet."""
    crossings, links = sharing.crossings, sharing.links
    mine = sharing.flows[flow]
    mine.rate, mine.bottleneck = 0.0, NEW
    for number in range(mine.begin, mine.end):
        entry = crossings[number]
        link = links[entry.link]
        entry.after, entry.before = link.first, -1
        if link.first >= 0:
            crossings[link.first].before = number
        link.first = number
        _note_change(sharing, entry.link)


@njit(cache=True)
def leave(sharing: Sharing, flow: int) -> None:
    """A flow is no longer active."""
    crossings, links = sharing.crossings, sharing.links
    mine = sharing.flows[flow]
    for number in range(mine.begin, mine.end):
        entry = crossings[number]
        if entry.before >= 0:
            crossings[entry.before].after = entry.after
        else:
            links[entry.link].first = entry.after
        if entry.after >= 0:
            crossings[entry.after].before = entry.before
        _note_change(sharing, entry.link)


@njit(cache=True)
def _note_change(sharing: Sharing, link: int) -> None:
    if sharing.links[link].changed == 0:
        sharing.links[link].changed = 1
        sharing.changed[sharing.counts[0]] = link
        sharing.counts[0] += 1


@njit(cache=True)
def share_again(sharing: Sharing) -> int:
    """Solve again after joins and leaves. Returns how many flows were solved: ``listed`` in that length, next_rate set.

    The caller takes next_rate as rate with ``accept``; until then rate is the old one.
    """
    flows, crossings, links = sharing.flows, sharing.crossings, sharing.links
    num_listed = 0
    for number in range(sharing.counts[0]):
        changed = sharing.changed[number]
        links[changed].changed = 0
        entry = links[changed].first
        while entry >= 0:
            owner = crossings[entry].owner
            flow = flows[owner]
            if flow.state == HELD and (flow.bottleneck == changed or flow.bottleneck == NEW):
                flow.state = OPEN
                sharing.listed[num_listed] = owner
                num_listed += 1
            entry = crossings[entry].after
    sharing.counts[0] = 0
    while num_listed > 0:
        num_touched = _solve(sharing, num_listed)
        grown = _reach_further(sharing, num_listed, num_touched)
        if grown == num_listed:
            break
        num_listed = grown
    return num_listed


@njit(cache=True)
def accept(sharing: Sharing, flow: int) -> None:
    """Take the solution's rate of one flow."""
    mine = sharing.flows[flow]
    mine.rate, mine.bottleneck, mine.state = mine.next_rate, mine.next_bottleneck, HELD


@njit(cache=True)
def _solve(sharing: Sharing, num_listed: int) -> int:
    """Progressive filling of the listed flows, the others held. Returns how many links they touch."""
    flows, links, heap = sharing.flows, sharing.links, sharing.heap
    num_touched = _open(sharing, num_listed)
    size = 0
    for number in range(num_touched):
        link = links[sharing.touched[number]]
        if link.load > 0 and link.capacity < np.inf:
            size = heap_push(heap, size, max(link.room, 0.0) / link.load, sharing.touched[number])
    while size > 0:
        full = heap[0].item
        link = links[full]
        if link.num_open == 0:
            size = heap_pop(heap, size)
            continue
        level = max(link.room, 0.0) / link.load
        if level > heap[0].key:
            heap_replace_top(heap, size, level, full)
            if heap[0].item != full:
                continue
        size = heap_pop(heap, size)
        _stop_flows_of(sharing, full, level)
    for number in range(num_listed):  # what no finite link limits
        flow = flows[sharing.listed[number]]
        if flow.state == OPEN:
            flow.next_rate, flow.next_bottleneck, flow.state = np.inf, -1, STOPPED
    return num_touched


@njit(cache=True)
def _open(sharing: Sharing, num_listed: int) -> int:
    """Open the listed flows, and give each of their links its room: what the held flows leave of it."""
    flows, crossings, links = sharing.flows, sharing.crossings, sharing.links
    num_touched = 0
    for number in range(num_listed):
        flow = flows[sharing.listed[number]]
        flow.state = OPEN
        for place in range(flow.begin, flow.end):
            crossed = crossings[place].link
            link = links[crossed]
            if link.seen == 0:
                link.seen, link.load, link.num_open = 1, 0.0, 0
                sharing.touched[num_touched] = crossed
                num_touched += 1
            link.load += crossings[place].share
            link.num_open += 1
    for number in range(num_touched):
        link = links[sharing.touched[number]]
        link.seen = 0
        taken = 0.0
        entry = link.first
        while entry >= 0:
            crossing = crossings[entry]
            flow = flows[crossing.owner]
            if flow.state == HELD and flow.rate < np.inf:
                taken += crossing.share * flow.rate
            entry = crossing.after
        link.room = link.capacity - taken
    return num_touched


@njit(cache=True)
def _stop_flows_of(sharing: Sharing, full: int, level: float) -> None:
    """The link is full: its open flows have their rate, and take it from their other links."""
    flows, crossings, links = sharing.flows, sharing.crossings, sharing.links
    entry = links[full].first
    while entry >= 0:
        flow = flows[crossings[entry].owner]
        if flow.state == OPEN:
            flow.next_rate, flow.next_bottleneck, flow.state = level, full, STOPPED
            for place in range(flow.begin, flow.end):
                crossing = crossings[place]
                link = links[crossing.link]
                link.room -= crossing.share * level
                link.load -= crossing.share
                link.num_open -= 1
        entry = crossings[entry].after


@njit(cache=True)
def _reach_further(sharing: Sharing, num_listed: int, num_touched: int) -> int:
    """List the held flows whose bottleneck does not hold any more, or that are faster than a listed one may be."""
    flows, crossings, links = sharing.flows, sharing.crossings, sharing.links
    for number in range(num_touched):
        touched = sharing.touched[number]
        link = links[touched]
        used, fastest, slowest_stopped, num_held = 0.0, 0.0, np.inf, 0
        entry = link.first
        while entry >= 0:
            crossing = crossings[entry]
            flow = flows[crossing.owner]
            rate = flow.rate
            if flow.state == STOPPED:
                rate = flow.next_rate
                if flow.next_bottleneck == touched:
                    slowest_stopped = min(slowest_stopped, rate)
            else:
                num_held += 1
            used += crossing.share * rate
            fastest = max(fastest, rate)
            entry = crossing.after
        if num_held == 0:
            continue
        full = used >= link.capacity * (1 - SAME)
        entry = link.first
        while entry >= 0:
            owner = crossings[entry].owner
            flow = flows[owner]
            if flow.state == HELD and (
                (flow.bottleneck == touched and (not full or flow.rate < fastest * (1 - SAME)))
                or flow.rate * (1 - SAME) > slowest_stopped
            ):
                flow.state = OPEN
                sharing.listed[num_listed] = owner
                num_listed += 1
            entry = crossings[entry].after
    return num_listed


@njit(cache=True)
def heap_push(heap: NDArray, size: int, key: float, item: int) -> int:
    """Returns the new size."""
    place = size
    while place > 0:
        parent = heap[(place - 1) >> 1]
        if parent.key <= key:
            break
        heap[place].key, heap[place].item = parent.key, parent.item
        place = (place - 1) >> 1
    heap[place].key, heap[place].item = key, item
    return size + 1


@njit(cache=True)
def heap_replace_top(heap: NDArray, size: int, key: float, item: int) -> None:
    """Put another entry in the place of the smallest."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1].key < heap[child].key:
            child += 1
        if heap[child].key >= key:
            break
        heap[place].key, heap[place].item = heap[child].key, heap[child].item
        place = child
    heap[place].key, heap[place].item = key, item


@njit(cache=True)
def heap_pop(heap: NDArray, size: int) -> int:
    """Drop the smallest. Returns the new size."""
    size -= 1
    if size > 0:
        heap_replace_top(heap, size, heap[size].key, heap[size].item)
    return size
