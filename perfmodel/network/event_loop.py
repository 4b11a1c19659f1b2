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

from perfmodel.network.fair_share import HEAP, Sharing, accept, heap_pop, heap_push, join, leave, share_again

CLOCK = 1e-14  # relative: events closer than this to the time now are at the same time

# What a message is: quick_s: its bytes over its narrowest link; reduction_s: at its target. How it stands: arrivals:
# how many repeats of it have arrived; left_bytes at since_s; place in the heap of ends.
MESSAGE = np.dtype([("source", "i8"), ("target", "i8"), ("round", "i8"), ("rendezvous", "i8"), ("bytes", "f8"),
                    ("delay_s", "f8"), ("quick_s", "f8"), ("reduction_s", "f8"),
                    ("arrivals", "i8"), ("left_bytes", "f8"), ("since_s", "f8"), ("posted_s", "f8"),
                    ("begun_s", "f8"), ("place", "i8")])  # fmt: skip
# A rank is in turn ``turn`` of the repeats of round ``round``; pending messages; busy_s: reductions last until then.
RANK = np.dtype([("start_s", "f8"), ("finish_s", "f8"), ("busy_s", "f8"), ("round", "i8"), ("turn", "i8"),
                 ("pending", "i8")])  # fmt: skip
ROUND = np.dtype([("repeat", "i8"), ("copy_s", "f8")])
RECORD = np.dtype([("message", "i8"), ("posted_s", "f8"), ("begun_s", "f8"), ("ended_s", "f8")])


class Play(NamedTuple):
    """A schedule being played. sends, receives: messages by round and rank, rows from send_rows, receive_rows [TR + 1].

    queue: heap of starting messages and of ranks (numbered after the messages) by time; ends: heap of the active flows
    by their end; records: one per message that ended, as many as there is room. counts: events in queue, active flows,
    records, batches, flows solved.
    """

    messages: NDArray
    ranks: NDArray
    rounds: NDArray
    sends: NDArray[np.int64]
    send_rows: NDArray[np.int64]
    receives: NDArray[np.int64]
    receive_rows: NDArray[np.int64]
    queue: NDArray
    ends: NDArray
    records: NDArray
    counts: NDArray[np.int64]


QUEUED, FLOWING, RECORDED, BATCHES, SOLVED = range(5)


def play_of(
    messages: NDArray, ranks: NDArray, rounds: NDArray, sends: tuple[NDArray[np.int64], NDArray[np.int64]],
    receives: tuple[NDArray[np.int64], NDArray[np.int64]], num_records: int,
) -> Play:  # fmt: skip
    """Nothing has happened yet. num_records: how many ends of messages there is room to keep (0: none are kept)."""
    messages["place"] = -1
    ranks["turn"], ranks["finish_s"] = -1, np.nan
    return Play(
        messages=messages, ranks=ranks, rounds=rounds, sends=sends[0], send_rows=sends[1], receives=receives[0],
        receive_rows=receives[1], queue=np.zeros(len(messages) + len(ranks) + 1, HEAP),
        ends=np.zeros(len(messages) + 1, HEAP), records=np.zeros(num_records, RECORD), counts=np.zeros(5, np.int64),
    )  # fmt: skip


@njit(cache=True)
def run_events(play: Play, sharing: Sharing, tolerance: float) -> None:
    """Play to the end: finish_s of the ranks, and the records."""
    counts = play.counts
    for rank in range(len(play.ranks)):
        _queue(play, play.ranks[rank].start_s, len(play.messages) + rank)
    while counts[QUEUED] > 0 or counts[FLOWING] > 0:
        now_s = np.inf
        if counts[QUEUED] > 0:
            now_s = play.queue[0].key
        if counts[FLOWING] > 0:
            now_s = min(now_s, play.ends[0].key)
        _take_batch(play, sharing, now_s, tolerance)
        if sharing.counts[0] > 0:
            _share(play, sharing, now_s)
        counts[BATCHES] += 1


