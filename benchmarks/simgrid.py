"""Flow-level discrete events beside SimGrid: the same links, routes and messages, simulated times and wall times.

Fabrics with single paths (SimGrid has one route per pair): fat tree with d-mod-k routing and 2:1 taper, dragonfly with
minimal routing, torus with odd sides. Traffic: ring all-reduce, pairwise all-to-all, all-to-all all posted at once,
incast (all ranks send to one), a random permutation (seed 7). One rank per port, 25 GB/s links, 1 MiB per message,
rendezvous messages without software costs. SimGrid: network/model CM02, TCP-gamma 0, crosstraffic 0. CM02 shares a
link in inverse proportion to the flows' path latencies, which max-min fairness does not; so times are compared with
latency 0 (column relative) and, for information, with 100 ns per cable and 200 ns per switch (relative_with_latency).

wall_s: of simulate() after one run for compilation, routes included (median of 3); simgrid_wall_s: of SimGrid's run
without building its platform. wall_ratio: SimGrid's over ours. SimGrid runs from its Python binding, with a thread per
rank, which alone slows it ten times and more; --compiled runs the same messages from C++, the fair figure.

Needs SimGrid's Python binding (Debian: python3-simgrid); JANUS_SIMGRID_PYTHON names the Python that has it (default
/usr/bin/python3). --compiled needs its headers (libsimgrid-dev) and a C++ compiler (CXX, default g++).

examples:
  python benchmarks/simgrid.py
  python benchmarks/simgrid.py --large --compiled --json > benchmarks/results/simgrid.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from perfmodel.network.algorithms import make_schedule
from perfmodel.network.cluster import Cluster
from perfmodel.network.fabric import build_fabric
from perfmodel.network.flow_events import simulate
from perfmodel.network.routes import Transport
from perfmodel.network.schedule import Round, Schedule

PLAYER = Path(__file__).with_name("simgrid_player.py")
LINK_BYTES_PER_S = 25e9
MESSAGE_BYTES = 2**20
TIMEOUT_S = 900.0
LATENCIES = {"wire_latency_s": 1e-7, "switch_latency_s": 2e-7}
TORUS_LINKS = {"link_bytes_per_s": LINK_BYTES_PER_S, "port_bytes_per_s": LINK_BYTES_PER_S}
TREE = {"link_bytes_per_s": LINK_BYTES_PER_S, "routing": "d-mod-k"}
DRAGONFLY = {"port_bytes_per_s": LINK_BYTES_PER_S, "routing": "minimal", "paths": 1, "links_per_group_pair": 1}
FABRICS: dict[str, dict[str, tuple[str, dict[str, Any], int]]] = {
    "small": {
        "fat tree": ("fat_tree", TREE | {"children": (8, 8), "parents": (1, 4)}, 64),
        "dragonfly": ("dragonfly", DRAGONFLY | {"groups": 8, "switches_per_group": 4, "ports_per_switch": 2}, 64),
        "torus": ("torus", TORUS_LINKS | {"shape": (5, 5, 3)}, 75),
    },
    "large": {
        "fat tree": ("fat_tree", TREE | {"children": (16, 16), "parents": (1, 8)}, 256),
        "dragonfly": ("dragonfly", DRAGONFLY | {"groups": 16, "switches_per_group": 4, "ports_per_switch": 4}, 256),
        "torus": ("torus", TORUS_LINKS | {"shape": (7, 7, 5)}, 245),
    },
}  # fmt: skip
TRAFFIC = ("ring all-reduce", "pairwise all-to-all", "posted all-to-all", "incast", "random permutation")
TRANSPORT = Transport(eager_bytes=0.0)


def simgrid_python() -> str:
    """The Python that has SimGrid, as named or the system's."""
    return os.environ.get("JANUS_SIMGRID_PYTHON", "/usr/bin/python3")


