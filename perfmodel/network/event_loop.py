"""The compiled loop of the discrete events: ranks go through rounds, messages wait out their latency and then flow.

It owns the order of events in time. It does not own how rates are shared (``fair_share``) or how a schedule becomes
the arrays below (``flow_events``).

Simultaneous events are one batch: ends of flows, starts of flows and ranks that enter a round are all taken before the
rates are solved again, so the result does not depend on their order. A batch also takes what would happen within
``tolerance`` of a message's own transfer time (and always within round-off of the clock).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from perfmodel.network.fair_share import Crossings, Filling, join, leave, solve

CLOCK = 1e-14  # relative: events closer than this to the time now are at the same time


class Plan(NamedTuple):
    """A schedule as arrays: R ranks, T rounds (each ``repeat`` times in a row), M messages, none of them moving.

    source, target, round_of [M]; message_bytes, delay_s, quick_s (bytes over the narrowest link), reduction_s [M];
    rendezvous [M]; sends, receives [M]: messages sorted by round and rank, rows send_offsets, receive_offsets
    [T * R + 1]; repeat, copy_s [T]; start_s [R].
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    round_of: NDArray[np.int64]
    message_bytes: NDArray[np.float64]
    delay_s: NDArray[np.float64]
    quick_s: NDArray[np.float64]
    reduction_s: NDArray[np.float64]
    rendezvous: NDArray[np.bool_]
    sends: NDArray[np.int64]
    send_offsets: NDArray[np.int64]
    receives: NDArray[np.int64]
    receive_offsets: NDArray[np.int64]
    repeat: NDArray[np.int64]
    copy_s: NDArray[np.float64]
    start_s: NDArray[np.float64]


class Progress(NamedTuple):
    """Where everything stands. Ranks: at_round, at_turn (of the repeats), pending messages, busy_s (reductions until).

    Messages: arrivals (how many turns of it have arrived), left_bytes, since_s (of left_bytes), begun_s, posted_s.
    queue_*: heap of starts and entries by time; flow_*: heap of active flows by when they end, flow_place [M] in it.
    sizes: [events in queue, active flows, records]. record_*: one row per message that ended.
    """

    at_round: NDArray[np.int64]
    at_turn: NDArray[np.int64]
    pending: NDArray[np.int64]
    busy_s: NDArray[np.float64]
    arrivals: NDArray[np.int64]
    left_bytes: NDArray[np.float64]
    since_s: NDArray[np.float64]
    begun_s: NDArray[np.float64]
    posted_s: NDArray[np.float64]
    queue_s: NDArray[np.float64]
    queue_item: NDArray[np.int64]
    flow_s: NDArray[np.float64]
    flow_item: NDArray[np.int64]
    flow_place: NDArray[np.int64]
    sizes: NDArray[np.int64]
    record_item: NDArray[np.int64]
    record_s: NDArray[np.float64]


def progress_of(num_ranks: int, num_messages: int, num_records: int) -> Progress:
    """Nothing has happened yet. num_records: how many ends of messages there is room to keep (0: none are kept)."""
    return Progress(
        at_round=np.zeros(num_ranks, np.int64),
        at_turn=np.full(num_ranks, -1, np.int64),
        pending=np.zeros(num_ranks, np.int64),
        busy_s=np.zeros(num_ranks),
        arrivals=np.zeros(num_messages, np.int64),
        left_bytes=np.zeros(num_messages),
        since_s=np.zeros(num_messages),
        begun_s=np.zeros(num_messages),
        posted_s=np.zeros(num_messages),
        queue_s=np.zeros(num_messages + num_ranks + 1),
        queue_item=np.zeros(num_messages + num_ranks + 1, np.int64),
        flow_s=np.zeros(num_messages + 1),
        flow_item=np.zeros(num_messages + 1, np.int64),
        flow_place=np.full(num_messages, -1, np.int64),
        sizes=np.zeros(3, np.int64),
        record_item=np.zeros(num_records, np.int64),
        record_s=np.zeros((num_records, 3)),
    )


@njit(cache=True)
def run_events(
    plan: Plan, crossings: Crossings, filling: Filling, progress: Progress, tolerance: float, finish_s: NDArray
) -> int:
    """Play the plan to its end; finish_s [R] is filled. Returns the number of batches."""
    num_messages, batches = len(plan.source), 0
    for rank in range(len(plan.start_s)):
        _queue_push(progress, plan.start_s[rank], num_messages + rank)
    while progress.sizes[0] > 0 or progress.sizes[1] > 0:
        now_s = np.inf
        if progress.sizes[0] > 0:
            now_s = progress.queue_s[0]
        if progress.sizes[1] > 0:
            now_s = min(now_s, progress.flow_s[0])
        _take_batch(plan, crossings, filling, progress, now_s, tolerance, finish_s)
        _share_again(plan, crossings, filling, progress, now_s)
        batches += 1
    return batches


