"""One training step evaluated by the fused operators, by plain ones, and by a compiled graph (``run.compile``).

Forward, forces, stress and loss backward of a MatRIS on two rattled NaCl cells and, to change all sizes, on three, and
on four that are 16 times larger.
The three take turns, one thread; CPU seconds of the process (elapsed seconds of the first compiled step beside it: its
C++ compiler is another process). Held to each other: the largest difference of a parameter's gradient.

examples:
  python benchmarks/compile.py
  python benchmarks/compile.py --blocks 1 --width 16 --steps 5
  python benchmarks/compile.py --backend aot_eager        # the graph without generated code
  python benchmarks/compile.py --json > benchmarks/results/compile.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase.build
import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import janus
from janus.config import ModelConfig
from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.kernels import operators, reference
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.compiled import CompiledPotential
from janus.model.potential import Prediction, evaluate_potential

SIZES = ((2, 1), (3, 1), (4, 16))  # cells of each batch, and how much larger they are than asked for
Evaluate = Callable[[GraphBatch], Prediction]


def make_batch(config: ModelConfig, num_cells: int, repeat: int) -> GraphBatch:
    """Rattled rock-salt cells of 8 repeat atoms, float32."""
    structures = []
    for seed in range(num_cells):
        atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((1, 1, repeat))
        atoms.rattle(0.05, seed=seed)
        structures.append(
            Structure(numbers=atoms.numbers, positions=atoms.positions, cell=np.array(atoms.cell), pbc=np.ones(3, bool))
        )
    cutoffs = config.cutoff_angstrom, config.line_cutoff_angstrom
    return GraphBatch.collate(structures, [build_graph(s, *cutoffs) for s in structures]).to("cpu", torch.float32)


def step(model: nn.Module, batch: GraphBatch, evaluate: Evaluate) -> tuple[float, float]:
    """CPU and elapsed seconds of energies, forces, stress, loss and the gradient of every parameter."""
    cpu_start, start = time.process_time(), time.perf_counter()
    model.zero_grad()
    prediction = evaluate(batch)
    loss = prediction.energy.abs().mean() + prediction.forces.square().mean() + prediction.stress.square().mean()
    loss.backward()
    return time.process_time() - cpu_start, time.perf_counter() - start


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_operators() -> AbstractContextManager[object]:
    """Inside, models use the plain definitions of the operators."""
    return patch.object(operators, "_form", lambda tensor: reference)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """All figures of one run."""
    config = ModelConfig(
        num_blocks=options.blocks, width=options.width, cutoff_angstrom=5.0, line_cutoff_angstrom=3.5
    )  # fmt: skip
    model = build_model(config)
    batches = [make_batch(config, num_cells, options.repeat * more) for num_cells, more in SIZES]
    compiled = CompiledPotential(model, backend=options.backend)

    def fused(batch: GraphBatch) -> Prediction:
        return evaluate_potential(model, batch, create_graph=True)

    first_cpu_s, first_s = step(model, batches[0], compiled)
    forms: dict[str, Evaluate] = {"fused": fused, "plain": fused, "compiled": compiled}
    cpu_s: dict[str, list[list[float]]] = {name: [[] for _ in batches] for name in forms}
    last: dict[str, dict[str, Tensor]] = {}
    for turn in range(options.steps + 1):  # the first turn warms up
        for number, batch in enumerate(batches):
            for name, evaluate in forms.items():
                with plain_operators() if name == "plain" else nullcontext():
                    seconds, _ = step(model, batch, evaluate)
                last[name] = gradients(model)
                if turn:
                    cpu_s[name][number].append(seconds)
    medians = {name: [statistics.median(times) for times in of_batches] for name, of_batches in cpu_s.items()}
    return {
        "benchmark": "compile",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "versions": {"janus": janus.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "backend": options.backend,
        "model": {"num_blocks": options.blocks, "width": options.width},
        "batches": [
            {"atoms": b.num_atoms, "directed_edges": b.num_edges, "angles": b.num_angles} for b in batches
        ],
        "first_compiled_step_cpu_s": first_cpu_s,
        "first_compiled_step_s": first_s,
        "graphs_compiled": counters["stats"]["unique_graphs"],
        "step_cpu_s": cpu_s,
        "median_cpu_s": medians,
        "to_fused": {name: [a / b for a, b in zip(medians[name], medians["fused"], strict=True)] for name in forms},
        "largest_gradient_difference": {
            name: max(float((last[name][n] - g).norm() / (g.norm() + 1e-12)) for n, g in last["fused"].items())
            for name in ("plain", "compiled")
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\nexamples:")[0], epilog="examples:" + __doc__.split("\nexamples:")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=7, help="steps of each kind and batch, after one (default 7)")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of the model (default 2)")
    parser.add_argument("--width", type=int, default=32, help="channels of the model (default 32)")
    parser.add_argument("--repeat", type=int, default=2, help="8-atom cells of each structure (default 2)")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default inductor)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"first compiled step: {result['first_compiled_step_s']:.0f} s, "
        f"{result['first_compiled_step_cpu_s']:.0f} CPU s; "
        f"graphs compiled for all batches: {result['graphs_compiled']}"
    )
    for number, sizes in enumerate(result["batches"]):
        print(", ".join(f"{value:,} {name}" for name, value in sizes.items()))
        for name, median in result["median_cpu_s"].items():
            print(f"  {name:9} {1e3 * median[number]:8.1f} CPU ms  {result['to_fused'][name][number]:.2f} x fused")
    differences = ", ".join(f"{name} {value:.0e}" for name, value in result["largest_gradient_difference"].items())
    print(f"largest difference of a gradient to fused: {differences}")


if __name__ == "__main__":
    main()
