"""Time of a schedule on a cluster by closed form: alpha-beta-gamma with the links' contention.

It owns the formula and its coefficients, computed once per schedule, cluster and group and then evaluated for many
sizes at once. It does not own schedules, routes or the constants of a library (``Transport``).

A round takes, with m bytes, messages i of f_i m bytes, links l of capacity C_l:

    max_i (software_s(f_i m, k_i) + path_i)
    + wire_s = m max_l (sum_i f_i share_il / C_l) / link_fraction, + exchange_s where ranks exchange messages
    + reduction_s(m max_r (sum of what rank r reduces), m) + copy_s(m copied, m)

k_i: the larger of the message's places in its sender's and its receiver's order, from 1. Rounds add up, and the skew
of entry comes once. Where messages do not share links and are alike this is the time that discrete events give; where
they do, it treats a round as if all ranks entered it together and as if the fullest link were busy from the first byte
to the last.

Schedules of more than ``EXACT_MESSAGES`` messages that exchange with one rank after the other (all-to-alls, pairwise
reduce-scatter) are priced by about ``SAMPLED_SHIFTS`` of their n-1 exchanges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.network.algorithms_steps import StepSchedule
from perfmodel.network.routes import Routes, Transport
from perfmodel.network.schedule import Round, Schedule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EXACT_MESSAGES = 2_500_000
SAMPLED_SHIFTS = 256


class RankNetwork(Protocol):
    """What pricing needs of a cluster."""

    @property
    def num_ranks(self) -> int: ...

    @property
    def capacity_bytes_per_s(self) -> Floats: ...

    def routes(self, source_ranks: Ints, target_ranks: Ints) -> Routes: ...


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a schedule costs on a cluster, for any size and library: R different rounds, K classes of messages.

    num_ranks: of one group. repeats: float64 [R], how often each round occurs (fractional where sampled).
    load_s_per_byte: [R], m times this is the time of the fullest link at full capacity; shared_load_s_per_byte: [R],
    the same over links that several ranks send over. exchanged: [R], of m, the largest message of two ranks that
    exchange. reduced, copied: [R], of m, by one rank. messages: [R], the most that one rank sends. class_offsets:
    int64 [R + 1]; latency_s, place, fraction: [K], path latency, place in the order from 1, and bytes (of m) of the
    messages of a round that can be the last to start (none is exceeded in all three). sampled: not all rounds were
    looked at.
    """

    num_ranks: int
    repeats: Floats
    load_s_per_byte: Floats
    shared_load_s_per_byte: Floats
    exchanged: Floats
    reduced: Floats
    copied: Floats
    messages: Floats
    class_offsets: Ints
    latency_s: Floats
    place: Floats
    fraction: Floats
    sampled: bool = False

    @property
    def num_rounds(self) -> float:
        return float(self.repeats.sum())

    def time_s(self, sizes_bytes: ArrayLike, transport: Transport) -> Floats:
        """Seconds for every size (m in bytes, see ``schedule``), in the sizes' shape. 0 bytes take 0 s."""
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        if not len(self.repeats):
            return np.zeros(sizes.shape)
        flat = sizes.reshape(-1)
        total_s = self._software_s(flat, transport) + self._wire_s(flat, transport) + self._memory_s(flat, transport)
        return np.where(flat > 0, total_s + transport.skew_s(self.num_ranks), 0.0).reshape(sizes.shape)

    def _software_s(self, sizes: Floats, transport: Transport) -> Floats:
        """Seconds of all rounds before bytes flow [S] (or [1] where the size does not matter)."""
        by_size = np.isfinite(transport.eager_bytes) or np.isfinite(transport.eager_copy_bytes_per_s)
        message_bytes = self.fraction[:, None] * sizes if by_size else np.zeros((len(self.fraction), 1))
        start_s = self.latency_s[:, None] + transport.software_s(message_bytes, self.place[:, None])
        if len(self.place) > len(self.repeats):
            start_s = np.maximum.reduceat(start_s, self.class_offsets[:-1], axis=0)
        return np.asarray(self.repeats @ start_s)

    def _wire_s(self, sizes: Floats, transport: Transport) -> Floats:
        """Seconds of all rounds on the fullest links [S]."""
        per_byte_s = np.asarray(transport.wire_s_per_byte(self.load_s_per_byte, self.shared_load_s_per_byte))
        wire_s = float(per_byte_s @ self.repeats) * sizes
        if np.isinf(transport.exchange_bytes) or not self.exchanged.any():
            return wire_s
        lost_s = transport.exchange_s(self.exchanged[:, None] * sizes, per_byte_s[:, None] * sizes)
        return np.asarray(wire_s + self.repeats @ lost_s)

    def _memory_s(self, sizes: Floats, transport: Transport) -> Floats:
        """Seconds of all rounds in reductions and copies [S]."""
        reduced = float(self.reduced @ self.repeats) * sizes
        copied = float(self.copied @ self.repeats) * sizes
        return np.asarray(transport.reduction_s(reduced, sizes) + transport.copy_s(copied, sizes))


