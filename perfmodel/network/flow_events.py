"""Discrete events at the level of flows: a schedule played message by message on a cluster.

It owns how a schedule becomes messages with routes, latencies and work, and what comes out. It does not own the loop
in time (``event_loop``), the sharing of links (``fair_share``) or the closed form of the same schedule
(``closed_form``).

A message of a rank's round k leaves once the rank has entered round k (the receiver too, where it is a rendezvous). It
waits out its latency part: the path's latency and ``Transport.software_s``, with the later of its places among the
round's messages of its sender and its receiver. Then its bytes flow; flows share the links (capacity x link_fraction)
max-min fairly. A rank reduces what it receives one message after the other, copies last, and enters its next round when
all of this round is done. A collective of 0 bytes sends nothing. Not played: ``Transport.entry_s`` (give each rank's
delay with ``Disturbances``), ``exchange_fraction`` and ``first_touch_s``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from perfmodel.network.event_loop import BATCHES, MESSAGE, RANK, ROUND, Play, play_of, run_events
from perfmodel.network.fair_share import sharing_of
from perfmodel.network.noise import Disturbances
from perfmodel.network.routes import Routes, Transport
from perfmodel.network.schedule import Round, Schedule
from perfmodel.network.symmetry import find_classes

MANY_MESSAGES = 4096  # from here on it pays to look for symmetry
MAX_MESSAGES = 40_000_000  # about 200 bytes each with their routes


class Network(Protocol):
    """What the events need of a cluster (``cluster.Cluster``)."""

    @property
    def num_ranks(self) -> int: ...

    @property
    def capacity_bytes_per_s(self) -> NDArray[np.float64]: ...

    def routes(self, source_ranks: NDArray[np.int64], target_ranks: NDArray[np.int64]) -> Routes: ...


@dataclass(frozen=True, kw_only=True)
class Records:
    """One row per message: ranks of the cluster, bytes, and when it was posted, began to flow and was there."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    message_bytes: NDArray[np.float64]
    posted_s: NDArray[np.float64]
    begun_s: NDArray[np.float64]
    ended_s: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """time_s: until the last rank is done; finish_s: of each rank, [n] or [groups, n]; batches: of events."""

    time_s: float
    finish_s: NDArray[np.float64]
    batches: int
    records: Records | None = None


def simulate(
    schedule: Schedule,
    cluster: Network,
    transport: Transport,
    size_bytes: float,
    *,
    group: NDArray[np.int64] | None = None,
    groups: Sequence[NDArray[np.int64]] | None = None,
    disturbances: Disturbances | None = None,
    record: bool = False,
    tolerance: float = 0.0,
    symmetry: bool | None = None,
) -> Outcome:
    """Play a schedule of size_bytes (``Schedule``'s m) on the ranks of ``group``, or on several ``groups`` at once.

    group: ranks of the cluster, in the schedule's order; default 0 to n - 1. tolerance: relative; every message may
    begin and end earlier by this part of its own transfer time, so that fewer batches are needed. record: keep what
    every message did. symmetry: play one of each class of messages that cannot be told apart (None: where there are
    many messages); the times are the same.
    """
    assert group is None or groups is None, "a group or several groups, not both"
    assert size_bytes >= 0, f"{size_bytes} bytes"
    disturbances = disturbances or Disturbances()
    members = _members(schedule, cluster, group, groups)
    played = _played(schedule, cluster, transport, size_bytes, members, disturbances)
    if symmetry is None:
        symmetry = len(played.messages) >= MANY_MESSAGES and not record
    assert not (symmetry and record), "records are of every message: symmetry=False"
    play, finish_s = _run(played, tolerance, symmetry, record)
    assert not np.isnan(finish_s).any(), f"{np.isnan(finish_s).sum()} of {members.size} ranks wait forever"
    return Outcome(
        time_s=float(finish_s.max(initial=0.0)),
        finish_s=finish_s.reshape(members.shape) if groups is not None else finish_s,
        batches=int(play.counts[BATCHES]),
        records=_records(play, members.ravel()) if record else None,
    )


def _run(played: _Played, tolerance: float, symmetry: bool, record: bool) -> tuple[Play, NDArray[np.float64]]:
    """Play it, whole or by classes. Returns the end of every rank."""
    rank_class = None
    if symmetry:
        messages = played.messages
        names = ("round", "bytes", "delay_s", "reduction_s", "rendezvous")
        classes = find_classes(
            np.array([messages[name] for name in names], dtype=np.float64), messages["source"].copy(),
            messages["target"].copy(), played.routes, played.capacity, played.ranks["start_s"],
        )  # fmt: skip
        if classes is not None:
            rank_class = classes.rank_class
            chosen = messages[classes.messages]
            chosen["source"], chosen["target"] = rank_class[chosen["source"]], rank_class[chosen["target"]]
            chosen["reduction_s"] *= classes.received
            played = _Played(messages=chosen, ranks=played.ranks[classes.ranks], rounds=played.rounds,
                             routes=classes.routes, capacity=played.capacity[classes.links])  # fmt: skip
    sends, receives = (_rows_of(played, end) for end in ("source", "target"))
    num_records = int(played.rounds["repeat"][played.messages["round"]].sum()) if record else 0
    play = play_of(played.messages, played.ranks, played.rounds, sends, receives, num_records)
    run_events(play, sharing_of(played.routes, played.capacity), tolerance)
    finish_s = play.ranks["finish_s"]
    return play, finish_s.copy() if rank_class is None else finish_s[rank_class]


