"""What a search works out once per job: packed batches, halos, routings, prices, what ranks keep.

It owns the keys by which these are kept; what candidates make of them is in ``search_parts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.layout import AxisName, Layout
from janus.placement import STRATEGIES
from perfmodel.dataset import DataCounts, sample_batches
from perfmodel.machine import Machine, Rates
from perfmodel.network.noise import Noise
from perfmodel.prices import Prices, group_size, prices_for
from perfmodel.search_rows import GroupRows, HaloTable, Routings, SharedData, halo_table
from perfmodel.step_parts import (
    gradient_stages,
)
from perfmodel.step_time import filling, overlap_of
from perfmodel.step_work import RunSettings
from perfmodel.traffic_parameters import kept_pieces, sharded_units

Floats = NDArray[np.float64]

MOST_NODES = 512  # whose collectives are priced as they are in a search; finalists' always are


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all candidates share. batch_of: structures of a global batch by world size; num_batches: sampled for the
    search; threads: of a rank; clips, averages: as in ``RunSettings``.
    """

    model: ModelConfig
    machine: Machine
    data: DataCounts
    batch_of: Callable[[int], int]
    dtype: str = "float32"
    seed: int = 0
    num_batches: int = 4
    threads: int = 1
    clips: bool = True
    averages: bool = True
    noise: Noise | None = None


@dataclass
class _Filling:
    """What a number of ranks means on the machine."""

    rates: Rates
    turns: float
    hidden: float
    overlap: float


@dataclass(eq=False)
class Tables:
    """Everything that is worked out once per job: packed batches, halos, routings, prices. Grows as it is asked."""

    job: Job
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._shared: dict[int, SharedData] = {}
        self._fillings: dict[int, _Filling] = {}
        self._prices: dict[tuple[str, int], Prices] = {}
        self._halos: HaloTable | None = None
        self._rows: dict[tuple[int, int, int, int | None], GroupRows] = {}
        self._units: dict[tuple[int, int], dict[int, int]] = {}
        self._stages: dict[tuple[int, int, int], list[tuple[AxisName, float, int]]] = {}
        self._kept: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.routings = Routings(self.job.model, self.job.data)

    def note(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            if sentence not in self.notes:
                self.notes.append(sentence)

    def shared(self, world_size: int) -> SharedData:
        """The sampled batches of a number of ranks."""
        size = self.job.batch_of(world_size)
        if size not in self._shared:
            batches = sample_batches(self.job.data.work, size, self.job.num_batches, self.job.seed)
            self._shared[size] = SharedData(self.job.data, batches)
        return self._shared[size]

    def rows(self, world_size: int, data_degree: int, coupled: int, cap: int | None) -> GroupRows:
        """Rows of the groups; coupled: data groups that wait for each other."""
        key = (self.job.batch_of(world_size), data_degree, coupled, cap)
        if key not in self._rows:
            self._rows[key] = self.shared(world_size).rows(data_degree, coupled, cap)
        return self._rows[key]

    def halos(self, most_parts: int) -> HaloTable:
        """Halo ratios by parts per structure."""
        if self._halos is None:
            self._halos = halo_table(self.job.data, self.job.model, most_parts)
        return self._halos

    def filling(self, world_size: int) -> _Filling:
        """Rates, sharing of cores, hidden loader and overlap."""
        if world_size not in self._fillings:
            rates, turns, hidden, notes = filling(self.job.machine, world_size, self.job.threads)
            overlap, assumed = overlap_of(self.job.machine, rates, turns, world_size)
            self.note([*notes, *assumed])
            self._fillings[world_size] = _Filling(rates, turns, hidden, overlap)
        return self._fillings[world_size]

    def prices(self, transport: str, world_size: int) -> Prices:
        """Prices of the axes' collectives; of a fabric they are kept for all numbers of ranks."""
        rates = self.filling(world_size).rates
        key = (transport, rates.ranks if self.job.machine.is_calibrated_host else 0)
        if key not in self._prices:
            self._prices[key] = prices_for(self.job.machine, rates=rates, transport=transport)
        return self._prices[key]

    def seconds(self, transport: str, layout: Layout, axis: AxisName, collective: str, sizes: Floats) -> Floats:
        """Seconds of collectives of each size; sums over the copies of very many nodes are those of fewer, and longer
        by the latency of the further halvings.
        """
        prices = self.prices(transport, layout.world_size)
        per_node = self.job.machine.devices_per_node
        fewer = layout
        while fewer.world_size > MOST_NODES * per_node and fewer.replicas % 2 == 0 and fewer.replicas > 2:
            fewer = replace(fewer, replicas=fewer.replicas // 2)
        if self.job.machine.is_calibrated_host or fewer is layout:
            return prices.seconds(layout, axis, collective, sizes)
        seconds = prices.seconds(fewer, axis, collective, sizes)
        members, before = group_size(layout, axis), group_size(fewer, axis)
        if members == before:
            return seconds
        return np.asarray(seconds + seconds.min() * (math.log2(members) / math.log2(max(before, 2)) - 1))

    def units(self, shard: int, expert: int) -> dict[int, int]:
        """``sharded_units`` by the degrees that decide them."""
        key = (shard, min(expert, 2))
        if key not in self._units:
            self._units[key] = sharded_units(self.job.model, _smallest_layout(*key))
        return self._units[key]

    def stages(self, shard: int, expert: int, strategy: int) -> list[tuple[AxisName, float, int]]:
        """``gradient_stages`` by what decides them."""
        key = (shard, expert, strategy)
        if key not in self._stages:
            settings = RunSettings(dtype=self.job.dtype, expert_strategy=STRATEGIES[strategy])
            self._stages[key] = gradient_stages(self.job.model, _smallest_layout(shard, expert), settings)
        return self._stages[key]

    def kept(self, shard: int, expert: int, strategy: int) -> tuple[int, int]:
        """Numbers and tensors that the first rank keeps: it has the longer part where parts are uneven."""
        key = (shard, expert, strategy)
        if key not in self._kept:
            layout = _smallest_layout(shard, expert)
            self._kept[key] = kept_pieces(self.job.model, layout, 0, STRATEGIES[strategy])
        return self._kept[key]

    def priced_notes(self) -> list[str]:
        return [note for prices in self._prices.values() for note in prices.notes]


def _smallest_layout(shard: int, expert: int) -> Layout:
    """A layout with these degrees."""
    return Layout(unit=math.lcm(shard, expert), shard_degree=shard, expert_degree=expert)
