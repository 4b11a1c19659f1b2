"""What one rank measures on its host: messages between two ranks, and the trainer's collectives over its axes.

Hosts are namespaces of one machine and share its clock, so ranks agree on an instant, start at it, and a time is that
of the last rank to finish. It does not own how ranks are started (``launch.py``) nor what the times should be
(``prediction.py``).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist

from janus.parallel.axis import Axis
from janus.parallel.communication import Communicator, connect
from shaped.lifetime import end_with_parent

AHEAD_S = 0.02  # from the agreement on an instant to that instant
REAL_TIME_PRIORITY = 1  # below the switch; other work on the machine must not show
ROUND_TRIPS = 4
MESSAGE_REPETITIONS = 5


def start_together(communicator: Communicator) -> float:
    """Wait for an instant that all ranks have agreed on; by how much this rank missed it [s]."""
    instant = torch.tensor([time.monotonic() + AHEAD_S], dtype=torch.float64)
    begin_s = float(communicator.all_reduce_max(instant))
    time.sleep(max(0.0, begin_s - time.monotonic()))  # no last look at the clock: ranks share cores
    return time.monotonic() - begin_s


def measured_s(communicator: Communicator, action: Callable[[], None], repetitions: int) -> dict[str, list[float]]:
    """Seconds from the common start until the last rank is done, and by how much the last rank missed the start."""
    found: dict[str, list[float]] = {"seconds": [], "late_s": []}
    for _ in range(repetitions):
        communicator.barrier()
        late_s = start_together(communicator)
        begin_s = time.monotonic()
        action()
        mine = torch.tensor([time.monotonic() - begin_s + late_s, late_s], dtype=torch.float64)
        slowest = communicator.all_reduce_max(mine).tolist()
        found["seconds"].append(slowest[0])
        found["late_s"].append(slowest[1])
    return found


def make_action(collective: str, axis: Axis, size_bytes: int) -> Callable[[], None]:
    """One call of a collective of size m as perfmodel counts it (``perfmodel/network/schedule.py``)."""
    n = axis.size
    whole = torch.ones(size_bytes // (4 * n) * n)
    piece = torch.ones(len(whole) // n)
    output = torch.empty_like(whole)
    rows = [len(piece)] * n
    return {
        "all_reduce": lambda: axis.all_reduce(whole, "max").wait(),
        "all_gather": lambda: axis.all_gather(output, piece).wait(),
        "reduce_scatter": lambda: axis.reduce_scatter(piece, whole).wait(),
        "all_to_all": lambda: axis.all_to_all(output, whole, rows, rows).wait(),
    }[collective]


def time_collectives(communicator: Communicator, cases: Sequence[dict[str, Any]]) -> None:
    """Each case: name and groups of an axis, collective, sizes with repetitions. Rank 0 prints a line per size."""
    for case in cases:
        axis = communicator.make_axis(f"{case['axis']} {case['collective']}", case["groups"])
        make_action(case["collective"], axis, 1 << 20)()  # connects, and opens the windows of its connections
        for size_bytes, repetitions in case["sizes"]:
            found = measured_s(communicator, make_action(case["collective"], axis, size_bytes), repetitions)
            row = {key: case[key] for key in ("axis", "groups", "collective")}
            say(communicator, {"kind": "collective", **row, "size_bytes": size_bytes, **found})


def make_exchange(communicator: Communicator, source: int, target: int, size_bytes: int) -> Callable[[], None]:
    """A message there and back, ROUND_TRIPS times. Other ranks do nothing."""
    rank, buffer = communicator.rank, torch.ones(size_bytes, dtype=torch.uint8)
    send, receive = mpi_messages() if communicator.transport == "mpi" else (dist.send, dist.recv)

    def there_and_back() -> None:
        for _ in range(ROUND_TRIPS):
            send(buffer, target)
            receive(buffer, target)

    def back_and_there() -> None:
        for _ in range(ROUND_TRIPS):
            receive(buffer, source)
            send(buffer, source)

    return {source: there_and_back, target: back_and_there}.get(rank, lambda: None)


def mpi_messages() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Send and receive that wait as the trainer's collectives wait (``janus/parallel/mpi_axis.py``)."""
    from mpi4py import MPI

    from janus.parallel.mpi_axis import LONGEST_PAUSE_S, SHORTEST_PAUSE_S

    def wait(request: MPI.Request) -> None:
        pause_s = SHORTEST_PAUSE_S
        while not request.Test():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    world = MPI.COMM_WORLD
    return (
        lambda buffer, rank: wait(world.Isend(buffer.numpy(), rank)),
        lambda buffer, rank: wait(world.Irecv(buffer.numpy(), rank)),
    )


def each_way(found: dict[str, list[float]]) -> dict[str, list[float]]:
    """Seconds of one message from those of ROUND_TRIPS round trips."""
    return {**found, "seconds": [seconds / (2 * ROUND_TRIPS) for seconds in found["seconds"]]}


def time_messages(communicator: Communicator, pairs: Sequence[Sequence[int]], sizes: Sequence[int]) -> None:
    """There and back between pairs of ranks, while all others are idle."""
    for source, target in pairs:
        measured_s(communicator, make_exchange(communicator, source, target, sizes[-1]), 1)  # connects
        for size_bytes in sizes:
            exchange = make_exchange(communicator, source, target, size_bytes)
            found = measured_s(communicator, exchange, MESSAGE_REPETITIONS)
            row = {"pair": [source, target], "size_bytes": size_bytes}
            say(communicator, {"kind": "message", **row, **each_way(found)})


def time_reduction(communicator: Communicator) -> None:
    """Bytes per second of a sum on this rank alone."""
    values, other = torch.ones(1 << 20), torch.ones(1 << 20)
    begin_s = time.monotonic()
    for _ in range(5):
        values += other
    say(communicator, {"kind": "reduction", "bytes_per_s": 5 * 4 * len(values) / (time.monotonic() - begin_s)})


def say(communicator: Communicator, line: dict[str, Any]) -> None:
    if communicator.rank == 0:
        print(json.dumps(line), flush=True)


def run(job: dict[str, Any]) -> None:
    """Everything that the job asks for; rank 0 prints JSON lines."""
    end_with_parent()
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))
    torch.set_num_threads(1)
    communicator = connect(device="cpu", transport=job["transport"], timeout_s=300.0)
    communicator.local_size = communicator.world_size  # hosts share this machine's cores: waits must not fill them
    time_reduction(communicator)
    time_messages(communicator, job["pairs"], job["message_sizes"])
    time_collectives(communicator, job["cases"])
    communicator.leave(0)
