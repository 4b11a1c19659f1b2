"""Time of a schedule on a cluster by closed form: alpha-beta-gamma with the links' contention.

It owns the formula and its coefficients, computed once per schedule, cluster and group and then evaluated for many
sizes at once. It does not own schedules, routes or the constants of a library (``Transport``).

A round takes, with m bytes, messages i of f_i m bytes, links l of capacity C_l:

    max_i (overhead + latency + path_i + gap k_i [+ rendezvous where f_i m > eager])
    + m max_l (sum_i f_i share_il) / (C_l link_fraction)
    + reduction_s(m max_r (sum of what rank r reduces), m) + m copied / copy rate

k_i: the larger of the message's places in its sender's and its receiver's order, from 0. Rounds add up. Where messages
do not share links this is the time that discrete events give; where they do, it treats a round as if all ranks entered
it together and as if the fullest link were busy from the first byte to the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.network.algorithms_steps import StepSchedule
from perfmodel.network.routes import Routes, Transport
from perfmodel.network.schedule import Round, Schedule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SAMPLED_ROUNDS = 256  # schedules with more different rounds than EXACT_ROUNDS are sampled at about so many
EXACT_ROUNDS = 1536


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

    repeats: float64 [R], how often each round occurs (fractional where sampled). load_s_per_byte: [R], m times this is
    the time of the fullest link at full capacity. reduced, copied: [R], of m, by one rank. messages: [R], the most
    that one rank sends. class_offsets: int64 [R + 1]; latency_s, place, fraction: [K], path latency, place in the
    order and bytes (of m) of the messages of a round that can be the last to start (none is exceeded in all three).
    sampled: whether rounds were sampled.
    """

    repeats: Floats
    load_s_per_byte: Floats
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
        """Seconds for every size [S] (m in bytes, see ``schedule``). 0 bytes take 0 s."""
        sizes = np.asarray(sizes_bytes, dtype=np.float64)
        if not len(self.repeats):
            return np.zeros(sizes.shape)
        flat = sizes.reshape(1, -1)
        per_byte_s = (
            self.load_s_per_byte / transport.link_fraction + self.copied / transport.copy_bytes_per_s
        ) @ self.repeats
        reduction_s = transport.reduction_s(float(self.reduced @ self.repeats) * flat, flat)
        total_s = self._start_s(flat, transport) + per_byte_s * flat + reduction_s
        return np.where(flat > 0, total_s, 0.0).reshape(sizes.shape)

    def _start_s(self, sizes: Floats, transport: Transport) -> Floats:
        """Seconds of all rounds before bytes flow; sizes [1, S]."""
        start = (self.latency_s + transport.gap_s * self.place)[:, None]
        if transport.rendezvous_s and np.isfinite(transport.eager_bytes):
            start = start + transport.rendezvous_s * (self.fraction[:, None] * sizes > transport.eager_bytes)
        worst = np.maximum.reduceat(start, self.class_offsets[:-1], axis=0) if len(start) else start
        fixed_s = (transport.overhead_s + transport.latency_s) * self.num_rounds
        return np.asarray(fixed_s + (self.repeats @ worst)[None, :])


