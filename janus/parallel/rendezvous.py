"""How the processes of one job find each other: launcher, ranks and the key-value store they share.

It does not own collectives (``communication.py``) nor the watch over failures (``watchdog.py``).
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore, rendezvous

from janus.errors import UserError
from janus.parallel.departure import guard_older_handlers
from janus.parallel.launcher import MPI_LAUNCHERS, find_launcher
from janus.parallel.process_manager import ProcessManager

STORE_TIMEOUT = timedelta(seconds=300)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process of a job. local_rank of local_size: among the ranks on this host. store: None for one process.

    mpi: a communicator of all ranks in our order where MPI stays at work, else None.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    store: Any = None
    mpi: Any = None


SINGLE = Place(launcher="single", rank=0, world_size=1, local_rank=0, local_size=1)


def find_place(environment: Mapping[str, str] = os.environ, *, with_mpi: bool = False) -> Place:
    """The place of this process in its job, store connected. with_mpi: MPI is there to stay, as ``Place.mpi``,
    which stays None where ranks are started without MPI.

    Raises UserError when the launch is inconsistent.
    """
    launcher = find_launcher(environment)
    if launcher == "torchrun":
        return _place_by_torchrun(environment)
    if launcher == "mpiexec" and not with_mpi and "PMI_FD" in environment:
        return _place_by_hydra(environment)
    if launcher == "mpiexec":
        return _place_by_mpi(environment, with_mpi)
    if launcher == "srun":
        place = _place_by_slurm(environment)
        return replace(place, mpi=_mpi_beside_slurm(place)) if with_mpi and place.world_size > 1 else place
    return SINGLE


def _load_mpi() -> Any:
    """mpi4py's MPI, initialised by the import."""
    if "mpi4py.MPI" not in sys.modules:
        guard_older_handlers()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"an MPI launcher started this rank but mpi4py cannot load MPI ({error}): install one"
        ) from None
    return MPI


def _mpi_beside_slurm(place: Place) -> Any:
    """All ranks as MPI sees them, in srun's order."""
    world = _load_mpi().COMM_WORLD
    if world.size != place.world_size:
        raise UserError(
            f"srun started {place.world_size} ranks but MPI sees {world.size}: "
            "name the interface of your MPI library (srun --mpi=..., see srun --mpi=list) or use transport 'gloo'"
        )
    return world.Split(0, place.rank)


def _place_by_torchrun(environment: Mapping[str, str]) -> Place:
    world_size = int(environment["WORLD_SIZE"])
    store = next(rendezvous("env://", timeout=STORE_TIMEOUT))[0] if world_size > 1 else None
    return Place(
        launcher="torchrun", rank=int(environment["RANK"]), world_size=world_size,
        local_rank=int(environment["LOCAL_RANK"]), local_size=int(environment.get("LOCAL_WORLD_SIZE", world_size)),
        store=store,
    )  # fmt: skip


def _place_by_hydra(environment: Mapping[str, str]) -> Place:
    """Ranks from Hydra's variables; rank 0 opens the store on a free port and tells all others its address."""
    rank, size = int(environment["PMI_RANK"]), int(environment["PMI_SIZE"])
    local_rank, local_size = int(environment["MPI_LOCALRANKID"]), int(environment["MPI_LOCALNRANKS"])
    try:
        manager = ProcessManager(environment)
        store, address = None, ""
        if rank == 0 and size > 1:
            store, address = _open_store(everyone_is_here=local_size == size)
        if size > 1:
            address = manager.broadcast(address, is_source=rank == 0)
        manager.leave()
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"mpiexec started this rank but cannot be talked to ({error}): use its -pmi-port") from None
    return Place(
        launcher="mpiexec", rank=rank, world_size=size, local_rank=local_rank, local_size=local_size,
        store=store if rank == 0 or size == 1 else _join_store(address),
    )  # fmt: skip


def _place_by_mpi(environment: Mapping[str, str], stay: bool) -> Place:
    """Ranks from MPI, which is finalised at once unless it is to stay: torch carries the traffic."""
    MPI = _load_mpi()
    world = MPI.COMM_WORLD
    for size_name in (name for marker, name in MPI_LAUNCHERS.items() if name and marker in environment):
        started = int(environment.get(size_name, world.size))
        if started != world.size:
            raise UserError(
                f"the launcher started {started} ranks but mpi4py sees {world.size}: "
                "use the mpiexec of the MPI library that mpi4py loads (the one beside this Python)"
            )
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    rank, size, local_rank, local_size = world.rank, world.size, local.rank, local.size
    local.Free()
    store = None
    if size > 1:
        address = ""
        if rank == 0:
            store, address = _open_store(everyone_is_here=local_size == size)
        address = world.bcast(address, root=0)
        store = store or _join_store(address)
    if not stay or size == 1:
        MPI.Finalize()
    return Place(
        launcher="mpiexec", rank=rank, world_size=size, local_rank=local_rank, local_size=local_size, store=store,
        mpi=world.Dup() if stay and size > 1 else None,
    )  # fmt: skip


def _open_store(*, everyone_is_here: bool) -> tuple[TCPStore, str]:
    """Rank 0's store on a free port, and its address as host:port."""
    host = "127.0.0.1" if everyone_is_here else socket.gethostname()
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT)
    return store, f"{host}:{store.port}"


def _join_store(address: str) -> TCPStore:
    host, _, port = address.rpartition(":")
    return TCPStore(host, int(port), is_master=False, timeout=STORE_TIMEOUT)


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: ``node[007-009,12],other`` gives ``node007``."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodelist)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST is {nodelist!r}: it names no host")
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + (suffix or "")


def _place_by_slurm(environment: Mapping[str, str]) -> Place:
    """Ranks from srun's variables; the port from MASTER_PORT or, so that two steps differ, from job and step."""
    rank, size = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
    local_rank = int(environment.get("SLURM_LOCALID", 0))
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", str(size))
    counts = [int(n) for n, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", per_node) for _ in range(int(repeat or 1))]
    local_size = counts[int(environment.get("SLURM_NODEID", 0))]
    store = None
    if size > 1:
        job, step = int(environment.get("SLURM_JOB_ID", 0)), int(environment.get("SLURM_STEP_ID", 0))
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        port = int(environment.get("MASTER_PORT", 20000 + (job * 31 + step) % 12000))  # below the ephemeral ports
        store = TCPStore(host, port, is_master=rank == 0, wait_for_workers=False, timeout=STORE_TIMEOUT)
    return Place(launcher="srun", rank=rank, world_size=size, local_rank=local_rank, local_size=local_size, store=store)