@njit(cache=True)
def _take_batch(play: Play, sharing: Sharing, now_s: float, tolerance: float) -> None:
    """Everything that happens now, and what follows from it without any time passing."""
    counts, num_messages, instant_s = play.counts, len(play.messages), CLOCK * now_s
    moved = True
    while moved:
        moved = False
        while counts[QUEUED] > 0:
            item = play.queue[0].item
            early_s = instant_s
            if item < num_messages:
                early_s = max(instant_s, tolerance * play.messages[item].quick_s)
            if play.queue[0].key > now_s + early_s:
                break
            counts[QUEUED] = heap_pop(play.queue, counts[QUEUED])
            moved = True
            if item < num_messages:
                _begin_flow(play, sharing, item, now_s)
            else:
                _enter_next_round(play, item - num_messages, now_s)
        while counts[FLOWING] > 0:
            item = play.ends[0].item
            early_s = max(instant_s, tolerance * (now_s - play.messages[item].begun_s))
            if play.ends[0].key > now_s + early_s:
                break
            _drop_end(play, item)
            leave(sharing, item)
            moved = True
            _end_message(play, item, now_s)


@njit(cache=True)
def _begin_flow(play: Play, sharing: Sharing, number: int, now_s: float) -> None:
    """The latency of a message has passed: its bytes begin to flow, if it has any and crosses anything."""
    message = play.messages[number]
    message.begun_s = now_s
    if message.bytes == 0 or sharing.flows[number].begin == sharing.flows[number].end:
        _end_message(play, number, now_s)
        return
    message.left_bytes, message.since_s = message.bytes, now_s
    join(sharing, number)
    play.counts[FLOWING] += 1
    _place_end(play, play.counts[FLOWING] - 1, np.inf, number)


@njit(cache=True)
def _end_message(play: Play, number: int, now_s: float) -> None:
    """A message is there: its sender is rid of it; its receiver, if it has come so far, reduces it."""
    message = play.messages[number]
    turn = message.arrivals
    message.arrivals += 1
    if play.counts[RECORDED] < len(play.records):
        record = play.records[play.counts[RECORDED]]
        record.message, record.posted_s, record.begun_s, record.ended_s = (
            number, message.posted_s, message.begun_s, now_s,
        )  # fmt: skip
        play.counts[RECORDED] += 1
    sender, receiver = play.ranks[message.source], play.ranks[message.target]
    sender.pending -= 1
    if receiver.round == message.round and receiver.turn == turn:
        receiver.pending -= 1
        if message.reduction_s > 0:
            receiver.busy_s = max(receiver.busy_s, now_s) + message.reduction_s
        if message.source != message.target and receiver.pending == 0:
            _leave_round(play, message.target, now_s)
    if sender.pending == 0:
        _leave_round(play, message.source, now_s)


@njit(cache=True)
def _leave_round(play: Play, number: int, now_s: float) -> None:
    """All messages of the rank's round are done: it goes on once its reductions and its copy are done too."""
    rank = play.ranks[number]
    done_s = max(now_s, rank.busy_s) + play.rounds[rank.round].copy_s
    _queue(play, done_s, len(play.messages) + number)


@njit(cache=True)
def _enter_next_round(play: Play, number: int, now_s: float) -> None:
    """On to the next turn, past rounds without messages of this rank, whose copies it makes first."""
    rank, rounds, num_ranks = play.ranks[number], play.rounds, len(play.ranks)
    copied_s = 0.0
    while True:
        rank.turn += 1
        if rank.round < len(rounds) and rank.turn >= rounds[rank.round].repeat:
            rank.turn = 0
            rank.round += 1
        if rank.round >= len(rounds):
            rank.finish_s = now_s + copied_s
            return
        row = rank.round * num_ranks + number
        pending = play.send_rows[row + 1] - play.send_rows[row] + play.receive_rows[row + 1] - play.receive_rows[row]
        if pending > 0:
            break
        copied_s += rounds[rank.round].repeat * rounds[rank.round].copy_s
        rank.turn = rounds[rank.round].repeat - 1
    if copied_s > 0:  # one turn back: entered again when the copies are done
        rank.turn -= 1
        _queue(play, now_s + copied_s, len(play.messages) + number)
        return
    rank.pending = pending
    _post_messages(play, number, row, now_s)