def times_s(prices: Sequence[Price], which: ArrayLike, sizes_bytes: ArrayLike, transport: Transport) -> Floats:
    """Seconds of many calls at once: call i has price which[i] and size sizes_bytes[i]; all [C]."""
    index, sizes = np.asarray(which, dtype=np.int64), np.asarray(sizes_bytes, dtype=np.float64)
    order = np.argsort(index, kind="stable")
    edges = np.searchsorted(index[order], np.arange(len(prices) + 1))
    found = np.empty(len(sizes))
    for one, begin, end in zip(prices, edges[:-1], edges[1:], strict=True):
        if end > begin:
            found[order[begin:end]] = one.time_s(sizes[order[begin:end]], transport)
    return found


def price(schedule: Schedule, cluster: RankNetwork, group: ArrayLike | None = None) -> Price:
    """Coefficients of a schedule whose rank r is rank group[r] of the cluster (default: its first ranks)."""
    ranks = np.arange(schedule.num_ranks) if group is None else np.asarray(group)
    return price_together(schedule, cluster, [ranks])


_PRICES: WeakKeyDictionary[RankNetwork, dict[tuple[Schedule, bytes], Price]] = WeakKeyDictionary()


def price_together(schedule: Schedule, cluster: RankNetwork, groups: Sequence[ArrayLike]) -> Price:
    """Coefficients where several disjoint groups of one size do the same at once and share links.

    Kept per cluster, schedule and groups as long as the cluster lives.
    """
    members = [np.asarray(group, dtype=np.int64) for group in groups]
    kept = _PRICES.setdefault(cluster, {})
    key = (schedule, b"|".join(ranks.tobytes() for ranks in members))
    if key not in kept:
        kept[key] = _priced(schedule, cluster, members)
    return kept[key]


def _priced(schedule: Schedule, cluster: RankNetwork, members: Sequence[Ints]) -> Price:
    everyone = np.concatenate(members)
    for ranks in members:
        assert len(ranks) == schedule.num_ranks, f"group of {len(ranks)} for {schedule.num_ranks} ranks"
    assert len(np.unique(everyone)) == len(everyone), "a rank is in a group twice"
    assert 0 <= everyone.min() <= everyone.max() < cluster.num_ranks, f"rank {everyone.max()} of {cluster.num_ranks}"
    weights: dict[_Coefficients, float] = {}
    sampled = _is_sampled(schedule, len(members))
    for weight, parts in _sampled_windows(schedule) if sampled else _all_rounds(schedule):
        coefficients = _round_coefficients(parts, cluster, members)
        if coefficients is not None:
            weights[coefficients] = weights.get(coefficients, 0.0) + weight
    return _assemble(weights, schedule.num_ranks, sampled=sampled)


