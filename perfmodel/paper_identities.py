"""What the published numbers say about each other: identities, bounds, and which of them do not hold.

It owns the relations between the numbers of ``paper`` and FLOPs and bytes of the model's formulas. It predicts no
time: nothing here depends on an assumption about speed. Printed numbers are intervals (half a unit of the last place);
two sides of an identity agree where their intervals meet.

    EFLOPS x step time = FLOPs of a step = configurations x FLOPs of one (workload formulas)
    percent = EFLOPS / peak of the machine;  sustained / peak = training loop / wall time
    normalised throughput = active parameters x configurations per day, over the same of UMA
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from janus.presets import preset
from perfmodel.machine import Machine
from perfmodel.paper import GLOBAL, Published
from perfmodel.workload import Counts, gradient_bytes, parameter_counts, step_flops

Verdict = Literal["agrees", "contradicts", "follows"]
Relation = Literal["=", "<=", ">="]
SECONDS_PER_DAY = 86_400.0
NIC_BYTES_PER_S = 50e9  # one NIC of 400 Gb/s, to bound what the gradients need


@dataclass(frozen=True)
class Interval:
    """low <= high, both above 0: what a printed number can stand for."""

    low: float
    high: float

    def __mul__(self, other: Interval) -> Interval:
        return Interval(self.low * other.low, self.high * other.high)

    def __truediv__(self, other: Interval) -> Interval:
        return Interval(self.low / other.high, self.high / other.low)

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


def exactly(value: float) -> Interval:
    """A number without rounding."""
    return Interval(value, value)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Two ways to one quantity. relation: what should hold of left and right; "follows": right is a consequence.

    gap: left / right - 1 of the middles.
    """

    name: str
    left: str
    left_value: Interval
    right: str
    right_value: Interval
    unit: str
    relation: Relation
    verdict: Verdict
    note: str = ""

    @property
    def gap(self) -> float:
        return self.left_value.middle / self.right_value.middle - 1


@dataclass(frozen=True, kw_only=True)
class Formulas:
    """FLOPs of one step per configuration by the workload formulas, model FLOPs and executed with recompute; bytes of
    L's gradients; directed edges of the mean configuration."""

    flops_m: float
    flops_l: float
    recomputed_flops_l: float
    gradient_bytes_l: float
    edges: float
    active_l: float

    @classmethod
    def of(cls, counts: Counts) -> Formulas:
        """For configurations with these counts, of the presets matris-moe-m and matris-moe-l."""
        m, large = preset("matris-moe-m"), preset("matris-moe-l")
        recomputed = step_flops(large, counts, recompute=True)
        return cls(
            flops_m=step_flops(m, counts, recompute=False).model_total, flops_l=recomputed.model_total,
            recomputed_flops_l=recomputed.executed_total, gradient_bytes_l=gradient_bytes(large), edges=counts.edges,
            active_l=float(parameter_counts(large).active),
        )  # fmt: skip


def identities(
    machine: Machine, rows: Mapping[str, Published], formulas: Formulas, shared: Mapping[str, Published] = GLOBAL
) -> list[Identity]:
    """Every relation for one machine's rows. machine: of the catalogue; shared: numbers that no machine owns."""
    relations = _Relations(machine, rows, formulas, shared)
    return [*relations.ratios(), *relations.peaks(), *relations.batches(), *relations.throughputs(),
            *relations.seconds()]  # fmt: skip


def _interval(number: Published) -> Interval:
    return Interval(number.low, number.high)


def _holds(left: Interval, relation: Relation, right: Interval) -> bool:
    below, above = left.low <= right.high, left.high >= right.low
    return {"=": below and above, "<=": below, ">=": above}[relation]