def simgrid_missing() -> str | None:
    """Why SimGrid cannot be used, None where it can."""
    python = simgrid_python()
    if not Path(python).exists():
        return f"there is no {python}: set JANUS_SIMGRID_PYTHON to a Python that has SimGrid"
    found = subprocess.run([python, "-I", "-c", "import simgrid"], capture_output=True, check=False)
    return None if found.returncode == 0 else f"{python} has no simgrid module (Debian: python3-simgrid)"


def make_cluster(scale: str, fabric: str, *, latency: bool) -> Cluster:
    family, numbers, num_nodes = FABRICS[scale][fabric]
    numbers = numbers | (LATENCIES if latency else {})
    return Cluster(
        num_nodes=num_nodes, ranks_per_node=1, nics_per_node=1, node_bytes_per_s=1e12, node_latency_s=0.0,
        fabric=build_fabric(family, numbers, num_nodes=num_nodes, nics_per_node=1),
    )  # fmt: skip


def one_round(name: str, source: np.ndarray, target: np.ndarray, num_ranks: int) -> Schedule:
    """All messages at once, each of m / num_ranks bytes."""
    part = np.full(len(source), 1 / num_ranks)
    played = Round(source=source, target=target, fraction=part, reduced=np.zeros(len(source)))
    return Schedule(
        collective="all_to_all", algorithm=name, num_ranks=num_ranks, num_rounds=1, make_rounds=lambda: iter([played])
    )


def make_traffic(name: str, num_ranks: int) -> Schedule:
    """Messages of one num_ranks-th of m each."""
    ranks = np.arange(num_ranks)
    if name == "ring all-reduce":
        return make_schedule("all_reduce", "ring", num_ranks)
    if name == "pairwise all-to-all":
        return make_schedule("all_to_all", "pairwise", num_ranks)
    if name == "posted all-to-all":
        return make_schedule("all_to_all", "linear", num_ranks)
    if name == "incast":
        return one_round(name, ranks[1:], np.zeros(num_ranks - 1, np.int64), num_ranks)
    shuffled = np.random.default_rng(7).permutation(num_ranks)
    return one_round(name, ranks[shuffled != ranks], shuffled[shuffled != ranks], num_ranks)


def simgrid_case(schedule: Schedule, cluster: Cluster, size_bytes: float) -> dict[str, Any]:
    """What the player reads: explicit links, one route per pair that exchanges something, rounds with repeats."""
    rounds = [
        [(int(s), int(t), round(f * size_bytes)) for s, t, f in zip(r.source, r.target, r.fraction, strict=True)]
        for r in schedule.rounds()
        for _ in range(r.repeat)
    ]
    pairs = np.array(sorted({(s, t) for messages in rounds for s, t, _ in messages}))
    routes = cluster.routes(pairs[:, 0], pairs[:, 1])
    assert np.all(routes.shares == 1.0), "SimGrid has one route per pair"
    crossed = [part.tolist() for part in np.split(routes.links, routes.offsets[1:-1])]
    return {
        "num_ranks": cluster.num_ranks,
        "capacity_bytes_per_s": cluster.capacity_bytes_per_s.tolist(),
        "latency_s": cluster.latency_s.tolist(),
        "routes": [(int(s), int(t), links) for (s, t), links in zip(pairs, crossed, strict=True)],
        "rounds": rounds,
    }


def play_in_simgrid(case: dict[str, Any], program: str | None = None) -> dict[str, float]:
    """time_s and wall_s of a case, by the Python player or a compiled ``program``. Raises RuntimeError if it fails."""
    command = [program] if program else [simgrid_python(), "-I", str(PLAYER)]
    text = plain_text(case) if program else json.dumps(case)
    played = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if played.returncode:
        raise RuntimeError(f"SimGrid ended with {played.returncode}: {played.stderr[-500:]}")
    result: dict[str, float] = json.loads(played.stdout)
    return result


def plain_text(case: dict[str, Any]) -> str:
    """A case as numbers between spaces (see simgrid_player.cpp)."""
    links = [number for pair in zip(case["capacity_bytes_per_s"], case["latency_s"], strict=True) for number in pair]
    numbers = [case["num_ranks"], len(case["latency_s"]), *links, len(case["routes"])]
    for source, target, crossed in case["routes"]:
        numbers += [source, target, len(crossed), *crossed]
    numbers.append(len(case["rounds"]))
    for messages in case["rounds"]:
        numbers += [len(messages), *(number for message in messages for number in message)]
    return " ".join(map(repr, numbers))


