"""How long a report of a large campaign takes: 1,000 attempts, all formats, as one call of the command.

    python benchmarks/report.py               made records, every format; stages from within, the whole from outside
    python benchmarks/report.py --attempts 5000 --keep /tmp/campaign
    python benchmarks/report.py --json > benchmarks/results/report.json

The records are made, not measured: a weak, a strong and a throughput study up to 512 ranks, 20 steps a job, times with
noise and drift, one attempt in twenty lost. Nothing of the machine enters but its speed in making the report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reports.build import build_document
from reports.campaign import Campaign
from reports.files import FORMATS, write_report
from scaling_studies.records import (
    FAILED,
    MEASURED,
    PREDICTED,
    RECORD_FOLDER,
    Ceiling,
    Peak,
    PhaseWorkload,
    RankCounts,
    RankTimes,
    Record,
    cell_hash,
    read_folder,
    write_record,
)  # fmt: skip

PHASES = {"data": 0.03, "FE": 0.15, "FF": 0.2, "BF": 0.3, "BE": 0.15, "sync": 0.1, "optimizer": 0.05}
RANKS = {"weak": [2**power for power in range(10)], "strong": [2**power for power in range(8)], "throughput": [8] * 6}
STEPS, CORES_PER_NODE = 20, 64
PACKAGES = ("typst", "matplotlib", "jinja2")
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
FLOPS, CORE_PEAK = 2e9, 50e9


def points() -> Iterator[tuple[str, int, float | None, float]]:
    """(study, ranks, scale, typical seconds of a step) of every point."""
    for mode, ranks in RANKS.items():
        for place, count in enumerate(ranks):
            weak_s = 0.2 * (1 + 0.02 * place)
            factor = {"weak": 1.0, "strong": 256 / count, "throughput": 0.5 * 2**place}[mode]
            yield mode, count, 2.0**place if mode == "throughput" else None, factor * weak_s


def cell_values(mode: str, ranks: int, scale: float | None, repeats: int) -> dict[str, Any]:
    """What all records of a point share."""
    structures = int(scale or (2 if mode == "weak" else max(1, 512 // ranks)))
    flops = FLOPS * structures * ranks
    source = "made for this benchmark"
    counts = RankCounts(structures=structures, atoms=60 * structures, edges=3600 * structures, bonds=1500 * structures,
                        angles=34_000 * structures)  # fmt: skip
    return {
        "study": mode, "question": f"How does {mode} go?", "mode": mode, "ranks": ranks, "repeats_planned": repeats,
        "cell_id": cell_hash({"mode": mode, "ranks": ranks, "scale": scale}), "clock": "made", "model": "matris-tiny",
        "base_ranks": RANKS[mode][0], "dtype": "float32", "machine": "made", "layout": {"unit": 1, "replicas": ranks},
        "scaled": "ranks" if scale is None else "structures_per_rank", "scale": scale,
        "base_scale": None if scale is None else 1.0, "nodes": -(-ranks // CORES_PER_NODE),
        "counts_per_rank": (counts,) * ranks, "model_flops": flops, "executed_flops": 1.2 * flops,
        "peak": Peak(flops_per_s=CORE_PEAK * ranks, name=f"{ranks} x core", dtype="float32", source=source),
        "ceilings": (
            Ceiling(value=CORE_PEAK * ranks, unit="FLOP/s", name="core", dtype="float32", source=source),
            Ceiling(value=1e10 * ranks, unit="byte/s", name="memory", dtype="", source=source),
        ),
        "workload": {name: PhaseWorkload(flops=share * flops, bytes=share * flops / 3)
                     for name, share in PHASES.items() if name in ("FE", "FF", "BF", "BE")},
    }  # fmt: skip


def attempt(shared: dict[str, Any], number: int, step_s: float, dice: random.Random) -> Record:
    """One attempt: noise between jobs and between steps, every twentieth lost."""
    begin = BEGIN + timedelta(minutes=7 * number + dice.random())
    times = {"submitted_at": begin.isoformat(), "started_at": (begin + timedelta(minutes=1)).isoformat(),
             "ended_at": (begin + timedelta(minutes=3)).isoformat()}  # fmt: skip
    fixed = {**shared, **times, "source": MEASURED, "method": "made", "attempt": number, "executor": "slurm",
             "job_id": str(number), "provenance": provenance(shared["ranks"], number, times)}  # fmt: skip
    if dice.random() < 0.05:
        return Record(**{**fixed, "state": FAILED, "reason": f"node made{dice.randrange(99):02d} was lost"})
    median_s = step_s * dice.gauss(1, 0.02)
    steps = tuple(median_s * (1 + abs(dice.gauss(0, 0.03))) for _ in range(STEPS))
    waits = tuple(abs(dice.gauss(0.03, 0.01)) * median_s for _ in range(shared["ranks"]))
    return Record(
        **fixed, step_s=steps, warm_up_step_s=(3 * median_s, 1.2 * median_s), repeat=number - 1,
        phase_s={name: tuple(share * value for value in steps) for name, share in PHASES.items()},
        rank_times=RankTimes(step_s=(median_s,) * shared["ranks"], busy_s=tuple(median_s - wait for wait in waits),
                             wait_s=waits),
        start_up_s=5.0, loop_s=1.05 * sum(steps) + 4.2 * median_s, wall_s=10 + 1.05 * sum(steps) + 4.2 * median_s,
        memory_bytes=dice.randrange(10**9, 11 * 10**8),
    )  # fmt: skip


def provenance(ranks: int, number: int, times: dict[str, str]) -> dict[str, Any]:
    nodes = [f"made{(number + place) % 99:02d}" for place in range(-(-ranks // CORES_PER_NODE))]
    return {
        "code_revision": "0123abc", "code_diff": "not applicable: nothing changed since", "code_version": "made",
        "lock_digest": "made", "modules": ["made/1.0"], "environment": {"OMP_NUM_THREADS": "1"}, "host": nodes[0],
        "node_list": nodes, "operating_system": "made", "devices": ["CPU, one thread"] * ranks,
        "clocks": {node: {"governor": "performance", "max_mhz": 2400} for node in nodes},
        "driver": "not applicable: no GPU", "library_versions": {"python": "3.11", "torch": "2.13"},
        "placement": [{"host": nodes[rank // CORES_PER_NODE], "cores": [rank % CORES_PER_NODE]}
                      for rank in range(ranks)],
        "resolved_config": {"run": {"steps": STEPS}}, "seeds": {"weights": 0, "order": 0}, "job_id": str(number),
        "start": times["started_at"], "end": times["ended_at"],
    }  # fmt: skip


def prediction(shared: dict[str, Any], step_s: float) -> Record:
    phases = {name: (share * step_s,) for name, share in PHASES.items()}
    causes = {name: {"products": 0.7 * times[0], "operators": 0.3 * times[0]} for name, times in phases.items()}
    causes["sync"] = {"gradient sums": 0.6 * phases["sync"][0], "wait": 0.4 * phases["sync"][0]}
    return Record(
        **shared, source=PREDICTED, method="made", step_s=(step_s,), phase_s=phases, phase_cause_s=causes,
        memory_bytes=10**9, memory_parts={"activations": 7e8, "parameters": 3e8}, start_up_s=5.0,
        wall_s=10 + 25 * step_s,
    )  # fmt: skip


def make_campaign(folder: Path, num_attempts: int) -> None:
    """Predictions and so many attempts, spread evenly over the points."""
    dice = random.Random(0)
    every = list(points())
    for place, (mode, ranks, scale, step_s) in enumerate(every):
        attempts = len(range(place, num_attempts, len(every)))
        shared = cell_values(mode, ranks, scale, attempts)
        write_record(folder / RECORD_FOLDER, prediction(shared, 0.96 * step_s))
        for number in range(1, attempts + 1):
            write_record(folder / RECORD_FOLDER, attempt(shared, number, step_s, dice))


def stages(folder: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage within one process, imports apart."""
    taken, last = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        taken[f"{name}_s"], last = now - last, now

    campaign = Campaign(folder=read_folder(folder / RECORD_FOLDER))
    lap("read")
    document = build_document(campaign, title="Made", written_at="now")
    lap("sections")
    for name in FORMATS:
        write_report(document, campaign, out / "stages.html", [name])
        lap(name)
    return taken


