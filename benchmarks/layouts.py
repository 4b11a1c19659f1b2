"""Memory per rank and step time of the layouts of 1, 2 and 4 ranks, with one model and one global batch.

Memory: one launch per layout, so that no layout sees another's left-overs. What is resident before the model is built,
after a step of a tiny model (libraries, compiled loops), is taken off. After two steps the kernel's high-water mark
is reset (/proc/self/clear_refs); "resident" is its value after another step, "allocated" the most that was in use (C
heap and pool, looked at every 2 ms) during it: what lies between is freed memory that the C library keeps. "kept" is
parameters, gradients and AdamW's moments on the rank; "activations" what is allocated between FF and the loss's
backward beyond what was before FE, gathered parameters taken off; "gathered" the peak of gathered blocks by the
lifetimes of their memory. All of them of the rank with most.

Time: one launch per number of ranks; in each round every layout is built, warmed up by one step and timed, so that
noise meets all alike. Seconds are medians over all timed steps, of the slowest rank; "CPU s" are processor seconds of a
step, mean over ranks, which a busy host disturbs less (waiting ranks of MPI spin, those of gloo sleep). Ratios are to
pure data parallel of the same number of ranks and transport.

examples:
  python benchmarks/layouts.py
  python benchmarks/layouts.py --model matris --ranks 2 4 --what memory
  python benchmarks/layouts.py --what memory --structures 1 --repeat 4 4 2 --ranks 4 --layouts "data 4" "graph 4"
  python benchmarks/layouts.py --json > benchmarks/results/layouts_moe.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rank_jobs import MODELS, Stepper, Workload, launch, make_structures, progress, provenance

from janus.config import ModelConfig
from janus.kernels import pool
from janus.model.build import build_model
from janus.model.potential import evaluate_potential
from janus.parallel.communication import Communicator, connect
from janus.parallel.fs3d import Axes
from janus.parallel.sharding import ShardedParameters
from janus.train.config import TrainConfig
from janus.train.loader import BatchLoader
from janus.train.timing import PhaseTimer

WARM_UP_STEPS = 1
MEMORY_WARM_UP_STEPS = 2  # the first has no moments yet
SAMPLING_S = 0.002
LAUNCH_TIMEOUT_S = 3000.0


def layouts_of(num_ranks: int, *, with_experts: bool) -> dict[str, dict[str, Any]]:
    """Layouts by name, pure data parallel first: settings of ``parallel``, and "recompute" where it is on."""
    n = num_ranks
    found: dict[str, dict[str, Any]] = {f"data {n}": {}, f"data {n}, recomputed": {"recompute": True}}
    if n == 1:
        return found
    unit = {"unit": n}
    found[f"shard {n}"] = unit | {"shard_degree": n}
    found[f"shard {n}, all kept"] = unit | {"shard_degree": n, "gathered_blocks": 0}
    found[f"shard {n}, recomputed"] = unit | {"shard_degree": n, "recompute": True}
    if n > 2:
        found["shard 2 x 2 replicas"] = {"unit": 2, "shard_degree": 2}
    found[f"graph {n}"] = unit | {"graph_degree": n}
    if not with_experts:
        found[f"shard {n}, graph {n}"] = unit | {"shard_degree": n, "graph_degree": n}
        return found
    found[f"expert {n}, tokens"] = unit | {"expert_degree": n}
    found[f"expert {n}, weights"] = unit | {"expert_degree": n, "expert_strategy": "weights"}
    all_three = unit | {"shard_degree": n, "graph_degree": n, "expert_degree": n}
    found[f"shard {n}, expert {n}"] = unit | {"shard_degree": n, "expert_degree": n}
    found[f"shard, graph, expert {n}"] = all_three
    found[f"shard, graph, expert {n}, recomputed"] = all_three | {"recompute": True}
    if n > 2:
        pair = {"unit": 2, "shard_degree": 2, "graph_degree": 2, "expert_degree": 2}
        found["shard, graph, expert 2 x 2 replicas"] = pair
    return found


def resident_bytes(name: str) -> int:
    """VmRSS (now) or VmHWM (largest since the last reset) of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}: memory is measured on Linux only")


