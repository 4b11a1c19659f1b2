"""What is known of a machine, number by number, and what follows from it: peaks, injection, bisection.

It owns units and derived numbers of the listing; it does not own the file format (``perfmodel.machine``) nor printing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from janus.errors import UserError
from perfmodel.machine import PEAK_DTYPES, Machine, Peak
from perfmodel.plausibility import number_at

TABLES = ("device", "network", "fabric", "transport", "rates")
LISTED_DTYPES = ("float32", "float64", *PEAK_DTYPES)
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number of a machine file: dotted name, value, unit ("" for counts and words), source, date ("" unknown).

    quality: of a fitted or measured number, its relative spread or residual; None elsewhere.
    """

    name: str
    value: Any
    unit: str
    source: str
    date: str
    assumed: bool
    quality: float | None

    @property
    def text(self) -> str:
        """The value for people, with an SI prefix: "25 GB/s", "0.35 µs"."""
        return with_unit(self.value, self.unit)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What follows from a machine's numbers; None: unknown (show "n/a").

    peak: of one device, float32 where it is known. injection_bytes_per_s: all NICs of a node, one direction.
    bisection_bytes_per_s: of the whole fabric, one direction; bisection_note: why it is unknown.
    """

    devices: int
    peak: Peak | None
    total_flops_per_s: float | None
    injection_bytes_per_s: float | None
    bisection_bytes_per_s: float | None
    bisection_note: str


def unit_of(name: str) -> str:
    """The unit that a dotted name says: units are in the names."""
    last = name.rsplit(".", 1)[-1]
    if name.startswith("device.peaks.") or last.endswith("flops_per_s"):
        return "FLOP/s"
    if last.endswith("bytes_per_s"):
        return "B/s"
    if last.endswith(("_bytes", "_bytes_per_node")):
        return "B"
    if ".fused_s." in name:
        return "s/element"
    return "s" if last.endswith("_s") else ""


def with_unit(value: Any, unit: str) -> str:
    """A number for people. Lists are joined by " x ", words stay."""
    if isinstance(value, list | tuple):
        return " x ".join(with_unit(entry, unit) for entry in value)
    if isinstance(value, str | bool) or not unit:
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _plain(value)
    if value == 0 or math.isinf(value):
        return f"{value:g} {unit}"
    prefixes = SMALL_PREFIXES if unit.startswith("s") else PREFIXES
    scale, prefix = next(
        ((scale, prefix) for scale, prefix in prefixes if abs(value) >= 0.9999999 * scale), prefixes[-1]
    )
    text = f"{value / scale:.5g} {prefix}{unit}"
    return f"{text} ({value / 2**30:.5g} GiB)" if unit == "B" and value >= 2**30 else text


def _plain(value: Any) -> str:
    if isinstance(value, float) and value == int(value):
        return f"{int(value):,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def quantities(machine: Machine, values: Mapping[str, Any]) -> list[Quantity]:
    """Every number of a machine's file, table by table. values: the file's nested values."""
    names = sorted(machine.sources, key=lambda name: TABLES.index(name.split(".")[0]) if "." in name else -1)
    return [
        Quantity(
            name=name, value=number_at(values, name), unit=unit_of(name), source=source,
            date=machine.dates.get(name, ""), assumed=source.startswith("assumed"), quality=machine.quality.get(name),
        )
        for name, source in ((name, machine.sources[name]) for name in names)
    ]  # fmt: skip


def listed_peak(machine: Machine) -> Peak | None:
    """The peak to list a machine by: float32, else float64, else the widest known; None where none is known."""
    return next((machine.peaks[dtype] for dtype in LISTED_DTYPES if dtype in machine.peaks), None)


def injection_bytes_per_s(machine: Machine) -> float | None:
    """All NICs of a node in one direction; None where rate or number is unknown."""
    network = machine.network
    if network.nic_bytes_per_s is None or network.nics_per_node is None:
        return None
    return network.nic_bytes_per_s * network.nics_per_node


def bisection(machine: Machine, num_nodes: int | None = None) -> tuple[float | None, str]:
    """(Bytes per second across the worst balanced cut in one direction, "") or (None, why there is none).

    num_nodes: of a job on nodes 0 to n - 1, all NICs in use; default: all nodes of the machine.
    """
    from perfmodel.network.cluster import build_cluster

    if machine.fabric is None:
        return None, "the file has no [fabric] table"
    nodes = machine.nodes if num_nodes is None else num_nodes
    try:
        cluster = build_cluster(machine, num_nodes=nodes, ranks_per_node=1, stripe=True)
    except UserError as error:
        return None, str(error)
    return float(cluster.bisection_bytes_per_s()), ""


def derive(machine: Machine) -> Derived:
    """What follows from a machine's numbers."""
    peak = listed_peak(machine)
    devices = machine.nodes * machine.devices_per_node
    across, note = bisection(machine)
    return Derived(
        devices=devices, peak=peak, total_flops_per_s=None if peak is None else devices * peak.flops_per_s,
        injection_bytes_per_s=injection_bytes_per_s(machine), bisection_bytes_per_s=across, bisection_note=note,
    )  # fmt: skip