class _Relations:
    def __init__(
        self, machine: Machine, rows: Mapping[str, Published], formulas: Formulas, shared: Mapping[str, Published]
    ) -> None:
        self.machine, self.formulas, self.shared = machine, formulas, shared
        self.rows = {key: _interval(number) for key, number in rows.items()}
        percent = exactly(100.0)
        self.machine_flops = self.rows["sustained_eflops"] / (self.rows["sustained_percent"] / percent)
        self.peak_eflops = self.rows["sustained_eflops"] / (self.rows["sustained_over_peak"] / percent)
        self.step_flops = self.peak_eflops * exactly(1e18) * self.rows["step_l_s"]

    def _check(
        self, name: str, left: tuple[str, Interval], relation: Relation, right: tuple[str, Interval], unit: str,
        note: str = "", *, follows: bool = False,
    ) -> Identity:  # fmt: skip
        held: Verdict = "agrees" if _holds(left[1], relation, right[1]) else "contradicts"
        return Identity(
            name=name, left=left[0], left_value=left[1], right=right[0], right_value=right[1], unit=unit,
            relation=relation, verdict="follows" if follows else held, note=note,
        )  # fmt: skip

    def ratios(self) -> Iterator[Identity]:
        """Printed ratios beside the quotients of what they are ratios of."""
        rows = self.rows
        for size in ("m", "l"):
            quotient = rows[f"step_{size}_baseline_s"] / rows[f"step_{size}_s"]
            yield self._check(f"speed-up of {size.upper()}", ("baseline / optimised step", quotient), "=",
                              ("printed", rows[f"speedup_{size}"]), "x")  # fmt: skip
        printed = ("printed", rows["sustained_over_peak"])
        for kind in ("eflops", "percent"):
            quotient = rows[f"sustained_{kind}"] / rows[f"peak_{kind}"] * exactly(100.0)
            name = "EFLOPS" if kind == "eflops" else "percent of peak"
            yield self._check(f"sustained / peak by {name}", (f"quotient of the {name}", quotient), "=", printed, "%")

    def peaks(self) -> Iterator[Identity]:
        """FP32 peak of the machine from each pair of EFLOPS and percent, and from the machine file."""
        rows, percent = self.rows, exactly(100.0)
        by_peak = ("by the peak run", rows["peak_eflops"] / (rows["peak_percent"] / percent))
        by_sustained = ("by the sustained run", self.machine_flops)
        yield self._check("FP32 peak of the machine", by_peak, "=", by_sustained, "EFLOPS")
        rating = self.machine.peak("float32")
        assert rating is not None, f"{self.machine.name} has no float32 peak"
        devices = self.machine.nodes * self.machine.devices_per_node
        circular = "inferred" in rating.source
        yield self._check(
            "FP32 peak of the machine file", ("machine file", exactly(devices * rating.flops_per_s / 1e18)), "=",
            by_sustained, "EFLOPS",
            "the file's peak was inferred from these rows" if circular else
            f"{rows['sustained_eflops'].middle / rows['sustained_percent'].middle * 100e18 / rating.flops_per_s:,.0f} "
            f"of {devices:,} devices would make the published peak", follows=circular,
        )  # fmt: skip
        bound = percent / rows["peak_percent"]
        yield self._check("slowest unit over the mean unit", ("at most, with products at the peak", bound), "=",
                          ("peak / reached", bound), "x", "work of units and parts of a unit cannot be less even than "
                          "this", follows=True)  # fmt: skip
        recomputed = self.formulas.recomputed_flops_l / self.formulas.flops_l
        yield self._check(
            "share of peak that products reach under recompute",
            ("if EFLOPS count the model's FLOPs and blocks run again", rows["peak_percent"] * exactly(recomputed)),
            "<=", ("peak", exactly(100.0)), "%",
        )  # fmt: skip

    def batches(self) -> Iterator[Identity]:
        """Configurations of a step from EFLOPS, step time and FLOPs of one configuration."""
        largest = ("reported largest batch", exactly(self.shared["largest_batch"].value))
        formulas = self.formulas
        by_rule = 12 * self.shared["active_l"].value * 1e9 * formulas.edges
        for how, flops in (
            ("model FLOPs of the preset", formulas.flops_l), ("12 x active parameters x edges", by_rule),
            ("executed FLOPs with recompute", formulas.recomputed_flops_l),
        ):  # fmt: skip
            batch = self.step_flops / exactly(flops)
            yield self._check(f"batch of L's step on the full machine, {how}", ("EFLOPS x step / FLOPs of one", batch),
                              "<=", largest, "configurations",
                              "where it is not: the step time is not of the full machine, or configurations are "
                              "larger than the data set's mean, or the batch is")  # fmt: skip
        for ranks, units in self._unit_choices():
            yield self._check(f"a configuration for each unit, unit = {ranks}", largest, ">=",
                              ("units of the full machine", exactly(units)), "configurations")  # fmt: skip
        same = self.rows["step_m_s"] / self.rows["step_l_s"] * exactly(formulas.flops_l / formulas.flops_m)
        yield self._check(
            "batch of M over batch of L at the same EFLOPS", ("step times / FLOPs of one", same), "=",
            ("", same), "x", "M does not determine L: their batches, or the shares of peak, differ", follows=True,
        )  # fmt: skip

    def _unit_choices(self) -> list[tuple[str, float]]:
        devices = self.machine.nodes * self.machine.devices_per_node
        unit = self.shared["unit"].value
        choices = [(f"{unit:g} devices of the machine file", devices / unit)]
        if self.machine.name == "lineshine":
            choices.append((f"{unit:g} CPUs in 4 nodes", 2 * self.machine.nodes / unit))
        return choices

    def throughputs(self) -> Iterator[Identity]:
        """Normalised throughputs: batches they imply, and what they say of M beside L."""
        shared, rows = {key: _interval(number) for key, number in self.shared.items()}, self.rows
        place = "high" if self.machine.name == "lineshine" else "low"
        uma = exactly(
            self.shared["uma_active"].value * self.shared["uma_structures"].value / self.shared["uma_days"].value
        )
        m, large = shared[f"throughput_m_{place}"], shared[f"throughput_l_{place}"]
        per_s = large * uma / shared["active_l"] / exactly(SECONDS_PER_DAY)
        taken = f"the {place}er of the two machines' values is taken to be {self.machine.name}'s"
        yield self._check("batch of L by the normalised throughput",
                          ("configurations/s x step", per_s * rows["step_l_s"]), "=",
                          ("EFLOPS x step / FLOPs of one", self.step_flops / exactly(self.formulas.flops_l)),
                          "configurations", f"UMA's own numbers are inferred; {taken}")  # fmt: skip
        edges = self.peak_eflops * exactly(1e18 * self.formulas.edges / self.formulas.flops_l) / per_s
        yield self._check("directed edges per configuration", ("EFLOPS / throughput / FLOPs of an edge", edges), "=",
                          ("data set's mean", shared["edges"] / shared["configurations"]), "edges",
                          "half of it would be edges counted once per pair")  # fmt: skip
        ratio = m / large * shared["active_l"] / shared["active_m"] * rows["step_m_s"] / rows["step_l_s"]
        yield self._check("batch of M over batch of L by the throughputs", ("throughputs x step times", ratio), "=",
                          ("at the same EFLOPS", rows["step_m_s"] / rows["step_l_s"]
                           * exactly(self.formulas.flops_l / self.formulas.flops_m)), "x",
                          "so few would leave M at a fifth of L's EFLOPS; no other row says so")  # fmt: skip
        printed = Interval(shared["edges_per_s_low"].low, shared["edges_per_s_high"].high)
        implied = self.peak_eflops * exactly(1e18 * self.formulas.edges / self.formulas.flops_l)
        yield self._check("edges per second", ("EFLOPS / FLOPs of an edge", implied), "=", ("printed range", printed),
                          "edges/s", "its unit or scale is not the full machine's")  # fmt: skip

    def seconds(self) -> Iterator[Identity]:
        """Scaling beside the abstract, start-up, and what the gradients need."""
        rows, claimed = self.rows, ("abstract, 'more than'", exactly(self.shared["parallel_efficiency"].value))
        for kind in ("weak", "strong"):
            note = "the abstract speaks of weak scaling" if kind == "strong" else ""
            yield self._check(f"parallel efficiency, {kind}", ("printed", rows[f"{kind}_percent"]), ">=", claimed, "%",
                              note)  # fmt: skip
        share = rows["sustained_over_peak"]
        least = exactly(self.shared["fewest_steps"].value) * rows["step_l_s"]
        outside = least * Interval(100 / share.high - 1, 100 / share.low - 1)
        yield self._check("start-up and I/O of 1,000 steps", ("(peak / sustained - 1) x steps x step", outside), ">=",
                          ("'hundreds of seconds' of start-up alone", exactly(100.0)), "s")  # fmt: skip
        needed = exactly(2 * self.formulas.gradient_bytes_l / NIC_BYTES_PER_S)
        yield self._check("sum of L's gradients over one 400 Gb/s NIC per unit", ("2 x bytes / rate", needed), "<=",
                          ("step time of L", rows["step_l_s"]), "s", "all of it can be hidden only in the backward "
                          "passes, two thirds of the compute")  # fmt: skip


def across_machines(published: Callable[[str], Mapping[str, Published]]) -> Identity:
    """The two machines' throughputs of L stand to each other as their peak EFLOPS: both are of the training loop."""
    peaks = {}
    for name in ("lineshine", "cnis"):
        rows = published(name)
        peaks[name] = (
            _interval(rows["sustained_eflops"])
            / (_interval(rows["sustained_percent"]))
            * _interval(rows["peak_percent"])
        )
    ratio = peaks["lineshine"] / peaks["cnis"]
    printed = _interval(GLOBAL["throughput_l_high"]) / _interval(GLOBAL["throughput_l_low"])
    held: Verdict = "agrees" if _holds(ratio, "=", printed) else "contradicts"
    return Identity(
        name="LineShine over CNIS, L", left="peak EFLOPS (by sustained and percents)", left_value=ratio,
        right="normalised throughput, higher over lower", right_value=printed, unit="x", relation="=", verdict=held,
        note="both are of the training loop at one number of FLOPs per configuration",
    )  # fmt: skip
