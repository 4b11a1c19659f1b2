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
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.network.algorithms_steps import StepSchedule
from perfmodel.network.round_loads import Coefficients, Part, RankNetwork, coefficients, window_coefficients
from perfmodel.network.routes import Transport
from perfmodel.network.schedule import Schedule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EXACT_MESSAGES = 2_500_000
SAMPLED_SHIFTS = 256


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


def price(
    schedule: Schedule, cluster: RankNetwork, group: ArrayLike | None = None, *, exact_messages: int = EXACT_MESSAGES
) -> Price:
    """Coefficients of a schedule whose rank r is rank group[r] of the cluster (default: its first ranks).

    exact_messages: schedules of more messages are sampled where they can be.
    """
    ranks = np.arange(schedule.num_ranks) if group is None else np.asarray(group)
    return price_together(schedule, cluster, [ranks], exact_messages=exact_messages)


_PRICES: WeakKeyDictionary[RankNetwork, dict[tuple[Schedule, bytes, int], Price]] = WeakKeyDictionary()


def price_together(
    schedule: Schedule, cluster: RankNetwork, groups: Sequence[ArrayLike], *, exact_messages: int = EXACT_MESSAGES
) -> Price:
    """Coefficients where several disjoint groups of one size do the same at once and share links.

    Kept per cluster, schedule and groups as long as the cluster lives.
    """
    members = [np.asarray(group, dtype=np.int64) for group in groups]
    kept = _PRICES.setdefault(cluster, {})
    key = (schedule, b"|".join(ranks.tobytes() for ranks in members), exact_messages)
    if key not in kept:
        kept[key] = _priced(schedule, cluster, members, exact_messages)
    return kept[key]


def _priced(schedule: Schedule, cluster: RankNetwork, members: Sequence[Ints], exact_messages: int) -> Price:
    everyone = np.concatenate(members)
    for ranks in members:
        assert len(ranks) == schedule.num_ranks, f"group of {len(ranks)} for {schedule.num_ranks} ranks"
    assert len(np.unique(everyone)) == len(everyone), "a rank is in a group twice"
    assert 0 <= everyone.min() <= everyone.max() < cluster.num_ranks, f"rank {everyone.max()} of {cluster.num_ranks}"
    sampled = _is_sampled(schedule, len(members), exact_messages)
    if sampled:
        rows = _of_sampled_rounds(schedule, cluster, members)
    else:
        rows = coefficients(((float(one.repeat), one) for one in schedule.rounds()), cluster, members)
    weights: dict[Coefficients, float] = {}
    for weight, row in rows:
        weights[row] = weights.get(row, 0.0) + weight
    return _assemble(weights, schedule.num_ranks, sampled=sampled)


def _is_sampled(schedule: Schedule, num_groups: int, exact_messages: int) -> bool:
    if not isinstance(schedule, StepSchedule) or schedule.make_shift is None:
        return False
    return num_groups * schedule.num_ranks * (schedule.num_ranks - 1) > exact_messages


def _of_sampled_rounds(
    schedule: Schedule, cluster: RankNetwork, members: Sequence[Ints]
) -> Iterator[tuple[float, Coefficients]]:
    """(how often, coefficients) of some of the rounds, from some of their exchanges."""
    assert isinstance(schedule, StepSchedule)
    assert schedule.make_shift is not None
    window, last = schedule.window, schedule.num_ranks - 1
    rounds, round_weights = strata(schedule.num_rounds, max(16, SAMPLED_SHIFTS // window))
    first = rounds * window + 1
    if window == 1:
        shifts = ((float(w), schedule.make_shift(int(s)).round()) for w, s in zip(round_weights, first, strict=True))
        yield from coefficients(shifts, cluster, members)
        return
    for begin, weight in zip(first.tolist(), round_weights.tolist(), strict=True):
        places, part_weights = strata(min(window, last + 1 - begin), SAMPLED_SHIFTS)
        parts = [
            Part(schedule.make_shift(begin + place).round(), part_weight, place)
            for place, part_weight in zip(places.tolist(), part_weights.tolist(), strict=True)
        ]
        row = window_coefficients(parts, cluster, members, exchanges=window >= last > 1)
        if row is not None:
            yield weight, row


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


def _assemble(weights: dict[Coefficients, float], num_ranks: int, *, sampled: bool) -> Price:
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
