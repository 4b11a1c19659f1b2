"""Starts one rank per host of a shaped network, over gloo or MPI, and reads the lines that rank 0 prints.

No rank may find a way around the network: gloo is tied to the host's device, MPI to TCP with its shared memory off.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shaped.network import DEVICE, ShapedNetwork

PORT = 29500
STOP_S = 5.0
# MPICH takes ranks of one kernel for neighbours even across namespaces, and both it and UCX would share memory
MPI_BY_TCP_ONLY = {
    "MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ucx", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": DEVICE,
}  # fmt: skip


def run_gloo(network: ShapedNetwork, words: Sequence[str], timeout_s: float) -> list[dict[str, Any]]:
    """One rank per host by torchrun's variables."""
    hosts = network.shape.num_hosts
    common = {
        "MASTER_ADDR": network.shape.address(0), "MASTER_PORT": str(PORT), "WORLD_SIZE": str(hosts),
        "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": DEVICE,
    }  # fmt: skip
    processes = []
    try:
        for rank in range(hosts):
            output = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            environment = common | {"RANK": str(rank)}
            processes.append(network.start(rank, [sys.executable, *words], environment, output))
        return finish(processes, timeout_s)
    finally:
        stop(processes)


def run_mpi(
    network: ShapedNetwork, words: Sequence[str], settings: Mapping[str, str], timeout_s: float
) -> list[dict[str, Any]]:
    """One rank per host by Hydra, which runs on host 0 and reaches the others through a script in ssh's place.

    settings: MPICH's own (``MPIR_CVAR_...``), such as the algorithm of each collective.
    """
    hosts = range(network.shape.num_hosts)
    script = network.folder / "on_host"
    script.write_text(launcher_script({network.shape.host_name(host): network.words_on(host) for host in hosts}))
    script.chmod(0o700)
    mpiexec = Path(sys.executable).parent / "mpiexec"
    launcher = [
        str(mpiexec) if mpiexec.exists() else "mpiexec", "-launcher", "ssh", "-launcher-exec", str(script),
        "-localhost", network.shape.host_name(0), "-hosts", ",".join(map(network.shape.host_name, hosts)),
        "-ppn", "1", "-n", str(len(hosts)),
    ]  # fmt: skip
    environment = {**MPI_BY_TCP_ONLY, **settings, "GLOO_SOCKET_IFNAME": DEVICE}
    process = network.start(0, [*launcher, sys.executable, *words], environment, subprocess.PIPE)
    try:
        return finish([process], timeout_s)
    finally:
        stop([process])


def launcher_script(words_on: Mapping[str, Sequence[str]]) -> str:
    """A shell script that takes ssh's words (options, host, command) and runs the command on the host."""
    # Hydra's process on the host ends with mpiexec
    cases = "\n".join(
        f'{name}) exec setpriv --pdeathsig KILL {" ".join(words)} sh -c "exec $*" ;;'
        for name, words in words_on.items()
    )
    return (
        '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nhost=$1\nshift\n'
        f'case "$host" in\n{cases}\n*) echo "no host $host" >&2; exit 1 ;;\nesac\n'
    )


def finish(processes: Sequence[subprocess.Popen[str]], timeout_s: float) -> list[dict[str, Any]]:
    """The JSON lines of the first process, once all have ended well. Raises RuntimeError where one has not."""
    output, _ = processes[0].communicate(timeout=timeout_s)
    for rank, process in enumerate(processes):
        if process.wait(timeout=30):
            raise RuntimeError(f"process {rank} on the shaped network ended with exit code {process.returncode}")
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End what still runs, with its children: first by request, so that Hydra ends its ranks, then at once."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, request)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_S)


def lines_of(kind: str, lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (line for line in lines if line["kind"] == kind)
