"""One training step of MatRIS (2 layers x 64, cutoffs 6 and 4 angstrom) on 8 cells of 64 atoms: CPU time and memory.

The work of the peers' table in docs/benchmarks.md: forward, forces, stress and loss backward of 3 Cu, 3 Si and 2 NaCl
perturbed cells (27,510 directed edges, 120,518 angles), one thread, process CPU seconds, peak resident memory.

examples:
  python benchmarks/step_8x64.py
  python benchmarks/step_8x64.py --recompute --steps 5
  python benchmarks/step_8x64.py --json > benchmarks/results/step_8x64.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase
import ase.build
import ase.io
import numpy as np
import torch

import janus
from janus.config import ModelConfig
from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from janus.train.session import peak_memory_bytes

SHARED_BATCH = Path(__file__).resolve().parents[2] / "shared" / "data" / "structures" / "bench_8x64.xyz"
# measured by this project's authors in November 2026 on a 2-core CPU machine, torch 2.13, float32 (docs/benchmarks.md)
PEER = {"name": "MatRIS 1.0.0 eager, 2 layers x 64", "cpu_s": 19.9, "peak_gb": 16.6}


def made_here() -> list[ase.Atoms]:
    """The batch by its recipe, for a checkout without the sample data (counts differ slightly from the file's)."""
    cells = [ase.build.bulk("Cu", "fcc", a=3.61, cubic=True).repeat((2, 2, 4)) for _ in range(3)]
    cells += [ase.build.bulk("Si", "diamond", a=5.43, cubic=True).repeat(2) for _ in range(3)]
    cells += [ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2) for _ in range(2)]
    for seed, cell in enumerate(cells):
        cell.rattle(0.05, seed=seed)
    return cells


def load_batch(config: ModelConfig) -> GraphBatch:
    """The eight cells as one float32 batch."""
    atoms = ase.io.read(SHARED_BATCH, ":") if SHARED_BATCH.exists() else made_here()
    structures = [
        Structure(numbers=a.numbers, positions=a.positions, cell=np.array(a.cell), pbc=np.array(a.pbc)) for a in atoms
    ]
    cutoffs = config.cutoff_angstrom, config.line_cutoff_angstrom
    return GraphBatch.collate(structures, [build_graph(s, *cutoffs) for s in structures]).to("cpu", torch.float32)


def step_cpu_s(model: torch.nn.Module, batch: GraphBatch, recompute: bool) -> float:
    """Process CPU seconds of one step: energies, forces, stress, loss, gradients of every parameter."""
    start = time.process_time()
    model.zero_grad()
    prediction = evaluate_potential(model, batch, create_graph=True, recompute=recompute)
    loss = prediction.energy.abs().mean() + prediction.forces.square().mean() + prediction.stress.square().mean()
    loss.backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7, help="steps timed after two warm-up steps (default 7)")
    parser.add_argument("--recompute", action="store_true", help="second-order activation recomputation")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = ModelConfig(num_blocks=2, width=64, cutoff_angstrom=6.0, line_cutoff_angstrom=4.0)
    model, batch = build_model(config), load_batch(config)
    warm_up = [step_cpu_s(model, batch, options.recompute) for _ in range(2)]
    times = [step_cpu_s(model, batch, options.recompute) for _ in range(options.steps)]
    peak_gb = peak_memory_bytes(torch.device("cpu")) / 1e9
    median_s = statistics.median(times)
    result = {
        "benchmark": "step_8x64",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "versions": {"janus": janus.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "directed_edges": batch.num_edges,
        "angles": batch.num_angles,
        "recompute": options.recompute,
        "warm_up_cpu_s": warm_up,
        "step_cpu_s": times,
        "median_cpu_s": median_s,
        "peak_resident_gb": peak_gb,
        "peer": PEER,
        "cpu_ratio_to_peer": median_s / PEER["cpu_s"],
        "memory_ratio_to_peer": peak_gb / PEER["peak_gb"],
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{batch.num_edges:,} directed edges, {batch.num_angles:,} angles, {result['parameters']:,} parameters")
    print(f"step: median {median_s:.2f} CPU s of {options.steps} ({min(times):.2f} to {max(times):.2f}), one thread")
    print(f"peak resident memory: {peak_gb:.2f} GB")
    print(f"beside {PEER['name']} (measured earlier): {PEER['cpu_s']} CPU s, {PEER['peak_gb']} GB")
    print(
        f"ratio: {result['cpu_ratio_to_peer']:.2f} of its CPU time, {result['memory_ratio_to_peer']:.2f} of its memory"
    )


if __name__ == "__main__":
    main()
