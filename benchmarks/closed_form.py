"""Speed of the closed form: one price for many layouts, coefficients once, and what sampling at scale gets wrong.

Calls: a planner's question: 100,000 (collective, algorithm, group, bytes) drawn with a fixed seed over groups of every
power of two of a machine, strided as shard, expert and replica axes are; "amortised" is the time of pricing them all,
without or with computing the coefficients, divided by their number. Coefficients are those of all groups together,
exchanges sampled above 40,000 messages. Sampling: all-to-alls of 1,024 ranks priced by a sample of their exchanges,
against all of them (largest relative difference over 1 KiB to 1 GiB), and the time of the sampled price for the whole
machine. Evaluation is the smallest time of --repeats, coefficients are computed once; one core.

examples:
  python benchmarks/closed_form.py
  python benchmarks/closed_form.py --machine leonardo --json > benchmarks/results/closed_form.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from perfmodel.machine import load_machine
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.closed_form import Price, price, times_s
from perfmodel.network.cluster import Cluster, build_cluster
from perfmodel.network.routes import Transport

TRANSPORT = Transport(overhead_s=1e-6, latency_s=1e-6, gap_s=2e-7, reduction_bytes_per_s=1e10)
EAGER = Transport(overhead_s=1e-6, latency_s=1e-6, gap_s=2e-7, rendezvous_s=3e-6, eager_bytes=8192.0)
ASKED = (
    ("all_reduce", "ring"), ("all_reduce", "rabenseifner"), ("all_gather", "ring"), ("reduce_scatter", "ring"),
    ("all_to_all", "pairwise"), ("all_reduce", "recursive_doubling"), ("broadcast", "binomial"),
)  # fmt: skip
CALLS = 100_000
PLANNED_MESSAGES = 40_000


def smallest_s(action: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def groups_of(cluster: Cluster) -> list[np.ndarray]:
    """Groups of 2, 4, 8, ... up to 1,024 ranks, next to each other and at strides of powers of four."""
    found = []
    size = 2
    while size <= min(cluster.num_ranks, 1024):
        stride = 1
        while size * stride <= cluster.num_ranks:
            found.append(np.arange(size, dtype=np.int64) * stride)
            stride *= 4
        size *= 2
    return found


def all_prices(cluster: Cluster) -> list[Price]:
    return [
        price(make_schedule(*name, len(group)), cluster, group, exact_messages=PLANNED_MESSAGES)
        for group in groups_of(cluster)
        for name in ASKED
    ]


def planner(machine_name: str, num_nodes: int, repeats: int) -> dict[str, Any]:
    cluster = build_cluster(load_machine(machine_name), num_nodes=num_nodes, ranks_per_node=1)
    begin = time.perf_counter()
    prices = all_prices(cluster)
    coefficients_s = time.perf_counter() - begin
    generator = np.random.default_rng(1)
    which = generator.integers(0, len(prices), CALLS)
    sizes = 2.0 ** generator.uniform(10, 30, CALLS)
    found: dict[str, Any] = {
        "nodes": num_nodes, "prices": len(prices), "calls": CALLS, "coefficients_s": coefficients_s,
    }  # fmt: skip
    for name, transport in (("plain", TRANSPORT), ("eager_and_rendezvous", EAGER)):
        seconds = smallest_s(lambda t=transport: times_s(prices, which, sizes, t), repeats)
        found[name] = {"evaluation_s": seconds, "amortised_us": seconds / CALLS * 1e6}
        found[name]["amortised_with_coefficients_us"] = (seconds + coefficients_s) / CALLS * 1e6
    return found


def sampling(machine_name: str, num_nodes: int) -> dict[str, Any]:
    """Sampled against exact at 1,024 ranks, and the time of a sampled price at full scale."""
    machine = load_machine(machine_name)
    cluster = build_cluster(machine, num_nodes=1024, ranks_per_node=1)
    whole = build_cluster(machine, num_nodes=num_nodes, ranks_per_node=1)
    sizes = 2.0 ** np.arange(10, 31)
    found: dict[str, Any] = {}
    for algorithm in ("pairwise", "linear", "linear_sync"):
        schedule = make_schedule("all_to_all", algorithm, 1024)
        exact_s = price(schedule, cluster).time_s(sizes, TRANSPORT)
        sampled_s = price(schedule, cluster, exact_messages=0).time_s(sizes, TRANSPORT)
        begin = time.perf_counter()
        price(make_schedule("all_to_all", algorithm, num_nodes), whole)
        found[algorithm] = {
            "largest_difference_at_1024": float(np.abs(sampled_s / exact_s - 1).max()),
            "whole_machine_s": time.perf_counter() - begin,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="lineshine")
    parser.add_argument("--nodes", type=int, default=None, help="default: all nodes of the machine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    num_nodes = arguments.nodes or load_machine(arguments.machine).nodes
    record = {
        "benchmark": "closed_form", "machine": arguments.machine,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"), "processor": platform.machine(),
        "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__,
        "planner": planner(arguments.machine, num_nodes, arguments.repeats),
        "sampling": sampling(arguments.machine, num_nodes),
    }  # fmt: skip
    print(json.dumps(record, indent=1) if arguments.json else as_text(record))


def as_text(record: dict[str, Any]) -> str:
    asked = record["planner"]
    lines = [
        f"{record['machine']}, {asked['nodes']} nodes: {asked['calls']} calls over {asked['prices']} prices",
        f"coefficients of all of them, once: {asked['coefficients_s']:.2f} s",
    ]
    for name in ("plain", "eager_and_rendezvous"):
        one = asked[name]
        lines.append(
            f"{name}: {one['evaluation_s']:.3f} s, {one['amortised_us']:.3f} us per call, "
            f"{one['amortised_with_coefficients_us']:.2f} us with the coefficients"
        )
    lines += [
        f"all-to-all {name}: sampled within {one['largest_difference_at_1024']:.2%} of all exchanges at 1,024 ranks; "
        f"whole machine priced in {one['whole_machine_s']:.2f} s"
        for name, one in record["sampling"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
