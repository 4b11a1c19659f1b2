"""Where a result comes from: code, versions, hosts, devices, command. What is not known is "n/a", never guessed.

It owns what a run says of itself in run.json; how a host's facts are read is in ``janus.host_facts``.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from janus import DISTRIBUTION, __version__, host_facts
from janus.parallel.communication import Communicator
from janus.source_digest import source_digest

VERSIONED = ("torch", "numpy", "mpi4py", "ase", "vesin", "safetensors")


def git_revision(folder: Path | None = None) -> str:
    """Commit of the source tree that holds this package, "+changes" appended where it was edited, or "n/a"."""
    root = folder if folder is not None else Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "n/a"

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "n/a"


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return host_facts.not_applicable("not installed")


def device_name(device: torch.device) -> str:
    """Name of the accelerator, or of the processor where the host tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return host_facts.cpu_name()


def library_versions() -> dict[str, str]:
    """Versions of this program, Python and the libraries that decide a measurement on this rank."""
    return {
        DISTRIBUTION: __version__, "python": platform.python_version(),
        **{name: _version_of(name) for name in VERSIONED},
        "cuda": torch.version.cuda or host_facts.not_applicable("this torch was built without CUDA"),
        "hip": torch.version.hip or host_facts.not_applicable("this torch was built without ROCm"),
        "gloo": f"part of torch {torch.__version__}", "nccl": _nccl_version(), "mpi": _mpi_version(),
    }  # fmt: skip


def _mpi_version() -> str:
    """First line of the MPI library's own description. It is not loaded for the asking."""
    if "mpi4py.MPI" not in sys.modules:
        return host_facts.not_applicable("no MPI library is loaded in this run")
    return " ".join(sys.modules["mpi4py.MPI"].Get_library_version().splitlines()[0].split())


def _nccl_version() -> str:
    if not (torch.cuda.is_available() and torch.distributed.is_nccl_available()):
        return host_facts.not_applicable("this torch sees no GPU, or has no NCCL")
    return ".".join(str(part) for part in torch.cuda.nccl.version())


def _facts_of_rank(communicator: Communicator) -> dict[str, Any]:
    """What one rank knows: rank 0 also the code, the first rank of a host also the host."""
    facts: dict[str, Any] = {
        "host": communicator.host, "cores": host_facts.usable_cores(), "device": str(communicator.device),
        "device_name": device_name(communicator.device), "threads": torch.get_num_threads(),
    }  # fmt: skip
    if communicator.local_rank == 0:
        facts["host_facts"] = {
            "clocks": host_facts.cpu_clocks(), "driver": host_facts.gpu_driver(),
            "operating_system": host_facts.operating_system(),
        }  # fmt: skip
    if communicator.rank == 0:
        facts["code"] = {"git_revision": git_revision(), "code_version": f"{__version__}+{source_digest()}"}
    return facts


def describe(communicator: Communicator) -> dict[str, Any]:
    """Provenance of a run. All ranks call it; every rank gets the same."""
    ranks = communicator.gather_objects(_facts_of_rank(communicator))
    return {
        **ranks[0]["code"],
        "versions": library_versions(),
        "hosts": sorted({rank["host"] for rank in ranks}),
        "host_facts": {rank["host"]: rank["host_facts"] for rank in ranks if "host_facts" in rank},
        "placement": [f"{rank['host']} cores {rank['cores']} {rank['device']}" for rank in ranks],
        "device_per_rank": [rank["device"] for rank in ranks],
        "device_name": ranks[0]["device_name"],
        "device_names": sorted({rank["device_name"] for rank in ranks}),
        "threads_per_rank": [rank["threads"] for rank in ranks],
        "launcher": communicator.launcher,
        "transport": communicator.transport,
        "cores_of_first_host": os.cpu_count(),
        "settings": host_facts.settings(),
        "command": " ".join(sys.argv),
    }


def is_oversubscribed(communicator: Communicator) -> bool:
    """Whether any host runs more threads of this job than it has cores, or any GPU more than one rank."""
    local_threads = communicator.local_size * torch.get_num_threads()
    mine = local_threads > (os.cpu_count() or 1)
    return any(communicator.gather_objects(mine))
