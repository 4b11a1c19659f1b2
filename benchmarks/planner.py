"""How fast the planner's search is: candidates per second, and where the time goes.

    python benchmarks/planner.py            MatRIS-MoE-L on 8 nodes of LineShine, 100,000 candidates and more
    python benchmarks/planner.py --json

A made data set (sizes and compositions spread as in real ones), so that nothing has to be packed first. Everything is
in the time: packing of batches, halos, placing of experts, prices of collectives. Run it on a quiet host.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from janus.presets import preset
from perfmodel.candidates import Space, caps_of
from perfmodel.dataset import DataCounts, ElementCounts
from perfmodel.machine import load_machine
from perfmodel.search import search
from perfmodel.search_tables import Job, Tables

STRUCTURES_PER_RANK = 8
MORE_CAPS = (25_000, 50_000, 100_000, 150_000, 200_000, 400_000, 800_000, 1_000_000, 1_600_000, 3_200_000)


def made_data(number: int = 20_000, seed: int = 0) -> DataCounts:
    """Structures of 4 to 400 atoms, two to five of 94 elements each."""
    random = np.random.default_rng(seed)
    atoms = np.clip(random.lognormal(np.log(60), 0.7, number), 4, 400).astype(int)
    edges = (atoms * random.normal(60, 8, number).clip(30)).astype(int)
    bonds = (edges * 0.42).astype(int)
    angles = (bonds * random.normal(23, 3, number)).astype(int)
    kinds = random.integers(2, 6, number)
    end, row = np.cumsum(kinds), np.repeat(np.arange(number), kinds)
    share = random.random(end[-1]) + 0.2
    share /= np.bincount(row, share)[row]
    return DataCounts(
        path="made", fingerprint="made", atoms=atoms, edges=edges, bonds=bonds, angles=angles,
        elements=ElementCounts(
            end=end, element=random.integers(1, 95, end[-1]), atoms=np.maximum(1, share * atoms[row]).astype(int),
            edges=(share * edges[row]).astype(int),
        ),
    )  # fmt: skip


def measure(nodes: int, limit_gb: float) -> dict[str, Any]:
    """One search from nothing."""
    machine, data = load_machine("lineshine"), made_data()
    ranks = nodes * machine.devices_per_node
    stages: list[tuple[str, float]] = []
    start = time.perf_counter()
    job = Job(
        model=preset("matris-moe-l"), machine=machine, data=data, num_batches=2,
        batch_of=lambda world: STRUCTURES_PER_RANK * world,
    )  # fmt: skip
    tables = Tables(job)
    caps = caps_of(data.work, tables.shared(ranks).heaviest(max(1, ranks // 64)))
    caps = (*sorted({cap for cap in (*caps, *MORE_CAPS) if cap}), None)
    found = search(
        job, Space(world_sizes=(ranks,), caps=caps, ranks_per_node=machine.devices_per_node),
        lambda world: 1e9 * limit_gb, tables=tables,
        on_stage=lambda stage: stages.append((stage, time.perf_counter() - start)),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return {
        "candidates": found.considered, "fitting": len(found), "seconds": seconds,
        "candidates_per_s": found.considered / seconds, "ranks": ranks,
        "stages": [{"stage": stage, "begun_s": begun} for stage, begun in stages],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--limit-gb", type=float, default=1e6, help="memory per rank (default: everything fits)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [measure(options.nodes, options.limit_gb) for _ in range(options.repeats)]
    best = min(results, key=lambda one: one["seconds"])
    if options.json:
        print(json.dumps({"best": best, "seconds": [one["seconds"] for one in results]}, indent=1))
        return
    for one in results:
        print(f"{one['candidates']:,} candidates, {one['fitting']:,} fit: {one['seconds']:.2f} s")
    print(f"best: {best['candidates_per_s']:,.0f} candidates per second")


if __name__ == "__main__":
    main()