def reset_high_water_mark() -> bool:
    """Whether the kernel let this process do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class _HeapInfo(ctypes.Structure):
    """glibc's struct mallinfo2; hblkhd: bytes in mapped blocks, uordblks: bytes in use on the heaps."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


_C_LIBRARY = ctypes.CDLL(None)
_C_LIBRARY.mallinfo2.restype = _HeapInfo


def allocated_bytes() -> int:
    """In use now, on the C heap and of the pool's blocks; what was freed but not returned to the system is not."""
    heap = _C_LIBRARY.mallinfo2()
    return heap.uordblks + heap.hblkhd + pool._pool.lent_bytes


class PeakAllocation:
    """The most that was allocated inside, by samples of a thread."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakAllocation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLING_S):
            self.most_bytes = max(self.most_bytes, allocated_bytes())


class MemoryProbe(PhaseTimer):
    """Looks at the memory at the start of the loss's backward: what autograd then holds."""

    def __init__(self, sharded: ShardedParameters) -> None:
        super().__init__(torch.device("cpu"))
        root_bytes = sum(unit.shard_bytes * unit.shard.size for unit in sharded.units if unit.block is None)
        self._buffers, self._before_bytes, self.activation_bytes = sharded.buffers, allocated_bytes() + root_bytes, 0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if phase == "BF_BE":
            gathered = sum(size for _, size in self._buffers.alive())
            self.activation_bytes = allocated_bytes() - self._before_bytes - gathered
        with super().__call__(phase):
            yield


def kept_bytes(stepper: Stepper) -> dict[str, int]:
    """Of parameters, their gradients and AdamW's moments on this rank."""
    leaves = [piece.parameter for piece in stepper.distributed.pieces.values()]
    moments = [value for state in stepper.optimizer.state.values() for value in state.values()]
    return {
        "parameter_bytes": sum(leaf.nbytes for leaf in leaves),
        "gradient_bytes": sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None),
        "optimizer_bytes": sum(value.nbytes for value in moments if isinstance(value, torch.Tensor)),
    }


