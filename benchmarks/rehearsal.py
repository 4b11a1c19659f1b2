"""Rehearsed ranks against the same ranks of real jobs: lists of collectives, compute seconds, peak memory.

Real: one launch per layout under mpiexec, one thread per rank; every collective is watched, so that what a rank
computes is known apart from what it waits. Rehearsed: one process, the same rank, batch and model. Of both the median
of some steps after one of warm-up; memory is that of one more step ("allocated": C heap and pool; "resident": of the
process, in which a real rank also has its transport). "rows" says whether the ledgers are equal, row by row and byte by
byte. Ratios are rehearsed over real. A rehearsed rank has the host for itself; real ranks share its caches and memory,
and, where there are more of them than cores, the cores: then compute is compared in processor seconds only. In these
what transports do is contained on the real side. With --machine (a calibrated file of this host) each rehearsal is also
replayed on it, and its step laid beside the real one's.

examples:
  python benchmarks/rehearsal.py
  python benchmarks/rehearsal.py --models matris-small --ranks 2
  python benchmarks/rehearsal.py --json > benchmarks/results/rehearsal.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rank_jobs import MODELS, Stepper, Workload, launch, make_structures, progress, provenance, run_ranks
from torch import Tensor

from janus.cli.rehearsal_document import document_of
from janus.parallel.axis import Axis, Pending, Reduction
from janus.parallel.communication import Communicator, connect
from janus.parallel.fs3d import Axes
from janus.parallel.ledger import Ledger
from janus.parallel.rehearsed_axis import Call, Timeline
from janus.rehearse import Rehearsal, RehearsalJob, _Timer, choose_rank
from janus.rehearsed_memory import PeakMemory, allocated_bytes
from janus.train.config import TrainConfig
from perfmodel.machine import load_machine
from perfmodel.rehearsal import rehearsal_of, replay

CPU = torch.device("cpu")
LAUNCH_TIMEOUT_S = 600.0


def layouts_of(num_ranks: int, *, with_experts: bool) -> dict[str, dict[str, Any]]:
    """Settings of ``parallel`` by name, and "recompute" where it is on."""
    n = num_ranks
    unit = {"unit": n}
    found: dict[str, dict[str, Any]] = {
        f"data {n}": {},
        f"shard {n}": unit | {"shard_degree": n},
        f"graph {n}": unit | {"graph_degree": n},
    }
    if not with_experts:
        return found | {f"shard, graph {n}, recomputed": unit | {"shard_degree": n, "graph_degree": n,
                                                                 "recompute": True}}  # fmt: skip
    three = unit | {"shard_degree": n, "graph_degree": n, "expert_degree": n}
    found[f"expert {n}, weights"] = unit | {"expert_degree": n, "expert_strategy": "weights"}
    found[f"expert {n}, 16 bits"] = unit | {"expert_degree": n, "expert_compression": "float16"}
    found[f"shard, graph, expert {n}"] = three
    found[f"shard, graph, expert {n}, recomputed"] = three | {"recompute": True}
    return found


class WatchedAxis(Axis):
    """A real axis whose starts and waits a timeline sees; the seconds inside it are on no clock."""

    def __init__(self, inner: Axis, ledger: Ledger, timeline: Timeline) -> None:
        super().__init__(inner.name, inner.ranks, inner.index, ledger, inner.waiting)
        self._inner, self._timeline = inner, timeline

    def _all_to_all(self, output: Tensor, rows: Tensor, output_rows: list[int], input_rows: list[int]) -> Pending:
        return self._seen("all_to_all", lambda: self._inner._all_to_all(output, rows, output_rows, input_rows))

    def _all_gather(self, output: Tensor, piece: Tensor) -> Pending:
        return self._seen("all_gather", lambda: self._inner._all_gather(output, piece))

    def _reduce_scatter(self, output: Tensor, whole: Tensor) -> Pending:
        return self._seen("reduce_scatter", lambda: self._inner._reduce_scatter(output, whole))

    def _all_reduce(self, tensor: Tensor, reduction: Reduction) -> Pending:
        return self._seen("all_reduce", lambda: self._inner._all_reduce(tensor, reduction))

    def _seen(self, collective: str, begin: Any) -> Pending:
        call = Call(phase="", axis=self.name, collective=collective, ranks=self.size, sent_bytes=0, received_bytes=0)
        number = self._timeline.start(call)
        pending = begin()
        self._timeline.resume()

        def wait() -> None:
            self._timeline.pause("wait", number)
            pending.wait()
            self._timeline.resume()

        return Pending(wait)


def watched_axes(axes: Axes, ledger: Ledger, timeline: Timeline) -> Axes:
    named = {field.name: getattr(axes, field.name) for field in fields(Axes)}
    return Axes(**{
        name: WatchedAxis(axis, ledger, timeline) if axis.size > 1 else axis for name, axis in named.items()
    })  # fmt: skip


def config_of(workload: Workload, settings: dict[str, Any]) -> TrainConfig:
    parallel = {name: value for name, value in settings.items() if name != "recompute"}
    return workload.config(parallel, recompute=settings.get("recompute", False))


def workload_of(job: dict[str, Any]) -> Workload:
    return Workload(model=MODELS[job["model"]], structures=make_structures(job["structures"], tuple(job["repeat"])))


def real_rank(job: dict[str, Any], communicator: Communicator) -> list[dict[str, Any]]:
    """Steps of a real job; one row per rank."""
    workload = workload_of(job)
    config = config_of(workload, job["settings"])
    timeline, before = Timeline(CPU), allocated_bytes(CPU)
    axes = Axes.of(config.parallel.layout(communicator.world_size), communicator)
    stepper = Stepper(workload, config, communicator, watched_axes(axes, communicator.ledger, timeline))
    rows = []
    for number in range(1 + job["steps"]):
        communicator.barrier()
        communicator.ledger.clear()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        timeline.begin()
        stepper.step(_Timer(CPU, timeline))
        events = timeline.end()
        if number:
            rows.append((sum(event["compute_s"] for event in events), time.process_time() - begin_cpu,
                         time.perf_counter() - begin))  # fmt: skip
    traffic = communicator.ledger.rows()
    communicator.barrier()
    with PeakMemory(CPU) as peak:
        stepper.step()
    compute_s, cpu_s, step_s = (statistics.median(column) for column in zip(*rows, strict=True))
    mine = {"rank": communicator.rank, "compute_s": compute_s, "cpu_s": cpu_s, "step_s": step_s, "traffic": traffic,
            "allocated_bytes": (peak.allocated_bytes or 0) - (before or 0),
            "resident_bytes": peak.resident_bytes}  # fmt: skip
    return communicator.gather_objects(mine)


def rehearsed_rank(job: dict[str, Any]) -> dict[str, Any]:
    """The same of one rank without the others."""
    workload = workload_of(job)
    config = config_of(workload, job["settings"])
    everything = RehearsalJob(
        config=config, layout=config.parallel.layout(job["ranks"]), store=workload.structures, work=workload.work,
        batch=list(range(len(workload.structures))), denominators=workload.denominators(config), steps=job["steps"],
    )  # fmt: skip
    shares, rank = choose_rank(everything, job["rank"])
    found = Rehearsal(everything, shares, rank, CPU).run()
    document = document_of(config, everything, found, None, {}, connect(device="cpu"))
    return {"rank": rank, "document": document, "compute_s": found.typical.compute_s, "traffic": found.typical.traffic,
            "cpu_s": statistics.median(step.cpu_s for step in found.steps),
            "allocated_bytes": found.memory["step_peak_allocated_bytes"],
            "resident_bytes": found.memory["step_peak_resident_bytes"]}  # fmt: skip


def run_on_ranks(job: dict[str, Any]) -> None:
    """What each process does; the first prints one JSON line."""
    torch.set_num_threads(1)
    if job["what"] == "rehearsed":
        print(json.dumps(rehearsed_rank(job)), flush=True)
        return
    communicator = connect(device="cpu", transport="gloo", timeout_s=300)
    rows = real_rank(job, communicator)
    if communicator.rank == 0:
        print(json.dumps({"ranks": rows}), flush=True)
    communicator.leave(0)


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each model and layout: a rank with most to compute, real and rehearsed."""
    found = []
    for model in options.models:
        for num_ranks in options.ranks:
            for name, settings in layouts_of(num_ranks, with_experts=MODELS[model].experts is not None).items():
                if options.layouts is not None and name not in options.layouts:
                    continue
                found.append(compared(options, model, num_ranks, name, settings))
    return found


