"""Where a result comes from: code, versions, hosts, devices, command. What is not known is "n/a", never guessed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from janus import DISTRIBUTION, __version__
from janus.parallel.communication import Communicator

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
        return "n/a"


def device_name(device: torch.device) -> str:
    """Name of the accelerator, or of the processor where the host tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "n/a"


def describe(communicator: Communicator) -> dict[str, Any]:
    """Provenance of a run. All ranks call it; every rank gets the same."""
    mine = {
        "host": communicator.host,
        "device": str(communicator.device),
        "device_name": device_name(communicator.device),
        "threads": torch.get_num_threads(),
    }
    ranks = communicator.gather_objects(mine)
    return {
        "git_revision": git_revision(),
        "versions": {DISTRIBUTION: __version__, "python": platform.python_version()}
        | {name: _version_of(name) for name in VERSIONED},
        "hosts": sorted({rank["host"] for rank in ranks}),
        "device_per_rank": [rank["device"] for rank in ranks],
        "device_name": ranks[0]["device_name"],
        "threads_per_rank": [rank["threads"] for rank in ranks],
        "launcher": communicator.launcher,
        "transport": communicator.transport,
        "cores_of_first_host": os.cpu_count(),
        "command": " ".join(sys.argv),
    }


def is_oversubscribed(communicator: Communicator) -> bool:
    """Whether any host runs more threads of this job than it has cores, or any GPU more than one rank."""
    local_threads = communicator.local_size * torch.get_num_threads()
    mine = local_threads > (os.cpu_count() or 1)
    return any(communicator.gather_objects(mine))
