"""The parts of an FS-3D step as straight lines in inverse rates and in the work: thousands of jobs from a few.

It owns that decomposition and its cache. It does not own the parts themselves: ``step_work``, ``step_parts`` and
``unit_prices`` make them, once for every basis; nothing of a step is written down again here.

Every second of ``StepParts`` is a sum of FLOPs, bytes and calls over rates, and of latencies and bytes of messages over
those of links (``BASES``); and it is affine in the configurations of a unit and in its micro-batches. So

    seconds = sum over bases of scale x (micro-batches x fixed + configurations x slope)

with scale 1 / (FLOP/s), 1 / (B/s), seconds per call, or what a link is slower than the machine file's. Sums of
gradients are read off a table over the number of units and the taper. Held to ``step_time.predict`` by tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus.config import ModelConfig
from janus.layout import AxisName, Layout
from perfmodel.full_machine import unit_layout
from perfmodel.machine import Machine, Peak
from perfmodel.mean_configurations import mean_configurations
from perfmodel.paper_slowest import Grid
from perfmodel.prices import Prices
from perfmodel.step_parts import Circumstances, StepParts, parts_of
from perfmodel.step_work import RunSettings, StepWork, step_work
from perfmodel.unit_prices import ALL_REDUCES, UnitPrices

Floats = NDArray[np.float64]

BASES = ("fixed", "flops", "bytes", "calls", "latency", "inside", "fabric")
PER_STEP = ("root_gather_s", "first_gather_s", "optimizer_s", "outside_s")  # whatever the number of micro-batches
BETWEEN_UNITS = ("sums_s", "last_sum_s", "control_s", "norm_s")
OF_MESSAGES = ("root_gather_s", "first_gather_s", "gathers_s", "scatters_s", "last_scatter_s", "halos_s", "exchanges_s",
               "group_sums_s", "composition_s")  # fmt: skip
CONSTANT = ("plan_s",)  # whatever the rates
SUM_SHARES = ("sums_cover", "pipelined")
SHARES = ("gathers_cover", "scatters_cover", "halos_cover", "exchanges_cover", "loader_hidden", "turns")
FEW, MANY = 2, 6  # configurations of a unit between which the line is drawn
UNIT = 8
FULL_OVER = (512, 64, 8, 1)  # units in the table of sums: the full machine over these
TAPERS = (1.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What decides the work of a step beside its size. planned: hot experts are copied as the planner says."""

    model: ModelConfig
    recompute: bool = False
    strategy: str = "tokens"
    planned: bool = True
    compressed: bool = True

    def settings(self) -> RunSettings:
        return RunSettings(
            recompute=self.recompute, expert_strategy="tokens" if self.strategy == "tokens" else "weights",
            expert_replication=self.planned, expert_compression=self.compressed, clips=False, averages=False,
        )  # fmt: skip


@lru_cache(maxsize=256)
def unit_work(work: Work, number: int) -> StepWork:
    """One unit's step on ``number`` alike configurations in one micro-batch; the same on every machine."""
    data = mean_configurations(number)
    return step_work(work.model, data, range(number), unit_layout(UNIT, 1), work.settings())


class _OnePart(Prices):
    """One part of another's prices: around each size they are taken as latency + size x seconds per byte.

    part: "latency", or "inside" or "fabric" for the bytes of axes inside nodes and of all others; "none": nothing.
    """

    def __init__(self, prices: Prices, part: str, axes_inside: tuple[str, ...]) -> None:
        super().__init__()
        self._whole, self._part, self._inside = prices, part, axes_inside

    def _seconds(self, layout: Layout, axis: AxisName, collective: str, sizes: Floats) -> Floats:
        place = "inside" if axis in self._inside else "fabric"
        if self._part not in ("latency", place):
            return np.zeros_like(sizes)
        around = [self._whole.seconds(layout, axis, collective, sizes * factor) for factor in (0.5, 1.5)]
        bytes_s = around[1] - around[0]
        if self._part == "latency":
            return np.asarray(np.maximum((around[0] + around[1]) / 2 - bytes_s, 0.0))
        return np.asarray(bytes_s)


def of_cpus(machine: Machine, cpus_per_node: int) -> Machine:
    """The machine with a CPU for a device where a device was one of its NUMA domains: all rates of so many domains."""
    domains = machine.devices_per_node // cpus_per_node
    network = machine.network
    rates = tuple(
        replace(one, ranks=cpus_per_node, threads=one.threads * domains, **{
            entry.name: getattr(one, entry.name) * domains for entry in fields(one)
            if entry.name.endswith("_per_s") and getattr(one, entry.name) is not None
        })
        for one in machine.rates
    )  # fmt: skip
    peaks = {name: Peak(flops_per_s=one.flops_per_s * domains, dtype=one.dtype, name=one.name, source=one.source)
             for name, one in machine.peaks.items()}  # fmt: skip
    return replace(
        machine, devices_per_node=cpus_per_node, rates=rates, peaks=peaks,
        memory_bytes_per_s=machine.memory_bytes_per_s * domains,
        network=replace(network, node_bytes_per_s=network.nic_bytes_per_s),
    )  # fmt: skip


