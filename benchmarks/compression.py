"""What 16 bits in the expert all-to-all buy and cost, on 2 ranks: bytes, time, forces, and a loss curve.

Bytes are the ledger's, of the expert axis's all-to-alls in one step; with 16 bits they must be half of those without
plus the scales, to the byte. Times are medians of steps taken in turn. Forces and gradients: both float32 layouts
against one process in float64 with the same weights. Loss curve: the trainer from one seed on EMT alloys, three times:
32 bits, 16 bits, and 32 bits as pure data parallel, whose sums differ in order only: the scale of the difference.
Experts are not replicated, so that the expert all-to-alls carry nothing but token rows.

examples:
  python benchmarks/compression.py
  python benchmarks/compression.py --steps 60 --json > benchmarks/results/compression.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rank_jobs import MODELS, Stepper, Workload, launch, make_structures, progress, provenance, run_ranks
from torch import Tensor

from janus.model.build import build_model
from janus.parallel.communication import Communicator, connect
from janus.parallel.fs3d import Axes, distribute
from janus.train.config import TrainConfig
from janus.train.verify import evaluate_alone, evaluate_in_layout, whole_tensor

NUM_RANKS = 2
SPREAD = {"unit": NUM_RANKS, "expert_degree": NUM_RANKS, "expert_replication": False}
FORMATS = {"32 bits": "none", "16 bits": "float16"}
RUNS = {
    "32 bits": ["--parallel.unit=2", "--parallel.expert_degree=2", "--parallel.expert_replication=false"],
    "16 bits": [
        "--parallel.unit=2", "--parallel.expert_degree=2", "--parallel.expert_replication=false",
        "--parallel.expert_compression=float16",
    ],
    "data parallel": [],
}  # fmt: skip
TRAINING = ["--model", "matris-moe-tiny", "--batch.structures=8", "--optimizer.learning_rate=3e-3", "--run.threads=1",
            "--data.validation_fraction=0.2"]  # fmt: skip
TOKEN_ROWS = ("expert", "all_to_all")  # axis and collective
LAUNCH_TIMEOUT_S = 1800.0


def formats(workload: Workload) -> dict[str, TrainConfig]:
    return {name: workload.config(SPREAD | {"expert_compression": value}) for name, value in FORMATS.items()}


def time_and_count(workload: Workload, communicator: Communicator, transport: str, num_steps: int) -> dict[str, Any]:
    """Seconds of the slowest rank's steps, and this rank's calls and bytes of token rows, of both formats."""
    steppers = {}
    for name, config in formats(workload).items():
        axes = Axes.of(config.parallel.layout(NUM_RANKS), communicator, transport=transport)
        steppers[name] = Stepper(workload, config, communicator, axes)
    found: dict[str, Any] = {name: {"step_s": []} for name in steppers}
    for number in range(-1, num_steps):  # the first warms up
        for name, stepper in steppers.items():
            communicator.ledger.clear()
            communicator.barrier()
            begin = time.perf_counter()
            stepper.step()
            taken = communicator.all_reduce_max(torch.tensor([time.perf_counter() - begin], dtype=torch.float64))
            rows = [row for row in communicator.ledger.rows() if (row["axis"], row["collective"]) == TOKEN_ROWS]
            found[name] |= {key: sum(row[key] for row in rows) for key in ("calls", "sent_bytes")}
            if number >= 0:
                found[name]["step_s"].append(float(taken))
    for one in found.values():
        one["median_s"] = statistics.median(one["step_s"])
    return found


def scale_bytes(workload: Workload, calls: int) -> int:
    """Of the exponents that travel with compressed rows: ceil(Z / d) rows to each other rank in each call."""
    model = workload.model
    return calls * (NUM_RANKS - 1) * 2 * model.width * -(-model.num_elements // model.width)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def errors(workload: Workload, communicator: Communicator) -> dict[str, dict[str, float]]:
    """Relative errors of both formats against one process in float64, the same float32 weights; norms over norms."""
    config = workload.config({}, dtype="float64")
    alone = build_model(workload.model, seed=0, dtype=torch.float32).double()
    wanted = evaluate_alone(alone, workload.structures, config)
    gradients = {name: p.grad.flatten() for name, p in alone.named_parameters() if p.grad is not None}
    result = {}
    for name, one in formats(workload).items():
        layout = one.parallel.layout(NUM_RANKS)
        distributed = distribute(one, layout, communicator)
        found = evaluate_in_layout(distributed, workload.structures, one, communicator)
        summed = {key: whole_tensor(piece, piece.parameter.grad, communicator)
                  for key, piece in distributed.pieces.items() if piece.parameter.grad is not None}  # fmt: skip
        off = {key: relative(summed[key], wanted) for key, wanted in gradients.items()
               if key in summed and wanted.norm() > 0}  # fmt: skip
        result[name] = {
            **{key: relative(getattr(found, key), getattr(wanted, key)) for key in ("energies", "forces", "stresses")},
            "all gradients": relative(torch.cat([summed[key] for key in off]), torch.cat([gradients[k] for k in off])),
            "worst gradient": max(off.values()),
        }
    return result


def run_on_ranks(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    communicator = connect(device="cpu", transport="mpi", timeout_s=600)
    workload = Workload(model=MODELS[job["model"]], structures=make_structures(job["structures"], tuple(job["repeat"])))
    found = {"errors": errors(workload, communicator)}
    for transport in ("gloo", "mpi"):
        found[transport] = time_and_count(workload, communicator, transport, job["timed_steps"])
        pair = found[transport]
        expected = pair["32 bits"]["sent_bytes"] // 2 + scale_bytes(workload, pair["32 bits"]["calls"])
        assert pair["16 bits"]["sent_bytes"] == expected, (pair["16 bits"]["sent_bytes"], expected)
    found["scale_bytes"] = scale_bytes(workload, found["gloo"]["16 bits"]["calls"])
    if communicator.rank == 0:
        print(json.dumps(found), flush=True)
    communicator.leave(0)


def loss_curves(num_steps: int) -> dict[str, dict[str, Any]]:
    """Losses of every step, and errors on held-out structures, of the three runs."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "alloys.xyz")
        run_ranks(1, ["-m", "janus", "data", "make", "--out", data, "--count", "120", "--max-atoms", "16"], 600)
        for name, words in RUNS.items():
            out = Path(folder) / name.replace(" ", "-")
            run_ranks(
                NUM_RANKS,
                ["-m", "janus", "train", "--data", data, "--out", str(out), "--steps", str(num_steps),
                 *TRAINING, *words],
                LAUNCH_TIMEOUT_S,
            )  # fmt: skip
            lines = (out / "steps.jsonl").read_text(encoding="utf-8").splitlines()
            document = json.loads((out / "run.json").read_text(encoding="utf-8"))
            result[name] = {
                "loss": [json.loads(line)["loss"] for line in lines],
                "validation_mae": {key: row["mae"] for key, row in document["validation"].items()},
            }
            progress(f"loss curve, {name}: {result[name]['loss'][-1]:.4f}")
    return result


