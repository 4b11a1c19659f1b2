"""The rows of the published table as functions of what nobody published, for thousands of assignments at once.

It owns which jobs the rows are of and what each unknown does to them. It does not own the unknowns and their ranges
(``paper_unknowns``), the step (``step_time.combine`` on the parts of ``paper_parts``), searching (``paper_search``) nor
the published values (``paper``), none of which is used here.

    step times      part of the machine x, batch B of its own for M and L; baseline and optimised on the same job
    peak            L on the full machine; EFLOPS = FLOPs of the batch / step
    sustained       peak x steps x step / (start-up and I/O + steps x step)
    weak            step of 1/w of the machine with 1/w of the batch / step of the peak run
    strong          x_s T(x_s) / T(1) of one batch

What the baseline lacks is a set of ``LACKS``; the same step without one of them says what that one is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from janus.presets import preset
from perfmodel.compute_time import COMPUTE_CAUSES
from perfmodel.machine import Machine
from perfmodel.mean_configurations import MEAN_CONFIGURATION
from perfmodel.memory import fullest_memory
from perfmodel.paper_parts import BASES, FEW, MANY, UNIT, UnitParts, Work, of_cpus, unit_work
from perfmodel.paper_search import Assignments
from perfmodel.paper_slowest import slowest_in_unit, slowest_over_mean
from perfmodel.paper_unknowns import (
    CPUS_PER_NODE,
    EXECUTED_FLOPS,
    HALVING,
    UNIT_OVER_NODES,
    WEIGHTS,
    YES,
)
from perfmodel.start_up import sustained_over_peak
from perfmodel.step_parts import StepParts
from perfmodel.step_time import StepSeconds, combine
from perfmodel.workload import step_flops

Floats = NDArray[np.float64]

MODELS = {"m": "matris-moe-m", "l": "matris-moe-l"}
LACKS = ("overlap", "compression", "planning", "products", "memory", "calls", "sdma")
WORDS_OF_LACKS = {
    "overlap": "overlap of communication and update", "compression": "16-bit exchanges",
    "planning": "expert planning", "products": "kernels: products", "memory": "kernels: memory traffic",
    "calls": "kernels: operator calls, packing", "sdma": "SDMA between memories",
}  # fmt: skip
NOTHING: frozenset[str] = frozenset()
EVERYTHING = frozenset(LACKS)
_SUMS_BY = {0.0: ("rabenseifner",), 1.0: ("ring", "bine")}
_GROUPED = COMPUTE_CAUSES.index("grouped products")


@lru_cache
def _flops(model: str) -> tuple[float, float]:
    """FLOPs of one mean configuration: of the model, and executed with recompute."""
    found = step_flops(preset(model), MEAN_CONFIGURATION, recompute=True)
    return found.model_total, found.executed_total


class PaperModel:
    """The rows of one machine of the paper."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._places = {0.0: UnitParts(machine)}
        if machine.name == "lineshine":
            self._places[UNIT_OVER_NODES] = UnitParts(of_cpus(machine, CPUS_PER_NODE))

    def __call__(self, values: Assignments) -> dict[str, Floats]:
        """Rows by key [C], in the units of ``paper.ROWS``."""
        full = self.full_units(values)
        rows: dict[str, Floats] = {}
        for size in ("m", "l"):
            rows |= self._step_rows(size, values)
        peak_s = self.step(values, "l", values["batch_peak"], full).step_s
        flops = values["batch_peak"] * self.flops_of_one("l", values)
        rows |= self._rates(values, peak_s, flops)
        part = values["weak_part"]
        base_s = self.step(values, "l", values["batch_peak"] * part, full * part).step_s
        rows["weak_percent"] = 100 * base_s / peak_s
        part = values["strong_part"]
        few_s = self.step(values, "l", values["batch_strong"], full * part).step_s
        all_s = self.step(values, "l", values["batch_strong"], full).step_s
        rows["strong_percent"] = 100 * part * few_s / all_s
        rows["memory_over_available"] = self.memory_over_available(values)
        rows["units_over_batch"] = self.units_over_batch(values)
        return rows

    def full_units(self, values: Assignments) -> Floats:
        """Units of the full machine [C]."""
        place = self._place(values)
        return np.select([place == one for one in self._places],
                         [float(parts.full_units) for parts in self._places.values()])  # fmt: skip

    def flops_of_one(self, size: str, values: Assignments) -> Floats:
        """FLOPs of one configuration as the paper may count them [C]."""
        model, executed = _flops(MODELS[size])
        counts_all = (values["counted"] == EXECUTED_FLOPS) & (values["recompute"] == YES)
        return np.where(counts_all, executed, model) * values["flops_factor"] * self._size(values)

    def step(
        self, values: Assignments, size: str, batch: Floats, units: Floats, lacks: frozenset[str] = NOTHING
    ) -> StepSeconds:
        """Seconds of one step [C]: size "m" or "l", batch configurations on so many units, without ``lacks``."""
        return combine(self._parts(values, size, batch, units, lacks), self._overlap(values, lacks))

    def step_times_of(self, values: Assignments, size: str, lacks: frozenset[str]) -> Floats:
        """The step time of a row of step times, without ``lacks`` [C]."""
        units = np.maximum(self.full_units(values) * values["step_part"], 1.0)
        return self.step(values, size, values[f"batch_step_{size}"], units, lacks).step_s

    def _step_rows(self, size: str, values: Assignments) -> dict[str, Floats]:
        optimised, baseline = (self.step_times_of(values, size, lacks) for lacks in (NOTHING, EVERYTHING))
        return {f"step_{size}_s": optimised, f"step_{size}_baseline_s": baseline,
                f"speedup_{size}": baseline / optimised}  # fmt: skip

    def _rates(self, values: Assignments, peak_s: Floats, flops: Floats) -> dict[str, Floats]:
        rating = self.machine.peak("float32")
        assert rating is not None, f"{self.machine.name} has no float32 peak"
        machine_peak = rating.flops_per_s * self.machine.nodes * self.machine.devices_per_node
        share = np.array([
            sustained_over_peak(*numbers) for numbers in zip(peak_s, values["steps"], values["outside_s"], strict=True)
        ])  # fmt: skip
        rate = flops / peak_s
        return {
            "peak_eflops": rate / 1e18, "peak_percent": 100 * rate / machine_peak,
            "sustained_eflops": share * rate / 1e18, "sustained_percent": 100 * share * rate / machine_peak,
            "sustained_over_peak": 100 * share,
        }  # fmt: skip

    def _place(self, values: Assignments) -> Floats:
        count = len(values["edges"])
        return values.get("unit_place", np.zeros(count))

    @staticmethod
    def _size(values: Assignments) -> Floats:
        """Size of a configuration over the mean one's."""
        return values["edges"] / MEAN_CONFIGURATION.edges

    @staticmethod
    def _overlap(values: Assignments, lacks: frozenset[str]) -> Floats:
        return np.minimum(values["baseline_overlap"], values["overlap"]) if "overlap" in lacks else values["overlap"]

    def _parts(self, values: Assignments, size: str, batch: Floats, units: Floats, lacks: frozenset[str]) -> StepParts:
        """Parts of the C jobs: those of one kind of work at a time, put together again."""
        count = len(batch)
        kinds = np.stack([self._place(values), values["recompute"], values["strategy"], values["all_reduce"],
                          self._compressed(values, lacks)], axis=1)  # fmt: skip
        different, which = np.unique(kinds, axis=0, return_inverse=True)
        each = batch / units
        arrays: dict[str, Floats] = {}
        for number, kind in enumerate(different):
            chosen = np.flatnonzero(which.ravel() == number)
            found = self._of_kind(kind, {key: value[chosen] for key, value in values.items()}, size, each[chosen],
                                  units[chosen], lacks)  # fmt: skip
            for name, value in vars(found).items():
                if name not in arrays:
                    arrays[name] = np.zeros((count, *value.shape[1:]))
                arrays[name][chosen] = value
        return StepParts(**arrays)

    @staticmethod
    def _compressed(values: Assignments, lacks: frozenset[str]) -> Floats:
        everywhere = np.full(len(values["edges"]), YES)
        return values["baseline_compression"] if "compression" in lacks else everywhere

    def _of_kind(
        self, kind: Floats, values: Assignments, size: str, each: Floats, units: Floats, lacks: frozenset[str]
    ) -> StepParts:
        place, recompute, strategy, all_reduce, compressed = kind.tolist()
        work = Work(
            model=preset(MODELS[size]), recompute=recompute == YES,
            strategy="weights" if strategy == WEIGHTS else "tokens", planned="planning" not in lacks,
            compressed=compressed == YES,
        )  # fmt: skip
        at_once = np.ceil(np.maximum(each, 1e-9) / values["micro_batch"])
        parts = self._places[place].parts(
            work, self._scales(values, size, place, lacks), each=each, micro_batches=at_once,
            size=self._size(values), units=units, taper=values["taper"],
            all_reduces=_SUMS_BY[HALVING if all_reduce == HALVING else 1.0],
        )  # fmt: skip
        return self._with_slowest(parts, values, each, units, lacks)

    def _scales(self, values: Assignments, size: str, place: float, lacks: frozenset[str]) -> Floats:
        """Seconds per unit of every basis [C, bases]."""
        machine = self._places[place].machine
        share = values["product_share"] * (values["product_m"] if size == "m" else 1.0)
        memory, calls_s = values["memory_share"], values["launch_s"]
        if "products" in lacks:
            share = share * values["baseline_products"]
        if "memory" in lacks:
            memory = memory * values["baseline_memory"]
        if "sdma" in lacks and "sdma" in values:
            memory = memory / values["sdma"]
        if "calls" in lacks:
            calls_s = calls_s * values["baseline_launches"]
        reference = 1.0 if self.machine.name == "lineshine" else float(self.machine.network.nics_per_node or 1)
        injection = reference / values["injection"]
        one = np.ones(len(share))
        scales = {
            "fixed": one, "flops": values["flops_factor"] / (share * machine.peaks["float32"].flops_per_s),
            "bytes": 1 / (memory * machine.memory_bytes_per_s), "calls": calls_s, "latency": one,
            "inside": 1 / values["node_link"], "fabric": injection,
        }  # fmt: skip
        return np.stack([scales[basis] for basis in BASES], axis=1)

    @staticmethod
    def _with_slowest(
        parts: StepParts, values: Assignments, each: Floats, units: Floats, lacks: frozenset[str]
    ) -> StepParts:
        """The slowest unit by packing and noise; where nothing is planned, the fullest rank of the experts."""
        unit_s, exchanges_s, packing_s = parts.unit_s, parts.exchanges_s, parts.packing_s
        if "calls" not in lacks:
            packing_s = packing_s * values["packing"][:, None]
        if "planning" in lacks:
            more = values["baseline_load"][:, None] - 1
            unit_s = unit_s + more * parts.compute_s[:, :, _GROUPED]
            exchanges_s = exchanges_s * (1 + more)
        cover = np.maximum(parts.exchanges_cover, values["exchange_cover"][:, None])
        slowest = slowest_over_mean(values["size_spread"], values["deviation"], each, units)
        return replace(
            parts, unit_s=unit_s, slowest_s=unit_s * slowest[:, None], exchanges_s=exchanges_s, exchanges_cover=cover,
            packing_s=packing_s,
            unit_factor=slowest_in_unit(values["deviation"]), slowest_factor=np.ones(len(each)),
        )  # fmt: skip

    def facts(self, values: Assignments) -> dict[str, float]:
        """What one assignment comes to beside the rows: configurations per unit of each run, and L's memory."""
        full = self.full_units(values)
        part = np.maximum(full * values["step_part"], 1.0)
        machine = self._places[float(self._place(values)[0])].machine
        return {
            "full_machine_units": float(full[0]),
            "peak_configurations_per_unit": float((values["batch_peak"] / full)[0]),
            "strong_configurations_per_unit": float((values["batch_strong"] / full)[0]),
            "step_l_configurations_per_unit": float((values["batch_step_l"] / part)[0]),
            "step_m_configurations_per_unit": float((values["batch_step_m"] / part)[0]),
            "step_nodes": float((part * UNIT / machine.devices_per_node)[0]),
            "rank_memory_bytes": float((self.memory_over_available(values) * _available_bytes(machine))[0]),
            "rank_available_bytes": _available_bytes(machine),
        }  # fmt: skip

    def units_over_batch(self, values: Assignments) -> Floats:
        """Units over configurations of the run with the fewest for each unit: above 1 units have nothing to do [C]."""
        full = self.full_units(values)
        part = np.maximum(full * values["step_part"], 1.0)
        return np.max([full / values["batch_peak"], full / values["batch_strong"], part / values["batch_step_l"],
                       part / values["batch_step_m"]], axis=0)  # fmt: skip

    def memory_over_available(self, values: Assignments) -> Floats:
        """Memory of a rank of L over what it has, both tiers, in the fullest micro-batch of any run [C]."""
        full = self.full_units(values)
        runs = [values["batch_peak"] / full, values["batch_step_l"] / np.maximum(full * values["step_part"], 1.0),
                values["batch_strong"] / full / values["strong_part"]]  # fmt: skip
        at_once = np.maximum(np.minimum(np.max(runs, axis=0), values["micro_batch"]), 1.0) * self._size(values)
        result = np.zeros(len(full))
        for place, parts in self._places.items():
            for recompute in (False, True):
                chosen = (self._place(values) == place) & ((values["recompute"] == YES) == recompute)
                if not chosen.any():
                    continue
                states, each = _memory_line(recompute)
                kept = each * at_once[chosen] * values["kept"][chosen]
                result[chosen] = (states + kept) / _available_bytes(parts.machine)
        return result

    def worth(self, values: Assignments, size: str) -> dict[str, Floats]:
        """How much longer the optimised step takes without one of what the paper names, over the optimised [C]; and
        "all": without any (the published speed-up)."""
        optimised = self.step_times_of(values, size, NOTHING)
        found = {lack: self.step_times_of(values, size, frozenset([lack])) / optimised for lack in self.lacks()}
        return found | {"all": self.step_times_of(values, size, EVERYTHING) / optimised}

    def lacks(self) -> tuple[str, ...]:
        """What the baseline can lack on this machine."""
        return tuple(lack for lack in LACKS if lack != "sdma" or self.machine.name == "lineshine")


def _available_bytes(machine: Machine) -> float:
    """Memory of a rank, both tiers."""
    return (machine.memory_bytes_per_node + machine.second_memory_bytes_per_node) / machine.devices_per_node


@lru_cache
def _memory_line(recompute: bool) -> tuple[float, float]:
    """Bytes of a rank of L: without a batch, and of each mean configuration of its unit."""
    work = Work(model=preset(MODELS["l"]), recompute=recompute)
    found = [fullest_memory(unit_work(work, number)).total_bytes for number in (FEW, MANY)]
    each = (found[1] - found[0]) / (MANY - FEW)
    return found[0] - FEW * each, each


def one_assignment(values: Mapping[str, float]) -> Assignments:
    """Arrays of one."""
    return {key: np.array([value], dtype=np.float64) for key, value in values.items()}