def _places(ranks: Ints) -> Ints:
    """Place of each message among those of the same rank, in order."""
    order = np.argsort(ranks, kind="stable")
    ordered = ranks[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    positions = np.arange(len(ranks), dtype=np.int64)
    begin = np.maximum.accumulate(np.where(new, positions, 0))
    places = np.empty(len(ranks), dtype=np.int64)
    places[order] = positions - begin
    return places


def _worst_classes(latency_s: Floats, place: Ints, fraction: Floats) -> list[tuple[float, float, float]]:
    """The messages that no other exceeds in path latency, place and bytes at once."""
    distinct = np.unique(np.stack([latency_s, place.astype(np.float64), fraction], axis=1), axis=0)
    kept: list[tuple[float, float, float]] = []
    for row in distinct[::-1]:  # falling latency
        if not any(row[1] <= other[1] and row[2] <= other[2] for other in kept):
            kept.append((float(row[0]), float(row[1]), float(row[2])))
    return kept


@dataclass(frozen=True)
class _Coefficients:
    """One round's numbers, hashable so that equal rounds merge."""

    load_s_per_byte: float
    reduced: float
    copied: float
    messages: float
    classes: tuple[tuple[float, float, float], ...]


def _round_coefficients(one: Round, cluster: RankNetwork, groups: Sequence[Ints]) -> _Coefficients:
    source = np.concatenate([group[one.source] for group in groups])
    target = np.concatenate([group[one.target] for group in groups])
    fraction = np.tile(one.fraction, len(groups))
    capacity = cluster.capacity_bytes_per_s
    routes = cluster.routes(source, target)
    loads = routes.link_bytes(fraction, len(capacity))
    reduced = np.bincount(one.target, weights=one.reduced).max()
    place = np.maximum(_places(source), _places(target))
    return _Coefficients(
        load_s_per_byte=float((loads / capacity).max(initial=0.0)),
        reduced=float(reduced),
        copied=float(one.copied),
        messages=float(np.bincount(one.source).max()),
        classes=tuple(_worst_classes(routes.latency_s, place, fraction)),
    )


def _assemble(weights: dict[_Coefficients, float], *, sampled: bool) -> Price:
    rows = list(weights)
    classes = [entry for row in rows for entry in row.classes]
    table = np.array(classes, dtype=np.float64).reshape(-1, 3)
    return Price(
        repeats=np.array([weights[row] for row in rows], dtype=np.float64),
        load_s_per_byte=np.array([row.load_s_per_byte for row in rows], dtype=np.float64),
        reduced=np.array([row.reduced for row in rows], dtype=np.float64),
        copied=np.array([row.copied for row in rows], dtype=np.float64),
        messages=np.array([row.messages for row in rows], dtype=np.float64),
        class_offsets=np.concatenate([[0], np.cumsum([len(row.classes) for row in rows])]).astype(np.int64),
        latency_s=table[:, 0],
        place=table[:, 1],
        fraction=table[:, 2],
        sampled=sampled,
    )


def price(schedule: Schedule, cluster: RankNetwork, group: ArrayLike | None = None) -> Price:
    """Coefficients of a schedule whose rank r is rank group[r] of the cluster (default: its first ranks)."""
    ranks = np.arange(schedule.num_ranks) if group is None else np.asarray(group)
    return price_together(schedule, cluster, [ranks])


def price_together(schedule: Schedule, cluster: RankNetwork, groups: Sequence[ArrayLike]) -> Price:
    """Coefficients where several disjoint groups of one size do the same at once and share links."""
    members = [np.asarray(group, dtype=np.int64) for group in groups]
    for ranks in members:
        assert len(ranks) == schedule.num_ranks, f"group of {len(ranks)} for {schedule.num_ranks} ranks"
        assert ranks.max() < cluster.num_ranks, f"rank {ranks.max()} of {cluster.num_ranks}"
    weights: dict[_Coefficients, float] = {}
    for weight, one in _weighted_rounds(schedule):
        if len(one):
            coefficients = _round_coefficients(one, cluster, members)
            weights[coefficients] = weights.get(coefficients, 0.0) + weight
    return _assemble(weights, sampled=_is_sampled(schedule))


def _is_sampled(schedule: Schedule) -> bool:
    return isinstance(schedule, StepSchedule) and schedule.make_step is not None and schedule.num_rounds > EXACT_ROUNDS


def _weighted_rounds(schedule: Schedule) -> Iterator[tuple[float, Round]]:
    """(how often, round): all of them, or a sample where they are many and can be made one by one."""
    if isinstance(schedule, StepSchedule) and _is_sampled(schedule):
        for index, weight in zip(*sampled_rounds(schedule.num_rounds), strict=True):
            yield float(weight), schedule.round_at(int(index))
    else:
        for one in schedule.rounds():
            yield float(one.repeat), one


def sampled_rounds(num_rounds: int, num_samples: int = SAMPLED_ROUNDS) -> tuple[Ints, Floats]:
    """Rounds to look at and how many each stands for: strata of equal length, one round of each.

    The place within the stratum follows the golden ratio, so that no period of the fabric is met in step.
    """
    edges = np.linspace(0, num_rounds, num_samples + 1)
    places = (np.arange(num_samples) * 0.6180339887498949) % 1.0
    indices = (edges[:-1] + places * np.diff(edges)).astype(np.int64)
    return np.minimum(indices, num_rounds - 1), np.diff(edges)
