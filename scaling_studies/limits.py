"""Peaks, ceilings and memory of the devices that a job uses, from a machine file. It owns no number of its own.

A rank of a calibrated host uses one core per thread, never more cores than there are; elsewhere a rank has a device.
"""

from __future__ import annotations

from perfmodel.machine import Machine
from perfmodel.planner import MEMORY_RESERVE
from scaling_studies.records import Ceiling, Peak


def devices_used(machine: Machine, ranks: int, threads: int = 1) -> int:
    """Devices that a job of so many ranks keeps busy."""
    return machine.devices_used(ranks, threads) if machine.is_calibrated_host else ranks


def device_peaks(machine: Machine) -> dict[str, Peak]:
    """dtype -> peak of one device of the machine (of one core, for a calibrated host)."""
    return {
        dtype: Peak(flops_per_s=peak.flops_per_s, name=peak.name, dtype=peak.dtype, source=peak.source)
        for dtype, peak in machine.peaks.items()
    }


def peak_of(machine: Machine, dtype: str, ranks: int, threads: int = 1) -> Peak | None:
    """The peak of all devices of a job together, None where the machine file has none for the dtype."""
    peak = device_peaks(machine).get(dtype)
    return None if peak is None else peak.times(devices_used(machine, ranks, threads))


def ceilings_of(machine: Machine, ranks: int, threads: int = 1) -> tuple[Ceiling, ...]:
    """Compute ceilings by dtype [FLOP/s] and that of memory [byte/s], of all devices of a job together.

    Memory: so many times one device's rate; cores that share it may reach less together, which the source then says.
    """
    devices = devices_used(machine, ranks, threads)
    found = [
        Ceiling(value=peak.flops_per_s, unit="FLOP/s", name=peak.name, dtype=dtype, source=peak.source)
        for dtype, peak in ((dtype, peak.times(devices)) for dtype, peak in device_peaks(machine).items())
    ]
    source = machine.sources.get("device.memory_bytes_per_s", "n/a")
    if devices > 1 and machine.is_calibrated_host:
        source += f"; {devices} times that of one core, which cores that share a memory may not reach together"
    name = f"{devices:,} x memory of one device" if devices > 1 else "memory of one device"
    memory = Ceiling(value=machine.memory_bytes_per_s * devices, unit="byte/s", name=name, dtype="any", source=source)
    return (*found, memory)


def rank_memory_bytes(machine: Machine, ranks_on_node: int) -> float:
    """Bytes that one rank may use: its share of a node's memories, less what is left to the system and to errors."""
    node = machine.memory_bytes_per_node + machine.second_memory_bytes_per_node
    return (1 - MEMORY_RESERVE) * node / ranks_on_node
