"""The content of rehearsal.json (schema janus.rehearsal/1): what was rehearsed, what came of it, what is drawn out.

It owns names and labels, not the numbers. ``perfmodel/rehearsal.py`` reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from janus.config import to_mapping
from janus.train.config import TrainConfig
from perfmodel.products import Counts
from perfmodel.rehearsal import SCHEMA
from perfmodel.step_work import RunSettings
from perfmodel.workload import step_flops

if TYPE_CHECKING:
    from janus.parallel.communication import Communicator
    from janus.rehearse import RehearsalJob, Rehearsed

Line = Callable[[float | None, float | None], float | None]
DEPTH = ("num_blocks", "micro_batches", "is_finite", "building_s", "loading_s", "memory", "flops", "steps", "step")


def counts_of(row: dict[str, Any]) -> Counts:
    """Rows of a micro-batch as ``Rehearsed.micro_batches`` has them."""
    return Counts(**{name: value for name, value in row.items() if name in Counts.__dataclass_fields__})


def settings_of(config: TrainConfig) -> RunSettings:
    """The run's settings as the predictor names them."""
    parallel = config.parallel
    return RunSettings(
        dtype=config.run.dtype, max_work=config.batch.max_work, recompute=config.run.recompute,
        gathered_blocks=parallel.gathered_blocks, expert_strategy=parallel.expert_strategy,
        expert_replication=parallel.expert_replication, expert_flops_per_byte=parallel.expert_flops_per_byte,
        expert_compression=parallel.expert_compression == "float16", bucket_bytes=parallel.bucket_bytes,
        clips=config.optimizer.clip_norm is not None, averages=config.optimizer.ema_decay > 0,
        transport="gloo" if parallel.transport == "auto" else parallel.transport,
    )  # fmt: skip


def document_of(
    config: TrainConfig, job: RehearsalJob, found: Rehearsed, fewer: dict[str, Any] | None, data: dict[str, Any],
    communicator: Communicator,
) -> dict[str, Any]:  # fmt: skip
    """A rehearsal, the one of fewer blocks inside (``depth_of``), what was drawn out of both. config: of the whole
    model; data: where the structures of the step come from.
    """
    import torch

    from janus.train.provenance import describe

    shares = found.shares
    own = shares.work[shares.layout.coordinates(found.rank).data]
    provenance = describe(communicator)
    document = {
        "schema": SCHEMA,
        "kind": "measured on one rank without the others; nothing was sent",
        "provenance": provenance,
        "device_name": provenance["device_name"],
        "threads": torch.get_num_threads(),
        "model": to_mapping(config.model),
        "layout": shares.layout.to_mapping(),
        "layout_name": shares.layout.describe(),
        "rank": found.rank,
        "settings": to_mapping(settings_of(config)),
        "with_optimizer": job.with_optimizer,
        "data": data,
        "work": {
            "rank": float(own), "mean": float(shares.work.mean()), "largest": float(shares.work.max()),
            "smallest": float(shares.work.min()), "groups": len(shares.work),
        },
        **_of_depth(job, found),
        "fewer_blocks": fewer,
    }  # fmt: skip
    document["drawn_out"] = _drawn_out(document, config.model.num_blocks)
    return document


def depth_of(document: dict[str, Any]) -> dict[str, Any]:
    """What depends on the number of blocks."""
    return {name: document[name] for name in DEPTH}


def _of_depth(job: RehearsalJob, found: Rehearsed) -> dict[str, Any]:
    """One depth: its steps (the typical one in full), memory, FLOPs."""
    typical = found.typical
    model, flops_model, flops_executed = job.config.model, 0.0, 0.0
    for row in found.micro_batches:
        flops = step_flops(model, counts_of(row), recompute=job.config.run.recompute)
        flops_model, flops_executed = flops_model + flops.model_total, flops_executed + flops.executed_total
    return {
        "num_blocks": model.num_blocks,
        "micro_batches": found.micro_batches,
        "is_finite": found.is_finite,
        "building_s": found.building_s,
        "loading_s": found.loading_s,
        "memory": found.memory,
        "flops": {"model": flops_model, "executed": flops_executed, "kind": "formula (perfmodel)"},
        "steps": [{"step_s": step.step_s, "compute_s": step.compute_s, "made_up_s": step.made_up_s, "cpu_s": step.cpu_s,
                   "phase_s": step.phase_s, "loss": _finite(step.loss), "gradient_norm": _finite(step.norm)}
                  for step in found.steps],
        "step": {"compute_s": typical.compute_s, "phase_s": typical.phase_s, "traffic": typical.traffic,
                 "calls": typical.calls, "events": typical.events},
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _drawn_out(document: dict[str, Any], num_blocks: int) -> dict[str, Any] | None:
    """Compute seconds and memory of the whole model by a straight line through two depths; None without two.

    Seconds are None where the deeper rehearsal was not the slower one.
    """
    fewer = document["fewer_blocks"]
    if fewer is None:
        return None
    times = (num_blocks - document["num_blocks"]) / (document["num_blocks"] - fewer["num_blocks"])

    def line(above: float | None, below: float | None) -> float | None:
        return None if above is None or below is None else above + times * (above - below)

    deep, shallow = document["step"], fewer["step"]
    is_told = deep["compute_s"] > shallow["compute_s"]  # else the host was busy, and a line would mean nothing
    return {
        "num_blocks": num_blocks,
        "compute_s": line(deep["compute_s"], shallow["compute_s"]) if is_told else None,
        "phase_s": {name: line(value, shallow["phase_s"][name]) if is_told else None
                    for name, value in deep["phase_s"].items()},
        "memory": _memory_drawn_out(document, fewer, line),
        "flops": {name: line(document["flops"][name], fewer["flops"][name]) for name in ("model", "executed")},
        "kind": f"drawn out in a straight line from {fewer['num_blocks']} and {document['num_blocks']} blocks",
    }  # fmt: skip


PEAKS = ("step_peak_allocated_bytes", "step_peak_resident_bytes", "process_peak_bytes")


def _memory_drawn_out(document: dict[str, Any], fewer: dict[str, Any], line: Line) -> dict[str, float | None]:
    """Bytes in a straight line. Gathered blocks are apart: a deeper model holds no more of them at a time than
    ``gathered_blocks``, so they stay as they are once there are as many.
    """
    held = document["settings"]["gathered_blocks"]
    more, less = document["memory"], fewer["memory"]
    gathered = "gathered_peak_bytes"
    grows = held == 0 or document["num_blocks"] < held
    drawn = {name: line(size, less[name]) for name, size in more.items()}
    if not grows:
        drawn[gathered] = more[gathered]
        for name in PEAKS:
            if more[name] is not None and less[name] is not None:
                rest = line(more[name] - more[gathered], less[name] - less[gathered])
                drawn[name] = None if rest is None else rest + more[gathered]
    return drawn
