"""Discrete events at the level of flows: a schedule played message by message on a cluster.

It owns how a schedule becomes messages with routes, latencies and work, and what comes out. It does not own the loop
in time (``event_loop``), the sharing of links (``fair_share``) or the closed form of the same schedule
(``closed_form``).

A message of a rank's round k leaves once the rank has entered round k (the receiver too, where it is a rendezvous). It
waits out its latency part: overhead_s + latency_s + the path's latency + gap_s times its place among its rank's
messages (the later of its places at sender and receiver) + rendezvous_s where it applies. Then its bytes flow; flows
share the links (capacity x link_fraction) max-min fairly. A rank reduces what it receives one message after the other,
copies last, and enters its next round when all of this round is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.event_loop import Plan, progress_of, run_events
from perfmodel.network.fair_share import crossings_of, filling_of
from perfmodel.network.routes import Routes, Transport
from perfmodel.network.schedule import Round, Schedule

MAX_MESSAGES = 40_000_000  # about 200 bytes each with their routes


class Network(Protocol):
    """What the events need of a cluster (``cluster.Cluster``)."""

    @property
    def num_ranks(self) -> int: ...

    @property
    def capacity_bytes_per_s(self) -> NDArray[np.float64]: ...

    def routes(self, source_ranks: NDArray[np.int64], target_ranks: NDArray[np.int64]) -> Routes: ...


@dataclass(frozen=True, kw_only=True)
class Disturbances:
    """What differs from the quiet machine. Arrays by link [L] and by rank [ranks of the cluster]; None: nothing.

    link_factor: of the links' capacity; start_delay_s: how much later a rank enters the collective.
    """

    link_factor: NDArray[np.float64] | None = None
    start_delay_s: NDArray[np.float64] | None = None


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
) -> Outcome:
    """Play a schedule of size_bytes (``Schedule``'s m) on the ranks of ``group``, or on several ``groups`` at once.

    group: ranks of the cluster, in the schedule's order; default 0 to n - 1. tolerance: relative; every message may
    begin and end earlier by this part of its own transfer time, so that fewer batches are needed. record: keep what
    every message did.
    """
    assert group is None or groups is None, "a group or several groups, not both"
    assert size_bytes >= 0, f"{size_bytes} bytes"
    disturbances = disturbances or Disturbances()
    members = _members(schedule, cluster, group, groups)
    played = list(schedule.rounds())
    plan, routes, capacity = _plan(schedule, played, cluster, transport, size_bytes, members, disturbances)
    crossings = crossings_of(routes, capacity)
    num_records = int(np.sum(plan.repeat[plan.round_of])) if record else 0
    progress = progress_of(members.size, len(plan.source), num_records)
    filling = filling_of(len(plan.source), len(capacity))
    finish_s = np.full(members.size, np.nan)
    batches = run_events(plan, crossings, filling, progress, tolerance, finish_s)
    assert not np.isnan(finish_s).any(), f"{np.isnan(finish_s).sum()} of {members.size} ranks wait forever"
    flat = members.ravel()
    records = None
    if record:
        items, times_s = progress.record_item, progress.record_s
        records = Records(
            source=flat[plan.source[items]], target=flat[plan.target[items]], message_bytes=plan.message_bytes[items],
            posted_s=times_s[:, 0], begun_s=times_s[:, 1], ended_s=times_s[:, 2],
        )  # fmt: skip
    return Outcome(
        time_s=float(finish_s.max(initial=0.0)),
        finish_s=finish_s.reshape(members.shape) if groups is not None else finish_s,
        batches=int(batches),
        records=records,
    )


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


def _plan(
    schedule: Schedule, played: Sequence[Round], cluster: Network, transport: Transport, size_bytes: float,
    members: NDArray[np.int64], disturbances: Disturbances,
) -> tuple[Plan, Routes, NDArray[np.float64]]:  # fmt: skip
    """The schedule as arrays over the ranks of all groups (numbered group by group), its routes, and the capacity."""
    num_groups, n = members.shape
    counts = np.array([len(entry) for entry in played], dtype=np.int64)
    num_messages = int(counts.sum()) * num_groups
    assert num_messages <= MAX_MESSAGES, f"{num_messages} messages, at most {MAX_MESSAGES} are played one by one"
    shift = np.arange(num_groups, dtype=np.int64)[:, None] * n
    source = (_joined([entry.source for entry in played], np.int64)[None, :] + shift).ravel()
    target = (_joined([entry.target for entry in played], np.int64)[None, :] + shift).ravel()
    fraction = np.tile(_joined([entry.fraction for entry in played], np.float64), num_groups)
    reduced = np.tile(_joined([entry.reduced for entry in played], np.float64), num_groups)
    round_of = np.tile(np.repeat(np.arange(len(played), dtype=np.int64), counts), num_groups)
    flat = members.ravel()
    routes = cluster.routes(flat[source], flat[target])
    capacity = np.asarray(cluster.capacity_bytes_per_s, dtype=np.float64) * transport.link_fraction
    if disturbances.link_factor is not None:
        capacity = capacity * disturbances.link_factor
    message_bytes = fraction * size_bytes
    rendezvous = message_bytes > transport.eager_bytes
    num_rows = len(played) * num_groups * n
    sends, send_offsets, sent_as = _rows(round_of * num_groups * n + source, num_rows)
    receives, receive_offsets, received_as = _rows(round_of * num_groups * n + target, num_rows)
    delay_s = transport.overhead_s + transport.latency_s + routes.latency_s
    delay_s = delay_s + np.where(rendezvous, transport.rendezvous_s, 0.0)
    delay_s = delay_s + transport.gap_s * np.maximum(sent_as, received_as)
    start_s = np.zeros(members.size)
    if disturbances.start_delay_s is not None:
        start_s = np.asarray(disturbances.start_delay_s, dtype=np.float64)[flat]
    plan = Plan(
        source=source, target=target, round_of=round_of, message_bytes=message_bytes, delay_s=delay_s,
        quick_s=_quick_s(routes, capacity, message_bytes), rendezvous=rendezvous,
        reduction_s=np.asarray(transport.reduction_s(reduced * size_bytes, np.full(num_messages, size_bytes))),
        sends=sends, send_offsets=send_offsets, receives=receives, receive_offsets=receive_offsets,
        repeat=np.array([entry.repeat for entry in played], dtype=np.int64),
        copy_s=np.array([entry.copied * size_bytes / transport.copy_bytes_per_s for entry in played], dtype=np.float64),
        start_s=start_s,
    )  # fmt: skip
    return plan, routes, capacity


def _joined(parts: Sequence[NDArray], dtype: type) -> NDArray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype=dtype) for part in parts)])


def _rows(row: NDArray[np.int64], num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Messages sorted by row in the order posted, where each row begins [num_rows + 1], and each message's place."""
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=num_rows))]).astype(np.int64)
    place = np.empty(len(row), np.int64)
    place[order] = np.arange(len(row)) - offsets[row[order]]
    return order.astype(np.int64), offsets, place


def _quick_s(
    routes: Routes, capacity: NDArray[np.float64], message_bytes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds of each message's bytes if it were alone: no flow is faster."""
    slowest = np.zeros(len(routes))
    owner = np.repeat(np.arange(len(routes)), np.diff(routes.offsets))
    np.maximum.at(slowest, owner, routes.shares / capacity[routes.links])
    return slowest * message_bytes
