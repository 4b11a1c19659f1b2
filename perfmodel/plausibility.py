"""Warnings about numbers of a machine file that are well formed and yet look wrong: units, orders of magnitude, ranks.

It owns the rules; it does not own the format (``machine``) and refuses nothing: a warning may be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from perfmodel.machine import Machine

GIB = 2**30
# a number in a source followed by its unit: "64 GB", "200 Gb/s", "25 GB/s", "80 GiB"
SAID = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|TB|Gbit|Gbps|Gb|Tb)(?:/s)?\b")
LOWEST_LATENCY_S, HIGHEST_LATENCY_S = 1e-8, 1e-3
LOWEST_MEMORY_BYTES, LOWEST_BYTES_PER_S, LOWEST_FLOPS_PER_S = 1e9, 1e6, 1e8
LONGEST_START_UP_S, LONGEST_FIXED_S = 3600.0, 1.0
FASTEST_NIC_BYTES_PER_S = 200e9  # 1.6 Tb/s: nothing faster was announced by 2026
FASTEST_MEMORY_BYTES_PER_S = 30e12
# each at least as fast as the one before it on every device known
PEAK_CHAINS = (
    ("float64", "float32", "bfloat16", "float8"), ("float32", "tfloat32", "bfloat16"), ("float64", "float64_matrix"),
    ("float32", "float32_matrix"), ("float16", "int8"), ("float64", "float32", "float16"),
)  # fmt: skip


def warnings(machine: Machine, values: Mapping[str, Any]) -> list[str]:
    """What looks wrong in a machine, one sentence each, by name of the number.

    machine: as read. values: the nested values of its file, for the numbers by dotted name.
    """
    numbers = {path: number_at(values, path) for path in machine.sources}
    plain = {path: float(value) for path, value in numbers.items() if _is_plain(value)}
    found: list[str] = []
    for path, value in plain.items():
        found += _units_against_source(path, value, machine.sources[path])
        found += _magnitude(path, value)
    found += _collectives_in_order(machine)
    found += _peaks_in_order(machine)
    found += _links_against_memory(machine)
    found += _without_date(machine)
    return found


def number_at(values: Mapping[str, Any], path: str) -> Any:
    """The bare value of the quantity with that dotted name."""
    node: Any = values
    for name in path.split("."):
        node = node[name]
    return node["value"]


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _units_against_source(path: str, value: float, source: str) -> Iterator[str]:
    """Bits taken for bytes, and GB taken for GiB or the reverse, where the source names the number itself."""
    if "bytes" not in path:
        return
    for text, unit in SAID.findall(source):
        said = float(text)
        if unit in ("Gb", "Gbit", "Gbps") and value == said * 1e9:
            yield f"{path} is {value:g} and its source says {text} {unit}: bits? {said * 1e9 / 8:g} bytes"
        if unit == "Tb" and value == said * 1e12:
            yield f"{path} is {value:g} and its source says {text} Tb: bits? {said * 1e12 / 8:g} bytes"
        if unit == "GB" and value == said * GIB:
            yield f"{path} is {text} GiB and its source says {text} GB: GB is 1e9 bytes, so {said * 1e9:g}"
        if unit == "GiB" and value == said * 1e9:
            yield f"{path} is {text} GB and its source says {text} GiB: GiB is 2^30 bytes, so {said * GIB:g}"


def _magnitude(path: str, value: float) -> Iterator[str]:
    name = path.rsplit(".", 1)[-1]
    if path.startswith("device.peaks.") and value < LOWEST_FLOPS_PER_S:
        yield f"{path} is {value:g} FLOP/s: it is in FLOP/s, a TFLOP/s is 1e12"
    elif (
        name.endswith("latency_s") and path.startswith(("network.", "fabric.", "transport.", "collectives.")) and value
    ):
        if not LOWEST_LATENCY_S <= value <= HIGHEST_LATENCY_S:
            yield f"{path} is {value:g} s: it is in seconds, a microsecond is 1e-6"
    elif path.startswith("start_up.") and value > LONGEST_START_UP_S:
        yield f"{path} is {value:g} s: it is in seconds, from the start of the processes to the end of the first step"
    elif name in ("step_s", "batch_s") and value > LONGEST_FIXED_S:
        yield f"{path} is {value:g} s: it is in seconds, a millisecond is 1e-3"
    elif name.endswith("bytes_per_s") and value < LOWEST_BYTES_PER_S:
        yield f"{path} is {value:g} bytes/s: it is in bytes per second, a GB/s is 1e9"
    elif name.endswith("memory_bytes_per_node") and value < LOWEST_MEMORY_BYTES:
        yield f"{path} is {value:g} bytes: it is in bytes, a GB is 1e9"
    if path == "network.nic_bytes_per_s" and value > FASTEST_NIC_BYTES_PER_S:
        yield f"{path} is {value:g} bytes/s, {8 * value / 1e9:g} Gb/s: no NIC is that fast; bits, or all of a node?"
    if path == "device.memory_bytes_per_s" and value > FASTEST_MEMORY_BYTES_PER_S:
        yield f"{path} is {value:g} bytes/s: no device's memory is that fast; it is of one device, not of a node"


def _collectives_in_order(machine: Machine) -> Iterator[str]:
    """More bytes take no less time."""
    for entry in machine.collectives:
        if any(after < before for before, after in pairwise(entry.knots_s)):
            yield (
                f"collectives.{entry.transport}.{entry.collective}.{entry.label}.knots_s falls somewhere: more bytes "
                "take no less time"
            )


def _peaks_in_order(machine: Machine) -> Iterator[str]:
    """Narrower numbers and matrix units are never slower."""
    seen = set()
    for chain in PEAK_CHAINS:
        known = [machine.peaks[dtype] for dtype in chain if dtype in machine.peaks]
        for wide, narrow in pairwise(known):
            if narrow.flops_per_s < wide.flops_per_s and (wide.dtype, narrow.dtype) not in seen:
                seen.add((wide.dtype, narrow.dtype))
                yield (
                    f"device.peaks.{narrow.dtype} is {narrow.flops_per_s:g}, below device.peaks.{wide.dtype} "
                    f"{wide.flops_per_s:g}: narrower numbers are not slower on any known device"
                )


def _links_against_memory(machine: Machine) -> Iterator[str]:
    network = machine.network
    memory = machine.memory_bytes_per_s * machine.devices_per_node
    if network.nic_bytes_per_s is not None and network.nics_per_node is not None:
        injection = network.nic_bytes_per_s * network.nics_per_node
        if injection > memory:
            yield (
                f"network.nic_bytes_per_s x nics_per_node is {injection:g} bytes/s, faster than the node's memory "
                f"({memory:g}): bits instead of bytes?"
            )
    if network.node_bytes_per_s is not None and network.node_bytes_per_s > machine.memory_bytes_per_s:
        yield (
            f"network.node_bytes_per_s is {network.node_bytes_per_s:g}, faster than device.memory_bytes_per_s "
            f"{machine.memory_bytes_per_s:g}: it is what one rank moves in one direction"
        )
    if machine.peaks and max(peak.flops_per_s for peak in machine.peaks.values()) < machine.memory_bytes_per_s / 16:
        yield "device.peaks are below a FLOP per 16 bytes of device.memory_bytes_per_s: TFLOP/s taken for GFLOP/s?"


def _without_date(machine: Machine) -> Iterator[str]:
    undated = [path for path in machine.sources if not machine.dates.get(path)]
    if undated and not machine.is_calibrated_host:
        yield (
            f"{len(undated)} numbers have no date ({', '.join(undated[:3])}{', ...' if len(undated) > 3 else ''}): "
            'add date = "YYYY" to the file or to each'
        )
