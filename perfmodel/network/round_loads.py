"""What the rounds of a schedule put on links and ranks: the coefficients of the closed form, many rounds at a time.

It owns the counting; which rounds, and what their time is, belongs to ``closed_form``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.routes import Routes
from perfmodel.network.schedule import Round

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BATCH_MESSAGES = 200_000  # routes of so many messages are asked for at once


class RankNetwork(Protocol):
    """What pricing needs of a cluster."""

    @property
    def num_ranks(self) -> int: ...

    @property
    def capacity_bytes_per_s(self) -> Floats: ...

    def routes(self, source_ranks: Ints, target_ranks: Ints) -> Routes: ...


@dataclass(frozen=True)
class Part:
    """One exchange of a round, a message of every rank, that stands for ``weight`` such; place: in the ranks' order."""

    one: Round
    weight: float
    place: int


@dataclass(frozen=True)
class Coefficients:
    """One round's numbers, hashable so that equal rounds merge.

    load_s_per_byte: of the fullest link; shared_load_s_per_byte: of the fullest link that several ranks send over.
    exchanged: the largest message between two ranks that send to each other, of m. reduced, messages: of the rank with
    most. classes: (path latency, place from 1, bytes of m) of messages that no other exceeds in all three.
    """

    load_s_per_byte: float
    shared_load_s_per_byte: float
    exchanged: float
    reduced: float
    copied: float
    messages: float
    classes: tuple[tuple[float, float, float], ...]


def coefficients(
    rounds: Iterable[tuple[float, Round]], cluster: RankNetwork, groups: Sequence[Ints]
) -> Iterator[tuple[float, Coefficients]]:
    """(how often, coefficients) of every round that has messages; groups: ranks of the cluster that do it at once."""
    batch: list[tuple[float, Round]] = []
    size = 0
    for weight, one in rounds:
        if not len(one):
            continue
        batch.append((weight, one))
        size += len(groups) * len(one)
        if size >= BATCH_MESSAGES:
            yield from _of_batch(batch, cluster, groups)
            batch, size = [], 0
    if batch:
        yield from _of_batch(batch, cluster, groups)


def _of_batch(
    batch: Sequence[tuple[float, Round]], cluster: RankNetwork, groups: Sequence[Ints]
) -> Iterator[tuple[float, Coefficients]]:
    messages = _Messages([one for _, one in batch], groups)
    routes = cluster.routes(messages.cluster_source, messages.cluster_target)
    load, shared = _loads(messages, routes, cluster.capacity_bytes_per_s)
    exchanged = _exchanged(messages)
    reduced = messages.most_of_a_rank(messages.target, messages.reduced)
    sent = messages.most_of_a_rank(messages.source, np.ones(len(messages.source)))
    classes = _classes(messages, routes.latency_s)
    for index, (weight, one) in enumerate(batch):
        yield weight, Coefficients(
            load_s_per_byte=float(load[index]), shared_load_s_per_byte=float(shared[index]),
            exchanged=float(exchanged[index]), reduced=float(reduced[index]), copied=float(one.copied),
            messages=float(sent[index]), classes=classes[index],
        )  # fmt: skip