@njit(cache=True)
def _take_batch(
    plan: Plan, crossings: Crossings, filling: Filling, progress: Progress, now_s: float, tolerance: float,
    finish_s: NDArray,
) -> None:  # fmt: skip
    """Everything that happens now, and what follows from it without any time passing."""
    num_messages, instant_s = len(plan.source), CLOCK * now_s
    moved = True
    while moved:
        moved = False
        while progress.sizes[0] > 0:
            item = progress.queue_item[0]
            early_s = instant_s
            if item < num_messages:
                early_s = max(instant_s, tolerance * plan.quick_s[item])
            if progress.queue_s[0] > now_s + early_s:
                break
            _queue_pop(progress)
            moved = True
            if item < num_messages:
                _begin_flow(plan, crossings, filling, progress, item, now_s, finish_s)
            else:
                _enter_next_round(plan, progress, item - num_messages, now_s, finish_s)
        while progress.sizes[1] > 0:
            item = progress.flow_item[0]
            early_s = max(instant_s, tolerance * (now_s - progress.begun_s[item]))
            if progress.flow_s[0] > now_s + early_s:
                break
            _flow_remove(progress, item)
            leave(crossings, item)
            moved = True
            _end_message(plan, progress, item, now_s, finish_s)


@njit(cache=True)
def _begin_flow(
    plan: Plan, crossings: Crossings, filling: Filling, progress: Progress, message: int, now_s: float,
    finish_s: NDArray,
) -> None:  # fmt: skip
    """The latency of a message has passed: its bytes begin to flow, if it has any and crosses anything."""
    progress.begun_s[message] = now_s
    if plan.message_bytes[message] == 0 or crossings.offsets[message] == crossings.offsets[message + 1]:
        _end_message(plan, progress, message, now_s, finish_s)
        return
    progress.left_bytes[message] = plan.message_bytes[message]
    progress.since_s[message] = now_s
    filling.rate[message] = 0.0
    join(crossings, message)
    _flow_insert(progress, message, np.inf)


@njit(cache=True)
def _end_message(plan: Plan, progress: Progress, message: int, now_s: float, finish_s: NDArray) -> None:
    """A message is there: its sender is rid of it; its receiver, if it has come so far, reduces it."""
    round_number, turn = plan.round_of[message], progress.arrivals[message]
    progress.arrivals[message] = turn + 1
    if progress.sizes[2] < len(progress.record_item):
        row = progress.sizes[2]
        progress.record_item[row] = message
        progress.record_s[row, 0] = progress.posted_s[message]
        progress.record_s[row, 1] = progress.begun_s[message]
        progress.record_s[row, 2] = now_s
        progress.sizes[2] = row + 1
    sender, receiver = plan.source[message], plan.target[message]
    progress.pending[sender] -= 1
    if progress.at_round[receiver] == round_number and progress.at_turn[receiver] == turn:
        progress.pending[receiver] -= 1
        if plan.reduction_s[message] > 0:
            progress.busy_s[receiver] = max(progress.busy_s[receiver], now_s) + plan.reduction_s[message]
        if receiver != sender and progress.pending[receiver] == 0:
            _leave_round(plan, progress, receiver, now_s)
    if progress.pending[sender] == 0:
        _leave_round(plan, progress, sender, now_s)


@njit(cache=True)
def _leave_round(plan: Plan, progress: Progress, rank: int, now_s: float) -> None:
    """All messages of the rank's round are done: it goes on once its reductions and its copy are done too."""
    done_s = max(now_s, progress.busy_s[rank]) + plan.copy_s[progress.at_round[rank]]
    _queue_push(progress, done_s, len(plan.source) + rank)


@njit(cache=True)
def _enter_next_round(plan: Plan, progress: Progress, rank: int, now_s: float, finish_s: NDArray) -> None:
    """On to the next turn, past rounds without work for this rank; posts its messages, takes what came early."""
    num_rounds, num_ranks = len(plan.repeat), len(plan.start_s)
    copied_s = 0.0
    while True:
        progress.at_turn[rank] += 1
        if progress.at_round[rank] < num_rounds and progress.at_turn[rank] >= plan.repeat[progress.at_round[rank]]:
            progress.at_turn[rank] = 0
            progress.at_round[rank] += 1
        if progress.at_round[rank] >= num_rounds:
            finish_s[rank] = now_s + copied_s
            return
        row = progress.at_round[rank] * num_ranks + rank
        pending = plan.send_offsets[row + 1] - plan.send_offsets[row]
        pending += plan.receive_offsets[row + 1] - plan.receive_offsets[row]
        if pending > 0:
            break
        repeats = plan.repeat[progress.at_round[rank]]
        copied_s += repeats * plan.copy_s[progress.at_round[rank]]
        progress.at_turn[rank] = repeats - 1
    if copied_s > 0:  # back by one turn: entered again when the copies are done
        progress.at_turn[rank] -= 1
        _queue_push(progress, now_s + copied_s, len(plan.source) + rank)
        return
    _post_messages(plan, progress, rank, row, pending, now_s)