def _records(play: Play, members: NDArray[np.int64]) -> Records:
    rows, messages = play.records, play.messages[play.records["message"]]
    return Records(
        source=members[messages["source"]], target=members[messages["target"]], message_bytes=messages["bytes"],
        posted_s=rows["posted_s"], begun_s=rows["begun_s"], ended_s=rows["ended_s"],
    )  # fmt: skip


def _members(
    schedule: Schedule, cluster: Network, group: NDArray[np.int64] | None, groups: Sequence[NDArray[np.int64]] | None
) -> NDArray[np.int64]:
    """Ranks of the cluster [groups, n], each at most once."""
    chosen = groups if groups is not None else [np.arange(schedule.num_ranks) if group is None else group]
    members = np.array([np.asarray(ranks, dtype=np.int64) for ranks in chosen])
    assert members.ndim == 2, "at least one group"
    assert members.shape[1] == schedule.num_ranks, f"groups of {members.shape[1]}, schedule of {schedule.num_ranks}"
    assert len(np.unique(members)) == members.size, "a rank is in a group twice"
    assert members.min() >= 0, f"rank {members.min()}"
    assert members.max() < cluster.num_ranks, f"rank {members.max()} of a cluster of {cluster.num_ranks}"
    return members


@dataclass(frozen=True, kw_only=True)
class _Played:
    """A schedule on a cluster as arrays: messages, ranks (numbered group by group) and rounds of ``event_loop``."""

    messages: NDArray
    ranks: NDArray
    rounds: NDArray
    routes: Routes
    capacity: NDArray[np.float64]


def _played(
    schedule: Schedule, cluster: Network, transport: Transport, size_bytes: float, members: NDArray[np.int64],
    disturbances: Disturbances,
) -> _Played:  # fmt: skip
    rounds_played = list(schedule.rounds()) if size_bytes > 0 else []
    messages = _messages(rounds_played, members, size_bytes, transport)
    flat = members.ravel()
    routes = cluster.routes(flat[messages["source"]], flat[messages["target"]])
    capacity = np.asarray(cluster.capacity_bytes_per_s, dtype=np.float64) * transport.link_fraction
    if disturbances.link_factor is not None:
        capacity = capacity * disturbances.link_factor
    ranks = np.zeros(members.size, RANK)
    if disturbances.start_delay_s is not None:
        ranks["start_s"] = np.asarray(disturbances.start_delay_s, dtype=np.float64)[flat]
    rounds = np.zeros(len(rounds_played), ROUND)
    rounds["repeat"] = [entry.repeat for entry in rounds_played]
    rounds["copy_s"] = [transport.copy_s(entry.copied * size_bytes, size_bytes) for entry in rounds_played]
    played = _Played(messages=messages, ranks=ranks, rounds=rounds, routes=routes, capacity=capacity)
    places = [_places(*_rows_of(played, end)) for end in ("source", "target")] if transport.gap_s else [0, 0]
    messages["delay_s"] = routes.latency_s + transport.software_s(messages["bytes"], 1.0 + np.maximum(*places))
    messages["delay_s"] *= disturbances.latency_factor(len(messages))
    messages["quick_s"] = _quick_s(routes, capacity, messages["bytes"])
    return played


def _messages(
    played: Sequence[Round], members: NDArray[np.int64], size_bytes: float, transport: Transport
) -> NDArray:  # fmt: skip
    """All messages, group by group: ranks, round, bytes and reductions."""
    num_groups, n = members.shape
    counts = np.array([len(entry) for entry in played], dtype=np.int64)
    num_messages = int(counts.sum()) * num_groups
    if num_messages > MAX_MESSAGES:
        raise UserError(
            f"{num_messages:,} messages cannot be played one by one, {MAX_MESSAGES:,} can: "
            "take fewer ranks, or the closed form"
        )
    messages = np.zeros(num_messages, MESSAGE)
    shift = np.repeat(np.arange(num_groups, dtype=np.int64) * n, int(counts.sum()))
    messages["source"] = np.tile(_joined([entry.source for entry in played], np.int64), num_groups) + shift
    messages["target"] = np.tile(_joined([entry.target for entry in played], np.int64), num_groups) + shift
    messages["round"] = np.tile(np.repeat(np.arange(len(played), dtype=np.int64), counts), num_groups)
    messages["bytes"] = np.tile(_joined([entry.fraction for entry in played], np.float64), num_groups) * size_bytes
    messages["rendezvous"] = messages["bytes"] > transport.eager_bytes
    reduced_bytes = np.tile(_joined([entry.reduced for entry in played], np.float64), num_groups) * size_bytes
    messages["reduction_s"] = transport.reduction_s(reduced_bytes, np.full(num_messages, size_bytes))
    return messages


def _joined(parts: Sequence[NDArray], dtype: type) -> NDArray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype=dtype) for part in parts)])


def _rows_of(played: _Played, end: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Messages sorted by round and the rank at one end, in the order posted, and where each rank's begin [TR + 1]."""
    row = played.messages["round"] * len(played.ranks) + played.messages[end]
    num_rows = len(played.rounds) * len(played.ranks)
    order = np.argsort(row, kind="stable")
    begins = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=num_rows))])
    return order.astype(np.int64), begins.astype(np.int64)


def _places(order: NDArray[np.int64], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each message's place in its row: 0 for the first."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(begins[:-1], np.diff(begins))
    return place


def _quick_s(routes: Routes, capacity: NDArray[np.float64], message_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of each message's bytes if it were alone: no flow is faster."""
    slowest = np.zeros(len(routes))
    owner = np.repeat(np.arange(len(routes)), np.diff(routes.offsets))
    np.maximum.at(slowest, owner, routes.shares / capacity[routes.links])
    return slowest * message_bytes