def compared(
    options: argparse.Namespace, model: str, num_ranks: int, name: str, settings: dict[str, Any]
) -> dict[str, Any]:
    job = {"model": model, "ranks": num_ranks, "settings": settings, "structures": options.structures,
           "repeat": options.repeat, "steps": options.steps}  # fmt: skip
    [real] = launch(__file__, num_ranks, job | {"what": "real"}, LAUNCH_TIMEOUT_S)
    chosen = max(real["ranks"], key=lambda rank: rank["compute_s"])
    words = [__file__, "--on-ranks", json.dumps(job | {"what": "rehearsed", "rank": chosen["rank"]})]
    rehearsed = json.loads(run_ranks(1, words, LAUNCH_TIMEOUT_S).splitlines()[-1])
    row = {"model": model, "ranks": num_ranks, "layout": name, "settings": settings, "rank": chosen["rank"],
           "rows_equal": rehearsed["traffic"] == chosen["traffic"], "rows": len(chosen["traffic"]),
           "real": _plain(chosen), "rehearsed": _plain(rehearsed), "traffic": chosen["traffic"],
           "ratio": {key: rehearsed[key] / chosen[key] for key in
                     ("compute_s", "cpu_s", "allocated_bytes", "resident_bytes")}}  # fmt: skip
    if options.machine is not None:
        host = load_machine(options.machine)  # scaled: from one rank on it to as many as the job has
        played = replay(rehearsal_of(rehearsed["document"]), host, compute="scaled", host=host)
        row["replay"] = {"step_s": played.step_s, "exposed_s": played.exposed_s, "notes": played.notes,
                         "real_step_s": max(rank["step_s"] for rank in real["ranks"])}  # fmt: skip
    verdict = "equal" if row["rows_equal"] else "DIFFER"
    progress(f"{model}, {name}: rows {verdict}, compute x {row['ratio']['compute_s']:.2f}")
    return row


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("traffic", "document")}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """MB are 10^6 bytes."""
    print(f"{'model':<14}{'layout':<38}{'rows':>6}{'compute ms: real':>18}{'rehearsed':>11}{'ratio':>7}{'cpu':>6}"
          f"{'allocated MB: real':>20}{'rehearsed':>11}{'ratio':>7}{'resident':>9}")  # fmt: skip
    for row in rows:
        real, rehearsed, ratio = row["real"], row["rehearsed"], row["ratio"]
        print(f"{row['model']:<14}{row['layout']:<38}{row['rows'] if row['rows_equal'] else 'DIFFER':>6}"
              f"{1e3 * real['compute_s']:>18.1f}{1e3 * rehearsed['compute_s']:>11.1f}{ratio['compute_s']:>7.2f}"
              f"{ratio['cpu_s']:>6.2f}{real['allocated_bytes'] / 1e6:>20.1f}{rehearsed['allocated_bytes'] / 1e6:>11.1f}"
              f"{ratio['allocated_bytes']:>7.2f}{ratio['resident_bytes']:>9.2f}")  # fmt: skip
        if "replay" in row:
            step = row["replay"]
            print(f"{'':<14}step: replayed {1e3 * step['step_s']:.1f} ms, real {1e3 * step['real_step_s']:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["moe-small", "matris-small"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--layouts", nargs="+", metavar="NAME", help="these only, as the table names them")
    parser.add_argument("--structures", type=int, default=8, help="structures of the global batch")
    parser.add_argument("--repeat", type=int, nargs=3, default=[2, 2, 1], help="cubes of 8 atoms per structure")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--machine", metavar="HOST.toml", help="replay on this calibrated host too")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--on-ranks", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_ranks is not None:
        run_on_ranks(options.on_ranks)
        return
    about = provenance("rehearsal")
    rows = compare(options)
    if options.json:
        json.dump(about | {"rows": rows}, sys.stdout, indent=1)
        print()
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