def window_coefficients(
    parts: Sequence[Part], cluster: RankNetwork, groups: Sequence[Ints], *, exchanges: bool
) -> Coefficients | None:
    """Coefficients of one round given by some of its exchanges. exchanges: ranks send to each other in it."""
    capacity = cluster.capacity_bytes_per_s
    seconds, last = np.zeros(len(capacity)), np.full(len(capacity), -1, dtype=np.int64)
    several = np.zeros(len(capacity), dtype=np.bool_)
    reduced, sent, largest = 0.0, 0.0, 0.0
    latest: dict[tuple[float, float], float] = {}
    for part in (part for part in parts if len(part.one)):
        messages = _Messages([part.one], groups)
        routes = cluster.routes(messages.cluster_source, messages.cluster_target)
        seconds += part.weight * routes.link_bytes(messages.fraction, len(capacity)) / capacity
        sender = np.repeat(messages.cluster_source, np.diff(routes.offsets))
        before = last[routes.links]
        last[routes.links] = sender
        several[routes.links[(before >= 0) & (before != sender) | (last[routes.links] != sender)]] = True
        reduced += part.weight * float(messages.most_of_a_rank(messages.target, messages.reduced)[0])
        sent += part.weight
        largest = max(largest, float(messages.fraction.max()))
        key = (1.0 + part.place, float(messages.fraction.max()))
        latest[key] = max(latest.get(key, 0.0), float(routes.latency_s.max()))
    if not latest:
        return None
    rows = np.array([(latency_s, *key) for key, latency_s in latest.items()])
    return Coefficients(
        load_s_per_byte=float(seconds.max(initial=0.0)),
        shared_load_s_per_byte=float(seconds[several].max(initial=0.0)),
        exchanged=largest if exchanges else 0.0, reduced=reduced, copied=float(parts[0].one.copied), messages=sent,
        classes=_pareto(rows),
    )  # fmt: skip


class _Messages:
    """All messages of a batch in one row, round by round: number of the round, ranks (within all groups), bytes."""

    def __init__(self, rounds: Sequence[Round], groups: Sequence[Ints]) -> None:
        count, num_ranks = len(groups), len(groups[0])
        lengths = np.array([count * len(one) for one in rounds], dtype=np.int64)
        shift = np.concatenate([np.repeat(np.arange(count, dtype=np.int64) * num_ranks, len(one)) for one in rounds])
        self.num_rounds, self.num_ranks = len(rounds), count * num_ranks
        self.round = np.repeat(np.arange(len(rounds), dtype=np.int64), lengths)
        self.begins = np.cumsum(lengths) - lengths
        self.source = np.concatenate([np.tile(one.source, count) for one in rounds]) + shift
        self.target = np.concatenate([np.tile(one.target, count) for one in rounds]) + shift
        self.fraction = np.concatenate([np.tile(one.fraction, count) for one in rounds])
        self.reduced = np.concatenate([np.tile(one.reduced, count) for one in rounds])
        members = np.concatenate(groups)
        self.cluster_source, self.cluster_target = members[self.source], members[self.target]

    @property
    def place(self) -> Ints:
        """The larger of each message's places among those of its sender and of its receiver, from 0."""
        return np.maximum(_place(self._by_rank(self.source)), _place(self._by_rank(self.target)))

    def _by_rank(self, ranks: Ints) -> Ints:
        return self.round * self.num_ranks + ranks

    def most_of_a_rank(self, ranks: Ints, amount: Floats) -> Floats:
        """[rounds], the largest sum over a rank's messages."""
        if not amount.any():
            return np.zeros(self.num_rounds)
        sums = np.bincount(self._by_rank(ranks), weights=amount, minlength=self.num_rounds * self.num_ranks)
        return np.asarray(sums.reshape(self.num_rounds, self.num_ranks).max(axis=1))

    def partner(self) -> Ints | None:
        """[rounds x ranks], whom each rank sends to; None where a rank sends several messages in a round."""
        by_rank = self._by_rank(self.source)
        found = np.full(self.num_rounds * self.num_ranks, -1, dtype=np.int64)
        found[by_rank] = np.arange(len(by_rank))
        if not np.array_equal(found[by_rank], np.arange(len(by_rank))):
            return None
        found[by_rank] = self.target
        return found


