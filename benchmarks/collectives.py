"""Time of collectives over MPI and gloo on this host, and how much of one travels behind compute.

Buffers are per rank: an all-to-all of b bytes hands b/n to each of the n ranks. Each number is the smallest over
batches of the mean in a batch, of the slowest rank. "hidden" is the part of an all-to-all's time that is saved by
putting compute, or a pause in which the processor is free, between start and finish: 100 % where the two together take
as long as the longer one. A pause shows what the transport does by itself, compute what is left of it where ranks and
transfers share the cores.

examples:
  mpiexec -n 2 python benchmarks/collectives.py
  mpiexec -n 4 python benchmarks/collectives.py --json > benchmarks/results/collectives_4.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mpi4py
import torch

import janus
from janus.parallel.axis import Axis
from janus.parallel.collectives import finish, start_all_to_all
from janus.parallel.communication import Communicator, connect

SIZES = {8: 200, 64 << 10: 100, 1 << 20: 20, 16 << 20: 4}  # bytes -> calls in a batch
HIDDEN_SIZES = {1 << 20: 10, 16 << 20: 3}
BATCHES = 5


def measured_s(communicator: Communicator, actions: dict[str, Callable[[], None]], calls: int) -> dict[str, float]:
    """Seconds of one call of each action, batches taken in turn: smallest batch mean, slowest rank."""
    best_s = dict.fromkeys(actions, float("inf"))
    for batch in range(-1, BATCHES):  # the first warms up
        for name, action in actions.items():
            communicator.barrier()
            begin = time.perf_counter()
            for _ in range(calls):
                action()
            if batch >= 0:
                best_s[name] = min(best_s[name], (time.perf_counter() - begin) / calls)
    slowest_s = communicator.all_reduce_max(torch.tensor(list(best_s.values()), dtype=torch.float64))
    return dict(zip(best_s, slowest_s.tolist(), strict=True))


def even_rows(axis: Axis, message_bytes: int) -> list[int]:
    return [message_bytes // axis.size] * axis.size


def time_collectives(communicator: Communicator, axis: Axis, message_bytes: int, calls: int) -> dict[str, float]:
    """Seconds of each collective, started and waited for at once."""
    values = torch.ones(message_bytes // 4)
    moved = values.view(torch.uint8)
    output, rows = torch.empty_like(moved), even_rows(axis, message_bytes)
    actions = {
        "all_to_all": lambda: axis.all_to_all(output, moved, rows, rows).wait(),
        "all_reduce": lambda: axis.all_reduce(values.zero_(), "sum").wait(),
    }
    return measured_s(communicator, actions, calls)


def time_hidden(communicator: Communicator, axis: Axis, message_bytes: int, calls: int) -> dict[str, float]:
    """An all-to-all alone, and with something of about that time between start and finish: compute, or a pause."""
    width = 256
    moved = torch.ones(message_bytes // (4 * width), width)
    rows = even_rows(axis, len(moved))
    matrix = torch.full((128, 128), 1e-2)

    def compute(products: int) -> None:
        for _ in range(products):
            matrix @ matrix

    def exchange(meanwhile: Callable[[], None]) -> None:
        started = start_all_to_all(moved, axis, rows, rows)
        meanwhile()
        finish(started)

    first_s = measured_s(communicator, {"alone": lambda: exchange(int), "products": lambda: compute(20)}, calls)
    products = max(1, round(first_s["alone"] / first_s["products"] * 20))
    fillers = {"compute": lambda: compute(products), "pause": lambda: time.sleep(first_s["alone"])}
    actions = {"alone": lambda: exchange(int), **fillers}
    actions |= {f"with {name}": lambda filler=filler: exchange(filler) for name, filler in fillers.items()}
    found_s = measured_s(communicator, actions, calls)
    hidden = {
        f"hidden by {name}": (found_s["alone"] + found_s[name] - found_s[f"with {name}"])
        / min(found_s["alone"], found_s[name])
        for name in fillers
    }
    return {f"{name} s": value for name, value in found_s.items()} | hidden


def measure(communicator: Communicator) -> dict:
    everyone = [list(range(communicator.world_size))]
    transports = dict.fromkeys([communicator.transport, "gloo" if communicator.device.type == "cpu" else "nccl"])
    results: dict[str, dict] = {}
    for transport in transports:
        axis = communicator.make_axis("bench", everyone, transport=transport)
        results[transport] = {
            "collectives_s": {size: time_collectives(communicator, axis, size, n) for size, n in SIZES.items()},
            "behind_something": {size: time_hidden(communicator, axis, size, n) for size, n in HIDDEN_SIZES.items()},
        }
    return results


def named(message_bytes: int) -> str:
    for unit, unit_bytes in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if message_bytes >= unit_bytes:
            return f"{message_bytes // unit_bytes} {unit}"
    return f"{message_bytes} B"


def print_table(results: dict, world_size: int) -> None:
    print(f"{world_size} ranks, milliseconds")
    print(f"{'transport':<10}{'bytes':>8}{'all-to-all':>14}{'all-reduce':>14}")
    for transport, found in results.items():
        for size, seconds in found["collectives_s"].items():
            values = "".join(f"{1e3 * seconds[name]:>14.3f}" for name in ("all_to_all", "all_reduce"))
            print(f"{transport:<10}{named(size):>8}{values}")
    columns = ("alone", "compute", "with compute", "pause", "with pause")
    print(f"{'transport':<10}{'bytes':>8}" + "".join(f"{name:>14}" for name in columns) + "   hidden by each")
    for transport, found in results.items():
        for size, row in found["behind_something"].items():
            values = "".join(f"{1e3 * row[f'{name} s']:>14.3f}" for name in columns)
            hidden = f"{row['hidden by compute']:>8.0%}{row['hidden by pause']:>8.0%}"
            print(f"{transport:<10}{named(size):>8}{values}{hidden}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--transport", default="mpi", help="mpi compares MPI with gloo; gloo or nccl: that one alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    communicator = connect(transport=options.transport)
    results = measure(communicator)
    if communicator.rank == 0:
        if options.json:
            document = {
                "benchmark": "collectives", "world_size": communicator.world_size, "results": results,
                "janus": janus.__version__, "torch": torch.__version__, "mpi4py": mpi4py.__version__,
                "cores": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()[0],
                "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
            print(json.dumps(document, indent=1))
        else:
            print_table(results, communicator.world_size)
    communicator.leave(0)


if __name__ == "__main__":
    main()