def measure(num_attempts: int, folder: Path) -> dict[str, Any]:
    """One campaign, one report by the command, one by stages (in which every format draws the figures again)."""
    make_campaign(folder, num_attempts)
    out = folder / "out"
    begin = time.perf_counter()
    words = ["report", str(folder), "--out", str(out / "report.html")]
    subprocess.run([sys.executable, "-m", "janus", *words], check=True, stdout=subprocess.DEVNULL)
    whole_s = time.perf_counter() - begin
    return {
        "benchmark": "report", "command": "python benchmarks/report.py --json",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"), "attempts": num_attempts,
        "points": len(list(points())), "janus_report_s": whole_s, "stages": stages(folder, out),
        "record_bytes": sum(path.stat().st_size for path in (folder / RECORD_FOLDER).iterdir()),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(out.glob("report.*"))},
        "cores": len(os.sched_getaffinity(0)), "load_at_start": os.getloadavg()[0], "processor": platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="folder for the campaign and its report (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(options.attempts, options.keep or Path(temporary))
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['attempts']} attempts, {result['record_bytes'] / 2**20:.1f} MiB of records: "
          f"janus report {result['janus_report_s']:.1f} s")  # fmt: skip
    for name, value in result["stages"].items():
        print(f"  {name.removesuffix('_s'):10s} {value:6.2f} s")


if __name__ == "__main__":
    main()