def _loads(messages: _Messages, routes: Routes, capacity: Floats) -> tuple[Floats, Floats]:
    """Seconds per byte of m [rounds] of each round's fullest link, and of its fullest one with several senders."""
    used = np.zeros(len(capacity), dtype=np.bool_)
    used[routes.links] = True
    number = np.cumsum(used) - 1
    num_used = int(used.sum())
    if not num_used:
        return np.zeros(messages.num_rounds), np.zeros(messages.num_rounds)
    crossings = np.diff(routes.offsets)
    cell = np.repeat(messages.round * num_used, crossings) + number[routes.links]
    size = messages.num_rounds * num_used
    crossing_bytes = np.repeat(messages.fraction, crossings) * routes.shares
    seconds = np.bincount(cell, weights=crossing_bytes, minlength=size).reshape(-1, num_used) / capacity[used]
    sender = np.repeat(messages.source, crossings)
    last, several = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.bool_)
    last[cell] = sender
    several[cell[last[cell] != sender]] = True
    shared = np.where(several.reshape(-1, num_used), seconds, 0.0)
    return np.asarray(seconds.max(axis=1)), np.asarray(shared.max(axis=1))


def _exchanged(messages: _Messages) -> Floats:
    """[rounds], the largest message between two ranks that send to each other, of m; 0 for none."""
    partner = messages.partner()
    if partner is not None:
        both = partner[messages.round * messages.num_ranks + messages.target] == messages.source
    else:
        n = messages.num_ranks
        there = (messages.round * n + messages.source) * n + messages.target
        back = (messages.round * n + messages.target) * n + messages.source
        both = np.isin(there, back)
    return np.asarray(np.maximum.reduceat(np.where(both, messages.fraction, 0.0), messages.begins))


def _place(by_rank: Ints) -> Ints:
    """Place of each message among those of the same rank and round, from 0."""
    if len(by_rank) and np.bincount(by_rank).max() == 1:
        return np.zeros(len(by_rank), dtype=np.int64)
    order = np.argsort(by_rank, kind="stable")
    ordered = by_rank[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    positions = np.arange(len(by_rank), dtype=np.int64)
    places = np.empty(len(by_rank), dtype=np.int64)
    places[order] = positions - np.maximum.accumulate(np.where(new, positions, 0))
    return places


def _classes(messages: _Messages, latency_s: Floats) -> list[tuple[tuple[float, float, float], ...]]:
    """Of each round the messages that no other exceeds in path latency, place and bytes at once."""
    ends = np.append(messages.begins[1:], len(latency_s))
    worst_s = np.maximum.reduceat(latency_s, messages.begins)
    uniform = np.ones(messages.num_rounds, dtype=np.bool_)
    places = messages.place
    for column in (places, messages.fraction):
        lowest, highest = (np.asarray(f.reduceat(column, messages.begins)) for f in (np.minimum, np.maximum))
        uniform &= lowest == highest
    found: list[tuple[tuple[float, float, float], ...]] = []
    for index, (begin, end) in enumerate(zip(messages.begins.tolist(), ends.tolist(), strict=True)):
        place, fraction = places[begin:end], messages.fraction[begin:end]
        if uniform[index]:
            found.append(((float(worst_s[index]), 1.0 + float(place[0]), float(fraction[0])),))
        else:
            found.append(_not_exceeded(latency_s[begin:end], place, fraction))
    return found


def _not_exceeded(latency_s: Floats, place: Ints, fraction: Floats) -> tuple[tuple[float, float, float], ...]:
    """First the largest latency for each place and size, then those that are exceeded left out."""
    sizes, size = np.unique(fraction, return_inverse=True)
    num_places = int(place.max()) + 1
    worst_s = np.full(len(sizes) * num_places, -1.0)
    np.maximum.at(worst_s, size * num_places + place, latency_s)
    cells = np.flatnonzero(worst_s >= 0)
    return _pareto(np.stack([worst_s[cells], 1.0 + cells % num_places, sizes[cells // num_places]], axis=1))


def _pareto(rows: Floats) -> tuple[tuple[float, float, float], ...]:
    """Rows [K, 3] that no other exceeds in all three columns."""
    kept: list[tuple[float, float, float]] = []
    for row in rows[np.lexsort((-rows[:, 2], -rows[:, 1], -rows[:, 0]))]:  # falling latency, then place, then bytes
        if not any(row[1] <= other[1] and row[2] <= other[2] for other in kept):
            kept.append((float(row[0]), float(row[1]), float(row[2])))
    return tuple(kept)
