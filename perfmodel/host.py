"""What identifies a host for a calibration: its processor and the cores it may use. Never imports torch.

It owns the check that a calibrated machine file is used where it was made; it does not own measuring.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from janus.errors import UserError
from perfmodel.machine import Machine


@dataclass(frozen=True, kw_only=True)
class Host:
    """Processor name as the operating system gives it ("n/a" where it does not), cores this process may use, name."""

    cpu: str
    cores: int
    hostname: str


def cpu_name() -> str:
    """The processor's name with family and model where Linux gives them, else what the platform says, else "n/a"."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields: dict[str, str] = {}
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
        name = fields.get("model name") or fields.get("Processor") or ""
        family = ", ".join(f"{key} {fields[key]}" for key in ("cpu family", "model") if fields.get(key))
        if name:
            return f"{name} ({family})" if family else name
    return platform.processor() or platform.machine() or "n/a"


def this_host() -> Host:
    """The host this process runs on."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return Host(cpu=cpu_name(), cores=cores, hostname=platform.node() or "n/a")


def gpu_names() -> list[str]:
    """Names of the GPUs that NVIDIA's driver lists; empty where it does not run."""
    folder = Path("/proc/driver/nvidia/gpus")
    names = []
    for info in sorted(folder.glob("*/information")) if folder.is_dir() else ():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                names.append(value.strip())
    return names


def require_calibrated_here(machine: Machine, host: Host | None = None) -> None:
    """Raise UserError when a calibrated machine file was made on another processor, number of cores, or other GPUs.

    Catalogue machines are never refused. host: defaults to this one.
    """
    if not machine.is_calibrated_host:
        return
    here = host or this_host()
    cores = machine.provenance.get("cores")
    if not isinstance(cores, int):
        raise UserError(f"machine {machine.name!r} names {cores!r} as its cores: run 'janus calibrate' here again")
    there = Host(
        cpu=str(machine.provenance.get("cpu")), cores=cores,
        hostname=str(machine.provenance.get("hostname")),
    )  # fmt: skip
    if (there.cpu, there.cores) != (here.cpu, here.cores):
        raise UserError(
            f"machine {machine.name!r} was calibrated on {there.cores} cores of {there.cpu} ({there.hostname}), "
            f"this host has {here.cores} cores of {here.cpu} ({here.hostname}): run 'janus calibrate' here"
        )
    gpu = machine.provenance.get("gpu")
    if gpu is not None and host is None and gpu not in gpu_names():
        raise UserError(
            f"machine {machine.name!r} was calibrated on GPUs {gpu}, this host has "
            f"{', '.join(gpu_names()) or 'none that its driver lists'}: run 'janus calibrate' here"
        )