@dataclass(frozen=True)
class _Lines:
    """fixed, slope [bases, N] of the seconds in ``_names``; shares [M] of ``SHARES``."""

    fixed: Floats
    slope: Floats
    shares: Floats


class UnitParts:
    """Parts of steps on one machine. axes in a unit are inside nodes where a unit fits there."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.full_units = machine.nodes * machine.devices_per_node // UNIT
        inside: tuple[str, ...] = ("shard", "graph", "expert", "unit")
        self._axes_inside = inside if machine.devices_per_node % UNIT == 0 else ()
        self._prices: dict[tuple[float, tuple[str, ...]], UnitPrices] = {}
        self._lines: dict[Work, _Lines] = {}
        self._sums: dict[tuple[Work, tuple[str, ...]], tuple[Grid, Floats]] = {}

    def parts(
        self, work: Work, scales: Floats, *, each: Floats, micro_batches: Floats, size: Floats, units: Floats,
        taper: Floats, all_reduces: tuple[str, ...],
    ) -> StepParts:  # fmt: skip
        """Parts of C jobs [C]; factors of the slowest are left to the caller (``slowest_s`` is the mean unit's).

        scales [C, bases]; each: configurations per unit; size: of a configuration over the mean; units: of the job.
        """
        lines = self._of(work)
        loaded = scales * (each * size)[:, None]
        flat = (scales * micro_batches[:, None]) @ lines.fixed + loaded @ lines.slope
        once = scales @ lines.fixed
        values: dict[str, Floats] = {}
        for name, start, stop, shape in _layout_of_fields():
            block = once[:, start:stop] + loaded @ lines.slope[:, start:stop] if name in PER_STEP else (
                flat[:, start:stop]
            )  # fmt: skip
            values[name] = np.maximum(block, 0.0).reshape((len(scales), *shape))
        values |= {name: np.broadcast_to(share, (len(scales), *share.shape))
                   for name, share in _split(lines.shares, SHARES).items()}  # fmt: skip
        values |= self._between(work, scales, units, taper, all_reduces)
        values["sums_cover"] = values["sums_cover"] / np.maximum(micro_batches, 1.0)
        return StepParts(**values)

    def prices(self, taper: float = 1.0, all_reduces: tuple[str, ...] = ALL_REDUCES) -> UnitPrices:
        """Prices on the machine with this taper of its leaf switches."""
        key = (taper, all_reduces)
        if key not in self._prices:
            fabric = self.machine.fabric
            assert fabric is not None, f"{self.machine.name} has no fabric"
            tapered = replace(fabric, numbers={**fabric.numbers, "taper": taper}) if taper != 1 else fabric
            self._prices[key] = UnitPrices(replace(self.machine, fabric=tapered), all_reduces=all_reduces)
        return self._prices[key]

    def _circumstances(self, basis: str, part: str, prices: Prices) -> Circumstances:
        """Rates of which only one basis costs anything, at one second per unit of it, and one part of the prices."""
        given = self.machine.require_rates()[0]
        no_cost: dict[str, Any] = {
            entry.name: math.inf for entry in fields(given)
            if entry.name.endswith("_per_s") and getattr(given, entry.name) is not None
        }  # fmt: skip
        free = replace(given, **no_cost, op_s=0.0, batch_s=0.0, optimizer_tensor_s=0.0, data_structure_s=0.0,
                       data_edge_s=0.0, data_angle_s=0.0, step_s=None)  # fmt: skip
        plain = given.plain_bytes_per_s
        changed: dict[str, dict[str, Any]] = {
            "fixed": {"batch_s": given.batch_s, "optimizer_tensor_s": given.optimizer_tensor_s,
                      "data_structure_s": given.data_structure_s, "data_edge_s": given.data_edge_s,
                      "data_angle_s": given.data_angle_s},
            "flops": {"matmul_flops_per_s": 1.0},
            "bytes": {"matmul_bytes_per_s": given.matmul_bytes_per_s / plain, "plain_bytes_per_s": 1.0,
                      "fresh_bytes_per_s": given.fresh_bytes_per_s / plain,
                      "optimizer_bytes_per_s": given.optimizer_bytes_per_s / plain},
            "calls": {"op_s": 1.0},
        }  # fmt: skip
        one = _OnePart(prices, part, self._axes_inside)
        return Circumstances(rates=replace(free, **changed[basis]), prices=one, control=one)

    def _of(self, work: Work) -> _Lines:
        if work not in self._lines:
            few, many = self._seconds(work, FEW), self._seconds(work, MANY)
            slope = (many - few) / (MANY - FEW)
            rates = self.machine.require_rates()[0]
            prices = self.prices()
            shares, _, _ = parts_of(unit_work(work, FEW), Circumstances(rates=rates, prices=prices, control=prices))
            self._lines[work] = _Lines(
                fixed=few - FEW * slope, slope=slope,
                shares=np.concatenate([getattr(shares, name)[0].ravel() for name in SHARES]),
            )  # fmt: skip
        return self._lines[work]

    def _seconds(self, work: Work, number: int) -> Floats:
        """[bases, N] of one unit. Seconds of messages and all others are different fields: two bases at a time."""
        of_messages = np.concatenate([
            np.full(stop - start, name in OF_MESSAGES) for name, start, stop, _ in _layout_of_fields()
        ])  # fmt: skip
        constant = np.concatenate([
            np.full(stop - start, name in CONSTANT) for name, start, stop, _ in _layout_of_fields()
        ])  # fmt: skip
        result = np.zeros((len(BASES), len(of_messages)))
        for basis, part in (("fixed", "none"), ("flops", "latency"), ("bytes", "inside"), ("calls", "fabric")):
            flat = self._flat(unit_work(work, number), basis, part, _names(), self.prices())
            own = ~of_messages if basis == "fixed" else ~of_messages & ~constant
            result[BASES.index(basis)] += np.where(own, flat, 0.0)
            if part != "none":
                result[BASES.index(part)] += np.where(of_messages, flat, 0.0)
        return result

    def _flat(self, work: StepWork, basis: str, part: str, names: tuple[str, ...], prices: Prices) -> Floats:
        parts, _, _ = parts_of(work, self._circumstances(basis, part, prices))
        return np.concatenate([getattr(parts, name)[0].ravel() for name in names])

    def _between(
        self, work: Work, scales: Floats, units: Floats, taper: Floats, all_reduces: tuple[str, ...]
    ) -> dict[str, Floats]:
        """Sums of gradients of C jobs."""
        key = (Work(model=work.model, strategy=work.strategy), all_reduces)
        if key not in self._sums:
            self._sums[key] = self._table_of_sums(*key)
        grid, shares = self._sums[key]
        table = grid(np.log(units), taper)  # [C, latency and fabric, N]
        chosen = [BASES.index("latency"), BASES.index("fabric")]
        seconds = np.einsum("cb,cbn->cn", scales[:, chosen], table)
        values = _split(seconds, BETWEEN_UNITS)
        return values | {name: np.broadcast_to(value, (len(scales),)).copy()
                         for name, value in zip(SUM_SHARES, shares, strict=True)}  # fmt: skip

    def _table_of_sums(self, work: Work, all_reduces: tuple[str, ...]) -> tuple[Grid, Floats]:
        one = unit_work(work, FEW)
        numbers = [max(2, self.full_units // over) for over in FULL_OVER]
        rows, shares = [], np.zeros(2)
        for units in numbers:
            job = replace(one, layout=unit_layout(UNIT, units), group_work=np.full(units, float(one.group_work[0])))
            by_taper = []
            for taper in TAPERS:
                prices = self.prices(taper, all_reduces)
                both = [self._flat(job, "fixed", part, (*BETWEEN_UNITS, *SUM_SHARES), prices)
                        for part in ("latency", "fabric")]  # fmt: skip
                size = len(both[0]) - len(SUM_SHARES)
                shares = both[0][size:]
                by_taper.append([flat[:size] for flat in both])
            rows.append(by_taper)
        return Grid([np.log(numbers), np.array(TAPERS)], np.array(rows), beyond=(0,)), shares


def _names() -> tuple[str, ...]:
    """Fields of StepParts that are seconds inside a unit."""
    return tuple(entry.name for entry in fields(StepParts)
                 if entry.name.endswith("_s") and entry.name not in BETWEEN_UNITS)  # fmt: skip


def _shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every field of StepParts, without the candidates."""
    from perfmodel.compute_time import COMPUTE_CAUSES
    from perfmodel.products import PHASES

    four = (len(PHASES),)
    wide = {"compute_s": (*four, len(COMPUTE_CAUSES)), "unit_s": four, "slowest_s": four}
    sample = StepParts(compute_s=np.zeros((1, *wide["compute_s"])), unit_s=np.zeros((1, *four)),
                       slowest_s=np.zeros((1, *four)))  # fmt: skip
    return {entry.name: getattr(sample, entry.name).shape[1:] for entry in fields(StepParts)}


def _layout_of_fields() -> list[tuple[str, int, int, tuple[int, ...]]]:
    """(name, start, stop, shape) of the seconds inside a unit in their flat order."""
    shapes, start, result = _shapes(), 0, []
    for name in _names():
        size = math.prod(shapes[name])
        result.append((name, start, start + size, shapes[name]))
        start += size
    return result


def _split(flat: ArrayLike, names: tuple[str, ...]) -> dict[str, Floats]:
    """Values [..., N] of some fields in their flat order, each in its shape behind the leading ones."""
    values, shapes, start, result = np.asarray(flat), _shapes(), 0, {}
    for name in names:
        size = math.prod(shapes[name])
        block = values[..., start : start + size]
        result[name] = block.reshape((*values.shape[:-1], *shapes[name]))
        start += size
    return result