def print_tables(costs: dict[str, Any], curves: dict[str, Any]) -> None:
    """MB are 10^6 bytes."""
    for transport in ("gloo", "mpi"):
        for name, one in costs[transport].items():
            print(f"{transport:<6}{name:<10}{one['sent_bytes'] / 1e6:>10.3f} MB per rank and step in {one['calls']} "
                  f"calls, step {one['median_s']:.3f} s")  # fmt: skip
    print(f"of which scales {costs['scale_bytes'] / 1e6:.3f} MB")
    for name, found in costs["errors"].items():
        print(f"{name:<10}relative errors: " + ", ".join(f"{key} {value:.1e}" for key, value in found.items()))
    names = list(curves)
    print(f"{'step':>5}" + "".join(f"{name:>15}" for name in names) + "".join(f"{n + ' - 32':>20}" for n in names[1:]))
    losses = [curves[name]["loss"] for name in names]
    last = len(losses[0]) - 1
    for step in sorted({*range(0, last, 10), last}):
        row = [loss[step] for loss in losses]
        print(f"{step:>5}" + "".join(f"{value:>15.5f}" for value in row)
              + "".join(f"{value - row[0]:>20.1e}" for value in row[1:]))  # fmt: skip
    for name in names:
        print(f"{name:<15}" + ", ".join(f"{key} {value:.5f}" for key, value in curves[name]["validation_mae"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[name for name in MODELS if MODELS[name].experts], default="moe")
    parser.add_argument("--structures", type=int, default=8)
    parser.add_argument("--repeat", type=int, nargs=3, default=[2, 2, 1], help="cubes of 8 atoms per structure")
    parser.add_argument("--timed-steps", type=int, default=6)
    parser.add_argument("--steps", type=int, default=80, help="of the loss curves")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--on-ranks", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_ranks is not None:
        run_on_ranks(options.on_ranks)
        return
    about = provenance("compression")
    job = {key: getattr(options, key) for key in ("model", "structures", "repeat", "timed_steps")}
    [costs] = launch(__file__, NUM_RANKS, job, LAUNCH_TIMEOUT_S)
    curves = loss_curves(options.steps)
    if not options.json:
        print_tables(costs, curves)
        return
    json.dump(about | {"model": str(MODELS[options.model]), **costs, "curves": curves}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
