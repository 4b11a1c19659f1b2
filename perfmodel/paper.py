"""What arXiv 2604.15821 is reported to have measured of MatRIS-MoE on LineShine and CNIS, as data with source tags.

It owns the published numbers, how they were printed, and which rows a prediction is held against. It does not own
what follows from them (``paper_identities``), what they leave open (``paper_unknowns``) nor any prediction
(``paper_model``).

Tags: "first-hand" is the text of the abstract; "second-hand" was read in two summaries of the paper, not in the paper;
"inferred" was computed from other published numbers. A printed number stands for the interval of half a unit of its
last place to both sides (``low``, ``high``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from janus.errors import UserError

Tag = Literal["first-hand", "second-hand", "inferred"]
PAPER = "arXiv 2604.15821"
MACHINES = ("lineshine", "cnis")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number as printed (its digits say how it was rounded), its unit, tag, source and, where needed, a note."""

    printed: str
    unit: str
    tag: Tag
    source: str
    note: str = ""

    @property
    def value(self) -> float:
        return float(self.printed)

    @property
    def half_unit(self) -> float:
        """Half a unit of the last printed place."""
        exponent = Decimal(self.printed).as_tuple().exponent
        assert isinstance(exponent, int), f"{self.printed} is not a finite number"
        return 0.5 * 10.0**exponent

    @property
    def low(self) -> float:
        return self.value - self.half_unit

    @property
    def high(self) -> float:
        return self.value + self.half_unit


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table that a prediction is held against. key: its name in assignments and JSON."""

    key: str
    label: str
    unit: str


ROWS = (
    Row(key="step_m_baseline_s", label="step time, M, baseline", unit="s"),
    Row(key="step_m_s", label="step time, M, optimised", unit="s"),
    Row(key="step_l_baseline_s", label="step time, L, baseline", unit="s"),
    Row(key="step_l_s", label="step time, L, optimised", unit="s"),
    Row(key="speedup_m", label="M, baseline / optimised", unit="x"),
    Row(key="speedup_l", label="L, baseline / optimised", unit="x"),
    Row(key="peak_eflops", label="peak, L (training loop)", unit="EFLOPS"),
    Row(key="peak_percent", label="peak, of the FP32 peak", unit="%"),
    Row(key="sustained_eflops", label="sustained, L (with start-up and I/O)", unit="EFLOPS"),
    Row(key="sustained_percent", label="sustained, of the FP32 peak", unit="%"),
    Row(key="sustained_over_peak", label="sustained / peak", unit="%"),
    Row(key="weak_percent", label="weak-scaling efficiency, L", unit="%"),
    Row(key="strong_percent", label="strong-scaling efficiency, L", unit="%"),
)
ROW_KEYS = tuple(row.key for row in ROWS)

_A = f"{PAPER}, summary A"
_B = f"{PAPER}, summary B"


def _second(printed: str, unit: str, source: str = _A, note: str = "") -> Published:
    return Published(printed=printed, unit=unit, tag="second-hand", source=source, note=note)


_LINESHINE = {
    "step_m_baseline_s": _second("33.1", "s"),
    "step_m_s": _second("8.08", "s"),
    "step_l_baseline_s": _second("40.7", "s"),
    "step_l_s": _second("8.14", "s"),
    "speedup_m": _second("4.1", "x"),
    "speedup_l": _second("5.0", "x"),
    "peak_eflops": Published(printed="1.2", unit="EFLOPS", tag="first-hand", source=f"{PAPER}, abstract"),
    "peak_percent": _second("24.41", "%", note="the abstract rounds to 24 %"),
    "sustained_eflops": _second("1.033", "EFLOPS", _B),
    "sustained_percent": _second("21.02", "%", _B),
    "sustained_over_peak": _second("86.61", "%", note="21.02 / 24.41 is 86.11"),
    "weak_percent": _second("90.3", "%"),
    "strong_percent": _second("50.60", "%"),
}
_CNIS = {
    "step_m_baseline_s": _second("5.96", "s"),
    "step_m_s": _second("2.21", "s"),
    "step_l_baseline_s": _second("7.71", "s"),
    "step_l_s": _second("2.66", "s"),
    "speedup_m": _second("2.7", "x"),
    "speedup_l": _second("2.9", "x"),
    "peak_eflops": Published(printed="1.0", unit="EFLOPS", tag="first-hand", source=f"{PAPER}, abstract",
                             note="1.048 by sustained / (sustained / peak)"),
    "peak_percent": _second("35.52", "%", note="the abstract rounds to 35.5 %"),
    "sustained_eflops": _second("0.7623", "EFLOPS", _B),
    "sustained_percent": _second("25.84", "%", _B),
    "sustained_over_peak": _second("72.73", "%"),
    "weak_percent": _second("93.78", "%"),
    "strong_percent": _second("53.93", "%"),
}  # fmt: skip
PUBLISHED: Mapping[str, Mapping[str, Published]] = {"lineshine": _LINESHINE, "cnis": _CNIS}

GLOBAL = {
    "largest_batch": _second("15000", "configurations", _B, "of the global batch, 'up to 15 K'"),
    "fewest_steps": _second("1000", "steps", _B, "of a run, 'at least'"),
    "configurations": _second("473000000", "configurations", note="of the data set"),
    "edges": _second("3600000000000", "edges", note="of the data set, 'about 3.6 trillion'"),
    "unit": _second("8", "devices", note="of an FS-3D unit, and ranks of a graph-parallel replica"),
    "active_m": _second("0.56", "billion parameters"),
    "active_l": _second("2.89", "billion parameters"),
    "total_m": _second("2.47", "billion parameters"),
    "total_l": _second("11.5", "billion parameters"),
    "throughput_m_low": _second("653", "UMA = 1", note="normalised throughput of M, lower of two machines"),
    "throughput_m_high": _second("750", "UMA = 1", note="normalised throughput of M, higher of two machines"),
    "throughput_l_low": _second("2796", "UMA = 1", note="normalised throughput of L, lower of two machines"),
    "throughput_l_high": _second("3202", "UMA = 1", note="normalised throughput of L, higher of two machines"),
    "uma_active": Published(printed="0.05", unit="billion parameters", tag="inferred",
                            source="UMA's active parameters, one epoch of 459 M structures in 21 days assumed"),
    "uma_structures": Published(printed="459000000", unit="structures", tag="inferred",
                                source="UMA's data set, one epoch of it in 21 days assumed"),
    "uma_days": _second("21", "days", note="training time of UMA"),
    "parallel_efficiency": Published(printed="90", unit="%", tag="first-hand", source=f"{PAPER}, abstract",
                                     note="'more than 90 %', without saying weak or strong"),
    "sdma_gain": _second("1.4", "x", note="effective memory bandwidth with SDMA, 'up to', LineShine"),
    "edges_per_s_low": _second("800000", "edges/s", note="with strong scaling, 'about'"),
    "edges_per_s_high": _second("1770000", "edges/s", note="with strong scaling, 'about'"),
}  # fmt: skip


def published(machine: str) -> Mapping[str, Published]:
    """The published rows of a machine, by key. Raises UserError for a machine that is not in the paper."""
    if machine not in PUBLISHED:
        raise UserError(f"nothing was published for machine {machine!r}: the paper has {' and '.join(MACHINES)}")
    return PUBLISHED[machine]