def take_tiny_step() -> None:
    """Load what every step needs once, whatever the layout."""
    model = build_model(ModelConfig(num_blocks=1, width=8))
    loader = BatchLoader(
        make_structures(1, (1, 1, 1)), cutoff_angstrom=4.2, line_cutoff_angstrom=3.0, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    prediction = evaluate_potential(model, loader.load_micro_batch([0]).batch, create_graph=True)
    prediction.forces.square().sum().backward()
    torch.optim.AdamW(model.parameters()).step()


def measure_memory(
    workload: Workload, name: str, settings: dict[str, Any], communicator: Communicator, axes: Axes
) -> dict:
    """Some steps of one layout; of every figure the largest over ranks."""
    parallel = {key: value for key, value in settings.items() if key != "recompute"}
    config = workload.config(parallel, recompute=settings.get("recompute", False))
    take_tiny_step()
    base = resident_bytes("VmRSS")
    base_allocated = allocated_bytes()
    stepper = Stepper(workload, config, communicator, axes)
    for _ in range(MEMORY_WARM_UP_STEPS):
        stepper.step()
    buffers = stepper.distributed.sharded.buffers
    buffers.reset_peak()
    stepper.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    before = resident_bytes("VmRSS")
    was_reset = reset_high_water_mark()
    communicator.ledger.clear()
    probe = MemoryProbe(stepper.distributed.sharded)
    with PeakAllocation() as peak:
        stepper.step(probe)
    mine = kept_bytes(stepper) | {
        "peak_bytes": resident_bytes("VmHWM") - base, "growth_bytes": resident_bytes("VmHWM") - before,
        "peak_allocated_bytes": peak.most_bytes - base_allocated,
        "activation_bytes": probe.activation_bytes,
        "peak_gathered_bytes": buffers.peak_bytes, "peak_gathered_blocks": buffers.peak_blocks,
    }  # fmt: skip
    sent: dict[str, int] = {}
    for row in communicator.ledger.rows():
        sent[row["axis"]] = sent.get(row["axis"], 0) + row["sent_bytes"]
    everyones = communicator.gather_objects([mine, sent, was_reset])
    axes_used = sorted({axis for _, one, _ in everyones for axis in one})
    return {
        "layout": name, "ranks": communicator.world_size, "settings": settings,
        **{key: max(one[key] for one, _, _ in everyones) for key in mine},
        "sent_bytes": {axis: max(one.get(axis, 0) for _, one, _ in everyones) for axis in axes_used},
        "high_water_mark_was_reset": all(reset for _, _, reset in everyones),
    }  # fmt: skip


def time_layouts(workload: Workload, job: dict[str, Any], communicator: Communicator) -> list[dict[str, Any]]:
    """A row for each layout and transport with the timed steps of all rounds."""
    axes: dict[tuple, Axes] = {}
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for number in range(job["rounds"]):
        for name, settings in job["layouts"].items():
            parallel = {key: value for key, value in settings.items() if key != "recompute"}
            config = workload.config(parallel, recompute=settings.get("recompute", False))
            layout = config.parallel.layout(communicator.world_size)
            for transport in job["transports"]:
                if (layout, transport) not in axes:
                    chosen = transport if communicator.world_size > 1 else None
                    axes[layout, transport] = Axes.of(layout, communicator, transport=chosen)
                seconds = timed_steps(workload, config, communicator, axes[layout, transport], job["steps"])
                row = found.setdefault((name, transport), {"step_s": [], "cpu_s": []})
                for key, values in seconds.items():
                    row[key] += values
                if communicator.rank == 0:
                    progress(f"round {number + 1}: {name}, {transport}: {min(seconds['step_s']):.2f} s")
    return [
        {"layout": name, "ranks": communicator.world_size, "transport": transport, **row}
        for (name, transport), row in found.items()
    ]


def timed_steps(
    workload: Workload, config: TrainConfig, communicator: Communicator, axes: Axes, num_steps: int
) -> dict[str, list[float]]:
    """step_s: of the slowest rank; cpu_s: processor seconds, mean over ranks."""
    stepper = Stepper(workload, config, communicator, axes)
    seconds, processor = [], []
    for number in range(WARM_UP_STEPS + num_steps):
        communicator.barrier()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        stepper.step()
        if number >= WARM_UP_STEPS:
            seconds.append(time.perf_counter() - begin)
            processor.append(time.process_time() - begin_cpu)
    del stepper
    gc.collect()
    everyones = communicator.gather_objects([seconds, processor])
    return {
        "step_s": [max(step) for step in zip(*(one for one, _ in everyones), strict=True)],
        "cpu_s": [statistics.mean(step) for step in zip(*(one for _, one in everyones), strict=True)],
    }


def run_on_ranks(job: dict[str, Any]) -> None:
    """What each rank does; rank 0 prints a JSON line per layout (memory) or per layout and transport (time)."""
    torch.set_num_threads(1)
    communicator = connect(device="cpu", transport="mpi" if "mpi" in job["transports"] else "gloo", timeout_s=600)
    workload = Workload(model=MODELS[job["model"]], structures=make_structures(job["structures"], tuple(job["repeat"])))
    if job["what"] == "memory":
        [(name, settings)] = job["layouts"].items()
        parallel = {key: value for key, value in settings.items() if key != "recompute"}
        layout = workload.config(parallel).parallel.layout(communicator.world_size)
        lines = [measure_memory(workload, name, settings, communicator, Axes.of(layout, communicator))]
    else:
        lines = time_layouts(workload, job, communicator)
    if communicator.rank == 0:
        for line in lines:
            print(json.dumps(line), flush=True)
    communicator.leave(0)


def measure(options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """All launches; the memory of each layout and its times."""
    job = {"model": options.model, "structures": options.structures, "repeat": options.repeat}
    with_experts = MODELS[options.model].experts is not None
    memory, times = [], []
    for num_ranks in options.ranks:
        layouts = layouts_of(num_ranks, with_experts=with_experts)
        if options.layouts is not None:
            layouts = {name: settings for name, settings in layouts.items() if name in options.layouts}
        if options.what != "time":
            for name, settings in layouts.items():
                one = job | {"what": "memory", "layouts": {name: settings}, "transports": ["gloo"]}
                memory += launch(__file__, num_ranks, one, LAUNCH_TIMEOUT_S)
                progress(f"memory of {name}: {memory[-1]['peak_bytes'] / 1e6:.0f} MB")
        if options.what != "memory":
            transports = options.transports if num_ranks > 1 else ["none"]
            all_of_them = job | {"what": "time", "layouts": layouts, "transports": transports,
                                 "rounds": options.rounds, "steps": options.steps}  # fmt: skip
            times += with_ratios(launch(__file__, num_ranks, all_of_them, LAUNCH_TIMEOUT_S))
    return memory, times


def with_ratios(rows: list[dict]) -> list[dict]:
    """Medians, and their ratios to pure data parallel (the first layout) over the same transport."""
    result = [
        row | {"median_s": statistics.median(row["step_s"]), "median_cpu_s": statistics.median(row["cpu_s"])}
        for row in rows
    ]
    reference = {row["transport"]: row for row in result if row["layout"] == result[0]["layout"]}
    for row in result:
        base = reference[row["transport"]]
        row["ratio_to_data_parallel"] = row["median_s"] / base["median_s"]
        row["cpu_ratio_to_data_parallel"] = row["median_cpu_s"] / base["median_cpu_s"]
    return result


def print_tables(memory: list[dict], times: list[dict]) -> None:
    """MB are 10^6 bytes."""
    if memory:
        print("MB per rank (the largest), one step")
        columns = ("kept", "activations", "gathered", "blocks", "allocated", "resident", "sent per step, by axis")
        print(f"{'ranks':<6}{'layout':<42}" + "".join(f"{name:>13}" for name in columns[:-1]) + f"  {columns[-1]}")
    for row in memory:
        kept = row["parameter_bytes"] + row["gradient_bytes"] + row["optimizer_bytes"]
        sizes = (kept, row["activation_bytes"], row["peak_gathered_bytes"])
        sent = ", ".join(f"{axis} {number / 1e6:.1f}" for axis, number in row["sent_bytes"].items() if number > 50_000)
        numbers = "".join(f"{size / 1e6:>13.1f}" for size in sizes) + f"{row['peak_gathered_blocks']:>13}"
        peaks = "".join(f"{row[name] / 1e6:>13.0f}" for name in ("peak_allocated_bytes", "peak_bytes"))
        print(f"{row['ranks']:<6}{row['layout']:<42}{numbers}{peaks}  {sent}")
    if times:
        columns = ("median s", "least", "most", "ratio", "CPU s", "CPU ratio")
        print(f"\n{'ranks':<6}{'layout':<42}{'transport':>10}" + "".join(f"{name:>11}" for name in columns))
    for row in times:
        numbers = (row["median_s"], min(row["step_s"]), max(row["step_s"]), row["ratio_to_data_parallel"],
                   row["median_cpu_s"], row["cpu_ratio_to_data_parallel"])  # fmt: skip
        head = f"{row['ranks']:<6}{row['layout']:<42}{row['transport']:>10}"
        print(head + "".join(f"{number:>11.2f}" for number in numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="moe")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--structures", type=int, default=8, help="structures of the global batch")
    parser.add_argument("--repeat", type=int, nargs=3, default=[2, 2, 1], help="cubes of 8 atoms per structure")
    parser.add_argument("--what", choices=["memory", "time", "both"], default="both")
    parser.add_argument("--transports", nargs="+", choices=["gloo", "mpi"], default=["gloo", "mpi"])
    parser.add_argument("--layouts", nargs="+", metavar="NAME", help="these only, as the tables name them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per layout and round")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--on-ranks", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_ranks is not None:
        run_on_ranks(options.on_ranks)
        return
    about = provenance("layouts")
    memory, times = measure(options)
    if not options.json:
        print_tables(memory, times)
        return
    model = MODELS[options.model]
    json.dump(about | {"model": str(model), "memory": memory, "times": times}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
