"""Time of collectives over MPI and gloo on this host, and how much of one travels behind compute.

Buffers are per rank: an all-to-all of b bytes hands b/n to each of the n ranks. Each number is the smallest over
batches of the mean in a batch, of the slowest rank. "hidden" is the part of an all-to-all's time that start and finish
around as long a compute save: 100 % where the two together take as long as the compute alone.

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


def measured_s(communicator: Communicator, action: Callable[[], None], calls: int) -> float:
    """Seconds of one call: smallest batch mean, slowest rank."""
    action()
    best_s = float("inf")
    for _ in range(BATCHES):
        communicator.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            action()
        best_s = min(best_s, (time.perf_counter() - begin) / calls)
    return float(communicator.all_reduce_max(torch.tensor([best_s], dtype=torch.float64)))


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
    return {name: measured_s(communicator, action, calls) for name, action in actions.items()}


def time_hidden(communicator: Communicator, axis: Axis, message_bytes: int, calls: int) -> dict[str, float]:
    """An all-to-all alone, a compute of about that time alone, and the compute between start and finish."""
    width = 256
    moved = torch.ones(message_bytes // (4 * width), width)
    rows = even_rows(axis, len(moved))
    matrix = torch.full((128, 128), 1e-2)

    def exchange(products: int) -> None:
        started = start_all_to_all(moved, axis, rows, rows)
        compute(products)
        finish(started)

    def compute(products: int) -> None:
        for _ in range(products):
            matrix @ matrix

    alone_s = measured_s(communicator, lambda: exchange(0), calls)
    one_product_s = measured_s(communicator, lambda: compute(20), calls) / 20
    products = max(1, round(alone_s / one_product_s))
    compute_s = measured_s(communicator, lambda: compute(products), calls)
    both_s = measured_s(communicator, lambda: exchange(products), calls)
    saved_s = alone_s + compute_s - both_s
    return {"alone_s": alone_s, "compute_s": compute_s, "both_s": both_s, "hidden": saved_s / min(alone_s, compute_s)}


def measure(communicator: Communicator) -> dict:
    everyone = [list(range(communicator.world_size))]
    transports = dict.fromkeys([communicator.transport, "gloo" if communicator.device.type == "cpu" else "nccl"])
    results: dict[str, dict] = {}
    for transport in transports:
        axis = communicator.make_axis("bench", everyone, transport=transport)
        results[transport] = {
            "collectives_s": {size: time_collectives(communicator, axis, size, n) for size, n in SIZES.items()},
            "behind_compute": {size: time_hidden(communicator, axis, size, n) for size, n in HIDDEN_SIZES.items()},
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
    print(f"{'transport':<10}{'bytes':>8}{'all-to-all':>14}{'compute':>14}{'both':>14}{'hidden':>10}")
    for transport, found in results.items():
        for size, row in found["behind_compute"].items():
            values = "".join(f"{1e3 * row[name]:>14.3f}" for name in ("alone_s", "compute_s", "both_s"))
            print(f"{transport:<10}{named(size):>8}{values}{row['hidden']:>10.0%}")


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