@njit(cache=True)
def _post_messages(plan: Plan, progress: Progress, rank: int, row: int, pending: int, now_s: float) -> None:
    """The rank's sends start, and with them the receives whose senders wait for the rendezvous."""
    turn, busy_s = progress.at_turn[rank], now_s
    progress.pending[rank] = pending
    for place in range(plan.send_offsets[row], plan.send_offsets[row + 1]):
        message = plan.sends[place]
        if not plan.rendezvous[message] or _is_in(progress, plan.target[message], plan.round_of[message], turn):
            progress.posted_s[message] = now_s
            _queue_push(progress, now_s + plan.delay_s[message], message)
    for place in range(plan.receive_offsets[row], plan.receive_offsets[row + 1]):
        message = plan.receives[place]
        if progress.arrivals[message] > turn:  # came before the rank did
            pending -= 1
            busy_s += plan.reduction_s[message]
        elif plan.rendezvous[message] and plan.source[message] != rank:
            if _is_in(progress, plan.source[message], plan.round_of[message], turn):
                progress.posted_s[message] = now_s
                _queue_push(progress, now_s + plan.delay_s[message], message)
    progress.pending[rank] = pending
    progress.busy_s[rank] = busy_s
    if pending == 0:
        _leave_round(plan, progress, rank, now_s)


@njit(cache=True)
def _is_in(progress: Progress, rank: int, round_number: int, turn: int) -> bool:
    return progress.at_round[rank] == round_number and progress.at_turn[rank] == turn


@njit(cache=True)
def _share_again(plan: Plan, crossings: Crossings, filling: Filling, progress: Progress, now_s: float) -> None:
    """New rates for the active flows, and with them new ends."""
    num_flows = progress.sizes[1]
    for number in range(num_flows):
        flow = progress.flow_item[number]
        filling.flows[number] = flow
        progress.left_bytes[flow] -= filling.rate[flow] * (now_s - progress.since_s[flow])
        progress.since_s[flow] = now_s
    solve(crossings, filling, num_flows)
    for number in range(num_flows):
        flow = filling.flows[number]
        filling.chosen[flow] = 0
        _flow_move(progress, flow, now_s + max(0.0, progress.left_bytes[flow]) / filling.rate[flow])


@njit(cache=True)
def _queue_push(progress: Progress, time_s: float, item: int) -> None:
    place = progress.sizes[0]
    progress.sizes[0] += 1
    while place > 0:
        parent = (place - 1) >> 1
        if progress.queue_s[parent] <= time_s:
            break
        progress.queue_s[place], progress.queue_item[place] = progress.queue_s[parent], progress.queue_item[parent]
        place = parent
    progress.queue_s[place], progress.queue_item[place] = time_s, item


@njit(cache=True)
def _queue_pop(progress: Progress) -> None:
    progress.sizes[0] -= 1
    size = progress.sizes[0]
    time_s, item = progress.queue_s[size], progress.queue_item[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and progress.queue_s[child + 1] < progress.queue_s[child]:
            child += 1
        if progress.queue_s[child] >= time_s:
            break
        progress.queue_s[place], progress.queue_item[place] = progress.queue_s[child], progress.queue_item[child]
        place = child
    progress.queue_s[place], progress.queue_item[place] = time_s, item


@njit(cache=True)
def _flow_put(progress: Progress, place: int, time_s: float, flow: int) -> None:
    progress.flow_s[place], progress.flow_item[place], progress.flow_place[flow] = time_s, flow, place


@njit(cache=True)
def _flow_sift(progress: Progress, place: int, time_s: float, flow: int) -> None:
    """Put the flow where it belongs, up or down from a free place."""
    size = progress.sizes[1]
    while place > 0 and progress.flow_s[(place - 1) >> 1] > time_s:
        parent = (place - 1) >> 1
        _flow_put(progress, place, progress.flow_s[parent], progress.flow_item[parent])
        place = parent
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and progress.flow_s[child + 1] < progress.flow_s[child]:
            child += 1
        if progress.flow_s[child] >= time_s:
            break
        _flow_put(progress, place, progress.flow_s[child], progress.flow_item[child])
        place = child
    _flow_put(progress, place, time_s, flow)


@njit(cache=True)
def _flow_insert(progress: Progress, flow: int, time_s: float) -> None:
    progress.sizes[1] += 1
    _flow_sift(progress, progress.sizes[1] - 1, time_s, flow)


@njit(cache=True)
def _flow_move(progress: Progress, flow: int, time_s: float) -> None:
    _flow_sift(progress, progress.flow_place[flow], time_s, flow)


@njit(cache=True)
def _flow_remove(progress: Progress, flow: int) -> None:
    place = progress.flow_place[flow]
    progress.flow_place[flow] = -1
    progress.sizes[1] -= 1
    last = progress.sizes[1]
    if place < last:
        _flow_sift(progress, place, progress.flow_s[last], progress.flow_item[last])
