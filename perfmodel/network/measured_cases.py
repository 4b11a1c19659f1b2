"""Measurements grouped by what was run, each group priced once: what fitting and judging evaluate.

It owns the whole time of a measured call: the schedule's price, and what its implementation does in memory beside it.
It does not own constants (``fit``) nor any verdict (``validation``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.closed_form import Price, price
from perfmodel.network.measured import Measurement
from perfmodel.network.measured_names import Implementation, implementation_of
from perfmodel.network.measured_price import price_with_free_ports
from perfmodel.network.measured_schedules import MAKERS
from perfmodel.network.measured_systems import cluster_of, ports_block, with_neighbours
from perfmodel.network.routes import Transport
from perfmodel.network.schedule import Schedule

Floats = NDArray[np.float64]
Key = tuple[object, ...]
ON_HOST_MEMORY = ("mpi", "crab")  # software stacks whose ranks share a host's memory
QUADRATIC = ("bine_blocks", "sparbit")
MOST_RANKS_QUADRATIC = 1024


@dataclass(frozen=True, kw_only=True)
class Case:
    """One implementation on one job: its measurements (different sizes) and the price of its schedule there."""

    measurements: tuple[Measurement, ...]
    implementation: Implementation
    price: Price

    @property
    def measured_s(self) -> Floats:
        """Seconds [S]."""
        return np.array([one.measured_s for one in self.measurements])

    def predicted_s(self, transport: Transport) -> Floats:
        """Seconds [S]: the schedule, the copies beside it, and the pages of its work buffers."""
        first, way = self.measurements[0], self.implementation
        if first.stack in ON_HOST_MEMORY:
            transport = with_neighbours(transport, first)
        sizes = np.array([one.size_bytes for one in self.measurements])
        memory_s = transport.copy_s(way.copied * sizes, sizes) + transport.first_touch_s(
            [part * sizes for part in way.work_buffers(first.num_ranks)]
        )
        extra_s = way.extra_messages * transport.software_s(sizes / first.num_ranks)
        return np.asarray(self.price.time_s(sizes, transport) + memory_s + extra_s)


def make_cases(
    measurements: Iterable[Measurement], progress: Callable[[int], None] | None = None
) -> tuple[list[Case], dict[Measurement, str]]:
    """(cases, measurement -> why it is not judged). progress: called with the number of cases, then once per case
    with 0."""
    groups: dict[Key, list[Measurement]] = {}
    ways: dict[Key, Implementation] = {}
    left_out: dict[Measurement, str] = {}
    for one in measurements:
        way = implementation_of(one)
        if isinstance(way, str):
            left_out[one] = way
            continue
        key: Key = (*_job(one), one.name, way.algorithm, _options(way), one.file, one.notes)
        groups.setdefault(key, []).append(one)
        ways[key] = way
    if progress is not None:
        progress(len(groups))
    cases: list[Case] = []
    prices: dict[Key, Price | str] = {}
    for key, members in groups.items():
        way = ways[key]
        job = (*_job(members[0]), way.algorithm, _options(way))
        if job not in prices:
            prices[job] = _priced(members[0], way)
        found = prices[job]
        if isinstance(found, str):
            left_out.update(dict.fromkeys(members, found))
        else:
            cases.append(Case(measurements=tuple(members), implementation=way, price=found))
        if progress is not None:
            progress(0)
    return cases, left_out


def _job(one: Measurement) -> Key:
    return one.system, one.stack, one.collective, one.num_nodes, one.ranks_per_node, one.torus


def _options(way: Implementation) -> Key:
    return tuple(sorted(way.options.items()))


def _priced(one: Measurement, way: Implementation) -> Price | str:
    """The price, or why there is none."""
    if way.algorithm in QUADRATIC and one.num_ranks > MOST_RANKS_QUADRATIC:
        return f"one message per block among more than {MOST_RANKS_QUADRATIC:,} ranks: too many to price"
    schedule: Schedule
    try:
        options = {"ranks_per_node": one.ranks_per_node} | dict(way.options)
        if way.algorithm in MAKERS:
            schedule = MAKERS[way.algorithm](one.num_ranks, **way.options)
        else:
            schedule = make_schedule(one.collective, way.algorithm, one.num_ranks, **options)
        found = (price if ports_block(one) else price_with_free_ports)(schedule, cluster_of(one))
        return _without_false_exchanges(found)
    except UserError as error:
        return f"cannot be built: {error}"


def _without_false_exchanges(found: Price) -> Price:
    """Exchanges only where ranks have one message under way: several keep both directions of a link busy (measured on
    InfiniBand: blocks sent one by one to the same partner run at the full rate)."""
    return replace(found, exchanged=np.where(found.messages > 1, 0.0, found.exchanged))


def predict(cases: Sequence[Case], transport: Transport) -> Floats:
    """Seconds of all measurements of the cases, one after the other."""
    return np.concatenate([case.predicted_s(transport) for case in cases]) if cases else np.zeros(0)


def measured(cases: Sequence[Case]) -> Floats:
    """Measured seconds in the order of ``predict``."""
    return np.concatenate([case.measured_s for case in cases]) if cases else np.zeros(0)
