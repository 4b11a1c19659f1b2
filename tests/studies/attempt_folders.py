"""The folder of an ended attempt as trainer and job script leave it, for tests that need no training.

Its facts of the host are real, its times are made up.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus import __version__, host_facts
from janus.config import to_mapping, to_toml
from janus.source_digest import source_digest
from janus.train.config import TrainConfig, train_config
from scaling_studies.cells import Cell, identity
from scaling_studies.job_facts import BEGIN_FILE, END_FILE, collect
from scaling_studies.records import MEASURED, RUNNING, RankCounts, Record

PHASES = {"data": 0.001, "FE": 0.01, "FF": 0.02, "BF_BE": 0.03, "sync": 0.002, "optimizer": 0.003}
STEP_S = 0.07
CODE_VERSION = f"{__version__}+{source_digest()}"


def run_document(config: TrainConfig, ranks: int) -> dict[str, Any]:
    """run.json of a run that is done."""
    host = {"clocks": host_facts.cpu_clocks(), "driver": host_facts.gpu_driver(),
            "operating_system": host_facts.operating_system()}  # fmt: skip
    row = {"phase": "sync", "axis": "world", "collective": "all_reduce", "calls": 2, "sent_bytes": 1000}
    return {
        "schema": "janus.run/1", "status": "done", "world_size": ranks,
        "layout": config.parallel.layout(ranks).to_mapping(), "oversubscribed": False, "dtype": config.run.dtype,
        "seeds": {"run": config.run.seed, "data": config.data.seed},
        "start_up_s": 1.0, "loop_s": 0.5, "wall_s": 1.75,
        "peak_memory_bytes": [1000 + rank for rank in range(ranks)],
        "sent_last_step": [[row] if ranks > 1 else [] for _ in range(ranks)],
        "provenance": {
            "git_revision": "abc1234", "code_version": CODE_VERSION, "versions": {"torch": "none is used"},
            "hosts": ["here"], "host_facts": {"here": host}, "placement": ["here cores 0-1 cpu"] * ranks,
            "device_per_rank": ["cpu"] * ranks, "device_names": [host_facts.cpu_name()],
            "threads_per_rank": [1] * ranks, "launcher": "mpiexec", "transport": "gloo", "settings": {},
            "command": "janus train",
        },
    }  # fmt: skip


def step_lines(counts: Sequence[Mapping[str, int]], num_steps: int) -> list[dict[str, Any]]:
    """steps.jsonl: all steps alike; a rank waits a millisecond longer than the next one."""
    waits_s = [0.001 * (len(counts) - 1 - rank) for rank in range(len(counts))]
    return [
        {"step": step, "loss": 1.0 / (step + 1), "step_s": STEP_S, "ranks": [
            {"rank": rank, **entry, "phase_s": PHASES, "wait_s": waits_s[rank], "step_s": STEP_S - 0.001 * rank}
            for rank, entry in enumerate(counts)
        ]}
        for step in range(num_steps)
    ]  # fmt: skip


def write_run(folder: Path, config: TrainConfig, counts: Sequence[Mapping[str, int]]) -> None:
    """What the trainer leaves. counts: of each rank, structures, atoms, edges, bonds and angles."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(to_mapping(config)))
    lines = step_lines(counts, config.run.num_steps(1, 1))
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps(run_document(config, len(counts))))


def cell_config(cell: Cell) -> TrainConfig:
    """The trainer's settings of a cell."""
    return train_config({"model": cell.study.model, **cell.train_settings})


def running_record(cell: Cell, **changes: Any) -> Record:
    """The record of an attempt at a cell before it ends."""
    values = {
        **identity(cell), "source": MEASURED, "method": "", "machine": "here", "layout": {}, "state": RUNNING,
        "attempt": 1, "executor": "local", "job_id": "here:1", "submitted_at": "2026-11-20T10:00:00+00:00",
    }  # fmt: skip
    return Record(**{**values, **changes})


def write_attempt(study: Path, cell: Cell, *, counts: Sequence[RankCounts] | None = None) -> Path:
    """The folder of an attempt that went well, in the study's folder."""
    folder = study / "attempts" / running_record(cell).tag
    begin = collect("begin")
    code = {"version": CODE_VERSION, "revision": "abc1234", "diff": "d1ff", "distributions": "70c"}
    entries = [dataclasses.asdict(entry) for entry in counts or cell.counts_per_rank]
    write_run(folder / "run", cell_config(cell), entries)
    (folder / BEGIN_FILE).write_text(json.dumps(begin | {"code": code}))
    (folder / END_FILE).write_text(json.dumps(collect("end", 0)))
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Change values of a JSON file; a value of None removes it."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