def compiled_player(folder: str) -> str:
    """Compile the C++ player into a folder. Raises CalledProcessError where compiler or headers are missing."""
    program = str(Path(folder) / "simgrid_player")
    compiler = os.environ.get("CXX", "g++")
    source = str(PLAYER.with_suffix(".cpp"))
    subprocess.run([compiler, "-std=c++17", "-O2", source, "-o", program, "-lsimgrid"], check=True)
    return program


def compare(
    scale: str, fabric: str, traffic: str, *, latency: bool = False, program: str | None = None
) -> dict[str, Any]:
    """One row: both simulated times, their relative difference, both wall times."""
    cluster = make_cluster(scale, fabric, latency=latency)
    schedule = make_traffic(traffic, cluster.num_ranks)
    size_bytes = float(MESSAGE_BYTES * cluster.num_ranks)
    theirs = play_in_simgrid(simgrid_case(schedule, cluster, size_bytes), program)
    walls_s = []
    for _ in range(3):
        start = time.perf_counter()
        ours_s = simulate(schedule, cluster, TRANSPORT, size_bytes).time_s
        walls_s.append(time.perf_counter() - start)
    wall_s = statistics.median(walls_s)
    return {
        "fabric": fabric, "traffic": traffic, "ranks": cluster.num_ranks,
        "messages": sum(len(played) * played.repeat for played in schedule.rounds()),
        "time_s": ours_s, "simgrid_time_s": theirs["time_s"], "relative": ours_s / theirs["time_s"] - 1,
        "wall_s": wall_s, "simgrid_wall_s": theirs["wall_s"], "wall_ratio": theirs["wall_s"] / wall_s,
    }  # fmt: skip


def provenance() -> dict[str, Any]:
    """What the figures need to be judged by: command, versions, settings, cores, load."""
    asked = [simgrid_python(), "-I", "-c", "import simgrid; print(simgrid.simgrid_version)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "benchmark": "simgrid",
        "command": " ".join(["python", "benchmarks/simgrid.py", *sys.argv[1:]]),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "simgrid": version}
        | {name: metadata.version(name) for name in ("numpy", "numba")},
        "simgrid_settings": "network/model:CM02, network/TCP-gamma:0, network/crosstraffic:0",
        "cores": len(os.sched_getaffinity(0)), "processor": platform.machine(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def measure(scale: str, program: str | None, output: TextIO) -> list[dict[str, Any]]:
    """All rows of a scale, each printed to ``output`` when it is there."""
    compare("small", "fat tree", "incast")  # compiles ours
    rows = []
    for fabric, traffic in itertools.product(FABRICS[scale], TRAFFIC):
        row = compare(scale, fabric, traffic, program=program)
        row["relative_with_latency"] = compare(scale, fabric, traffic, latency=True, program=program)["relative"]
        rows.append(row)
        print(
            f"{fabric:10} {traffic:20} {row['ranks']:4} ranks  {row['time_s'] * 1e3:10.4f} ms, SimGrid "
            f"{row['simgrid_time_s'] * 1e3:10.4f} ms ({row['relative']:+.1e}; with latency "
            f"{row['relative_with_latency']:+.1e})  wall {row['wall_s']:.4f} s, SimGrid {row['simgrid_wall_s']:.4f}"
            f" s: x {row['wall_ratio']:.1f}",
            file=output,
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="about 256 ranks in place of about 64")
    parser.add_argument("--compiled", action="store_true", help="SimGrid from C++ in place of its Python binding")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    arguments = parser.parse_args()
    missing = simgrid_missing()
    if missing:
        print(f"simgrid.py: {missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        program = compiled_player(folder) if arguments.compiled else None
        head = provenance() | {"simgrid_player": "C++" if program else "Python"}
        rows = measure("large" if arguments.large else "small", program, sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(head | {"rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