@dataclass(frozen=True)
class _Part:
    """Messages of a round that count ``weight`` times; place: of each in its ranks' order, None: as they come."""

    one: Round
    weight: float = 1.0
    place: int | None = None


def _all_rounds(schedule: Schedule) -> Iterator[tuple[float, list[_Part]]]:
    for one in schedule.rounds():
        yield float(one.repeat), [_Part(one)]


def _is_sampled(schedule: Schedule, num_groups: int) -> bool:
    if not isinstance(schedule, StepSchedule) or schedule.make_shift is None:
        return False
    return num_groups * schedule.num_ranks * (schedule.num_ranks - 1) > EXACT_MESSAGES


def _sampled_windows(schedule: Schedule) -> Iterator[tuple[float, list[_Part]]]:
    """Some of the rounds, of each some of its exchanges."""
    assert isinstance(schedule, StepSchedule)
    assert schedule.make_shift is not None
    window, last = schedule.window, schedule.num_ranks - 1
    rounds, round_weights = strata(schedule.num_rounds, max(16, SAMPLED_SHIFTS // window))
    for index, weight in zip(rounds.tolist(), round_weights.tolist(), strict=True):
        first = index * window + 1
        shifts, shift_weights = strata(min(window, last + 1 - first), SAMPLED_SHIFTS)
        yield (
            weight,
            [
                _Part(schedule.make_shift(first + shift).round(), part_weight, shift)
                for shift, part_weight in zip(shifts.tolist(), shift_weights.tolist(), strict=True)
            ],
        )


def strata(count: int, num_samples: int) -> tuple[Ints, Floats]:
    """At most num_samples of 0 to count - 1, and how many each stands for: strata of equal length, one of each.

    The place within the stratum follows the golden ratio, so that no period of the fabric is met in step; the last
    number is always among them.
    """
    num_samples = min(count, num_samples)
    edges = np.linspace(0, count, num_samples + 1)
    places = (np.arange(1, num_samples + 1) * 0.6180339887498949) % 1.0
    indices = (edges[:-1] + places * np.diff(edges)).astype(np.int64)
    indices[-1:] = count - 1
    return np.minimum(indices, count - 1), np.diff(edges)


@dataclass(frozen=True)
class _Coefficients:
    """One round's numbers, hashable so that equal rounds merge."""

    load_s_per_byte: float
    shared_load_s_per_byte: float
    exchanged: float
    reduced: float
    copied: float
    messages: float
    classes: tuple[tuple[float, float, float], ...]


def _round_coefficients(
    parts: Sequence[_Part], cluster: RankNetwork, groups: Sequence[Ints]
) -> _Coefficients | None:  # fmt: skip
    """The numbers of one round's messages; None where there are none."""
    capacity = cluster.capacity_bytes_per_s
    loads = np.zeros(len(capacity))
    senders = _Senders(len(capacity))
    num_ranks = len(groups[0])
    reduced, messages = np.zeros(num_ranks), np.zeros(num_ranks)
    exchanged = 0.0
    classes: list[tuple[float, float, float]] = []
    for part in parts:
        if not len(part.one):
            continue
        one, count = part.one, len(groups)
        source = np.concatenate([group[one.source] for group in groups])
        target = np.concatenate([group[one.target] for group in groups])
        fraction = np.tile(one.fraction, count)
        routes = cluster.routes(source, target)
        loads += part.weight * routes.link_bytes(fraction, len(capacity))
        senders.add(routes, source)
        exchanged = max(exchanged, _exchanged(one))
        reduced += part.weight * np.bincount(one.target, weights=one.reduced, minlength=num_ranks)
        messages += part.weight * np.bincount(one.source, minlength=num_ranks)
        place = np.full(len(source), part.place) if part.place is not None else _places(source, target)
        classes += _worst_classes(routes.latency_s, 1.0 + place.astype(np.float64), fraction)
    if not classes:
        return None
    if len(parts) > 1:
        table = np.array(classes, dtype=np.float64)
        classes = _worst_classes(table[:, 0], table[:, 1], table[:, 2])
    per_byte_s = loads / capacity
    return _Coefficients(
        load_s_per_byte=float(per_byte_s.max(initial=0.0)),
        shared_load_s_per_byte=float(per_byte_s[senders.several].max(initial=0.0)),
        exchanged=exchanged,
        reduced=float(reduced.max()),
        copied=float(parts[0].one.copied),
        messages=float(messages.max()),
        classes=tuple(classes),
    )


class _Senders:
    """Which links [L] messages of more than one sender go over."""

    def __init__(self, num_links: int) -> None:
        self.several = np.zeros(num_links, dtype=np.bool_)
        self._seen = np.full(num_links, -1, dtype=np.int64)

    def add(self, routes: Routes, source: Ints) -> None:
        sender = np.repeat(source, np.diff(routes.offsets))
        before = self._seen[routes.links]
        self._seen[routes.links] = sender
        other = (before >= 0) & (before != sender) | (self._seen[routes.links] != sender)
        self.several[routes.links[other]] = True


def _exchanged(one: Round) -> float:
    """The largest message between two ranks that send to each other in this round, of m; 0 for none."""
    n = int(max(one.source.max(), one.target.max())) + 1
    if len(one) <= n and np.bincount(one.source).max() == 1:
        partner = np.full(n, -1, dtype=np.int64)
        partner[one.source] = one.target
        both = partner[one.target] == one.source
    else:
        both = np.isin(one.source * n + one.target, one.target * n + one.source)
    return float(one.fraction[both].max(initial=0.0))


def _places(source: Ints, target: Ints) -> Ints:
    """The larger of each message's places among those of its sender and of its receiver, from 0."""
    return np.maximum(_place(source), _place(target))


def _place(ranks: Ints) -> Ints:
    if np.bincount(ranks).max() == 1:
        return np.zeros(len(ranks), dtype=np.int64)
    order = np.argsort(ranks, kind="stable")
    ordered = ranks[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    positions = np.arange(len(ranks), dtype=np.int64)
    places = np.empty(len(ranks), dtype=np.int64)
    places[order] = positions - np.maximum.accumulate(np.where(new, positions, 0))
    return places


def _worst_classes(latency_s: Floats, place: Floats, fraction: Floats) -> list[tuple[float, float, float]]:
    """The messages that no other exceeds in path latency, place and bytes at once."""
    if place.min() == place.max() and fraction.min() == fraction.max():
        return [(float(latency_s.max()), float(place[0]), float(fraction[0]))]
    distinct = np.unique(np.stack([latency_s, place, fraction], axis=1), axis=0)
    kept: list[tuple[float, float, float]] = []
    for row in distinct[::-1]:  # falling latency
        if not any(row[1] <= other[1] and row[2] <= other[2] for other in kept):
            kept.append((float(row[0]), float(row[1]), float(row[2])))
    return kept


def _assemble(weights: dict[_Coefficients, float], num_ranks: int, *, sampled: bool) -> Price:
    rows = list(weights)

    def column(name: str) -> Floats:
        return np.array([getattr(row, name) for row in rows], dtype=np.float64)

    table = np.array([entry for row in rows for entry in row.classes], dtype=np.float64).reshape(-1, 3)
    return Price(
        num_ranks=num_ranks,
        repeats=np.array([weights[row] for row in rows], dtype=np.float64),
        load_s_per_byte=column("load_s_per_byte"),
        shared_load_s_per_byte=column("shared_load_s_per_byte"),
        exchanged=column("exchanged"),
        reduced=column("reduced"),
        copied=column("copied"),
        messages=column("messages"),
        class_offsets=np.concatenate([[0], np.cumsum([len(row.classes) for row in rows])]).astype(np.int64),
        latency_s=table[:, 0],
        place=table[:, 1],
        fraction=table[:, 2],
        sampled=sampled,
    )
