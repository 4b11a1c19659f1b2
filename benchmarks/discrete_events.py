"""Speed of the discrete events: all-to-all message by message, and one training step's collectives on whole machines.

Rows of "all_to_all": 64 MiB per rank over 25 GB/s links, every message a flow of its own. seconds: wall time of one
call of simulate (routes, symmetry and events), after the compiled functions were loaded; predicted_ms: what it found.
"degraded": a tenth of the links keeps half of its capacity, so that hardly two ranks are alike and little collapses;
tolerance as given in the row. batches: events taken together. Rows of "step": wall time of one FS-3D step of
MatRIS-MoE-L, prices and streams; compute at 40 % of the devices' FP32 peak, 2 us per message, 2 % compute noise.

examples:
  python benchmarks/discrete_events.py
  python benchmarks/discrete_events.py --json > benchmarks/results/discrete_events.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from typing import Any

import numba
import numpy as np
import simpy

import janus
from janus.layout import Layout
from janus.presets import preset
from perfmodel.full_machine import MEAN_CONFIGURATION
from perfmodel.machine import load_machine
from perfmodel.network.algorithms import make_schedule
from perfmodel.network.cluster import Cluster
from perfmodel.network.dragonfly import Dragonfly
from perfmodel.network.fabric import Fabric
from perfmodel.network.fat_tree import FatTree
from perfmodel.network.flow_events import simulate
from perfmodel.network.noise import Noise
from perfmodel.network.routes import Transport
from perfmodel.network.switch import SingleSwitch
from perfmodel.network.training_step import step_sizes, training_step_collectives

LINK_BYTES_PER_S = 25e9
SIZE_BYTES = 64 * 2**20
TRANSPORT = Transport(overhead_s=1e-6)
DEGRADED = Noise(degraded_links=0.1, degraded_capacity=0.5, seed=1)
WIRES = {"wire_latency_s": 1e-7, "switch_latency_s": 3e-7}
MOST_ADAPTIVE = 256  # endpoints: every message crosses some twenty links, all of them coupled
STEPS = {"cnis": 5632, "lineshine": 20480}  # nodes


def fabrics(num_ports: int) -> dict[str, Fabric]:
    """What the all-to-alls run on."""
    tree = {"children": (32, 32), "parents": (1, 32), "link_bytes_per_s": LINK_BYTES_PER_S, **WIRES}
    dragonfly = {"groups": 16, "switches_per_group": 8, "ports_per_switch": 8, "links_per_group_pair": 2,
                 "port_bytes_per_s": LINK_BYTES_PER_S, **WIRES}  # fmt: skip
    return {
        "single switch": SingleSwitch(num_ports=num_ports, port_bytes_per_s=LINK_BYTES_PER_S, **WIRES),
        "fat tree 4:1": FatTree(num_ports=num_ports, taper=4.0, routing="d-mod-k", **tree),
        "dragonfly, minimal": Dragonfly(num_ports=num_ports, routing="minimal", **dragonfly),
        "dragonfly, adaptive": Dragonfly(num_ports=min(num_ports, MOST_ADAPTIVE), routing="adaptive", **dragonfly),
    }


def all_to_all_row(
    name: str, fabric: Fabric, num_ranks: int, algorithm: str, *, degraded: bool = False, tolerance: float = 0.0
) -> dict[str, Any]:
    """One call of simulate."""
    cluster = Cluster(num_nodes=num_ranks, ranks_per_node=1, fabric=fabric, nics_per_node=1, node_bytes_per_s=1e11,
                      node_latency_s=1e-6)  # fmt: skip
    disturbances = DEGRADED.disturbances(num_ranks, cluster.num_links) if degraded else None
    schedule = make_schedule("all_to_all", algorithm, num_ranks)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    outcome = simulate(schedule, cluster, TRANSPORT, SIZE_BYTES, disturbances=disturbances, tolerance=tolerance)
    return {
        "fabric": name, "ranks": num_ranks, "algorithm": algorithm, "degraded": degraded, "tolerance": tolerance,
        "messages": num_ranks * (num_ranks - 1), "seconds": round(time.perf_counter() - begin, 3),
        "cpu_seconds": round(time.process_time() - begin_cpu, 3), "batches": outcome.batches,
        "predicted_ms": round(outcome.time_s * 1e3, 4),
    }  # fmt: skip


def all_to_all_rows(num_ranks: int) -> list[dict[str, Any]]:
    rows = []
    for name, fabric in fabrics(num_ranks).items():
        for algorithm in ("pairwise", "linear"):
            if "adaptive" in name:
                rows.append(all_to_all_row(name, fabric, fabric.num_ports, algorithm, tolerance=0.01))
                continue
            rows.append(all_to_all_row(name, fabric, num_ranks, algorithm))
            rows.append(all_to_all_row(name, fabric, num_ranks, algorithm, degraded=True, tolerance=0.01))
    return rows


def step_row(name: str, num_nodes: int) -> dict[str, Any]:
    """One step of a full machine."""
    machine, model = load_machine(name), preset("matris-moe-l")
    ranks = num_nodes * machine.devices_per_node
    layout = Layout(unit=8, replicas=ranks // 8, shard_degree=8, graph_degree=8, expert_degree=8)
    peak = machine.peak("float32")
    assert peak is not None
    begin, begin_cpu = time.perf_counter(), time.process_time()
    sizes = step_sizes(model, MEAN_CONFIGURATION, layout, flops_per_s=0.4 * peak.flops_per_s)
    outcome = training_step_collectives(machine, layout, sizes, transport=Transport(overhead_s=2e-6),
                                        noise=Noise(compute_deviation=0.02, seed=1))  # fmt: skip
    return {
        "machine": name, "nodes": num_nodes, "ranks": outcome.ranks, "represented": outcome.represented,
        "operations": len(outcome.program), "seconds": round(time.perf_counter() - begin, 3),
        "cpu_seconds": round(time.process_time() - begin_cpu, 3), "step_s": round(outcome.step_s, 4),
        "exposed_s": round(outcome.exposed_s, 4),
        "algorithms": {" ".join(key[:2]): chosen for key, chosen in outcome.algorithms.items()},
    }  # fmt: skip


def provenance() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "janus": janus.__version__, "cores": os.cpu_count(),
        "processor": platform.machine(), "python": platform.python_version(), "numpy": np.__version__,
        "numba": numba.__version__, "simpy": simpy.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024, help="endpoints of the all-to-alls (default 1024)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    all_to_all_row("warm-up", fabrics(128)["dragonfly, minimal"], 128, "pairwise")
    result = {
        "provenance": provenance(),
        "all_to_all": all_to_all_rows(given.ranks),
        "step": [step_row(name, num_nodes) for name, num_nodes in STEPS.items()],
    }
    if given.json:
        print(json.dumps(result, indent=1))
        return
    for row in result["all_to_all"] + result["step"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