@njit(cache=True)
def _post_messages(play: Play, number: int, row: int, now_s: float) -> None:
    """The rank's sends start, and with them the receives whose senders wait for the rendezvous."""
    rank = play.ranks[number]
    rank.busy_s = now_s
    for place in range(play.send_rows[row], play.send_rows[row + 1]):
        message = play.messages[play.sends[place]]
        if message.rendezvous == 0 or _is_in(play, message.target, message.round, rank.turn):
            _post(play, play.sends[place], now_s)
    for place in range(play.receive_rows[row], play.receive_rows[row + 1]):
        message = play.messages[play.receives[place]]
        if message.arrivals > rank.turn:  # came before the rank did
            rank.pending -= 1
            rank.busy_s += message.reduction_s
        elif (
            message.rendezvous == 1
            and message.source != number
            and _is_in(play, message.source, message.round, rank.turn)
        ):
            _post(play, play.receives[place], now_s)
    if rank.pending == 0:
        _leave_round(play, number, now_s)


@njit(cache=True)
def _is_in(play: Play, rank: int, round_number: int, turn: int) -> bool:
    return play.ranks[rank].round == round_number and play.ranks[rank].turn == turn


@njit(cache=True)
def _post(play: Play, number: int, now_s: float) -> None:
    play.messages[number].posted_s = now_s
    _queue(play, now_s + play.messages[number].delay_s, number)


@njit(cache=True)
def _queue(play: Play, time_s: float, item: int) -> None:
    play.counts[QUEUED] = heap_push(play.queue, play.counts[QUEUED], time_s, item)


@njit(cache=True)
def _share(play: Play, sharing: Sharing, now_s: float) -> None:
    """New rates where a change reaches, and with them new ends."""
    solved = share_again(sharing)
    play.counts[SOLVED] += solved
    for place in range(solved):
        number = sharing.listed[place]
        message, old_rate = play.messages[number], sharing.flows[number].rate
        accept(sharing, number)
        rate = sharing.flows[number].rate
        if rate != old_rate:
            if old_rate > 0:
                message.left_bytes = max(0.0, message.left_bytes - old_rate * (now_s - message.since_s))
            message.since_s = now_s
            _place_end(play, message.place, now_s + message.left_bytes / rate, number)


@njit(cache=True)
def _put_end(play: Play, place: int, time_s: float, number: int) -> None:
    play.ends[place].key, play.ends[place].item = time_s, number
    play.messages[number].place = place


@njit(cache=True)
def _place_end(play: Play, place: int, time_s: float, number: int) -> None:
    """Put a flow's end where it belongs in the heap, up or down from a free place."""
    ends, size = play.ends, play.counts[FLOWING]
    while place > 0 and ends[(place - 1) >> 1].key > time_s:
        parent = (place - 1) >> 1
        _put_end(play, place, ends[parent].key, ends[parent].item)
        place = parent
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and ends[child + 1].key < ends[child].key:
            child += 1
        if ends[child].key >= time_s:
            break
        _put_end(play, place, ends[child].key, ends[child].item)
        place = child
    _put_end(play, place, time_s, number)


@njit(cache=True)
def _drop_end(play: Play, number: int) -> None:
    """A flow leaves the heap of ends."""
    place = play.messages[number].place
    play.messages[number].place = -1
    play.counts[FLOWING] -= 1
    last = play.counts[FLOWING]
    if place < last:
        _place_end(play, place, play.ends[last].key, play.ends[last].item)
