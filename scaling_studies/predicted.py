"""Predicted records: the same cells and the same schema, with times from perfmodel instead of a run.

It owns turning a prediction into a record; it does not own how a time is predicted (``perfmodel``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from janus.errors import UserError
from janus.layout import Layout
from perfmodel.machine import Machine
from perfmodel.step_time import StepPrediction, predict_step
from perfmodel.workload import Counts
from scaling_studies.cells import Cell
from scaling_studies.measured import identity
from scaling_studies.records import DONE, FAILED, PREDICTED, Peak, RankCounts, Record

METHOD = "perfmodel, analytic step time"


def device_peaks(machine: Machine) -> dict[str, Peak]:
    """dtype -> peak of one device of the machine (of one core, for a calibrated host)."""
    return {
        dtype: Peak(flops_per_s=peak.flops_per_s, name=peak.name, dtype=peak.dtype, source=peak.source)
        for dtype, peak in machine.peaks.items()
    }


def _counts(entry: RankCounts) -> Counts:
    return Counts(**dataclasses.asdict(entry))


def predict_cell(cell: Cell, machine: Machine) -> StepPrediction:
    """The prediction for one cell: data parallel over its ranks, one thread each, all on one node."""
    return predict_step(
        cell.study.model_config,
        [[_counts(batch) for batch in batches] for batches in cell.micro_batches],
        Layout(replicas=cell.ranks),
        machine,
        dtype=cell.study.dtype,
        recompute=cell.study.recompute,
    )


def predicted_record(cell: Cell, machine: Machine) -> Record:
    """The predicted record of a cell; FAILED with the reason where the machine file does not allow a prediction."""
    shared: dict[str, Any] = {
        **identity(cell), "source": PREDICTED, "method": METHOD, "machine": machine.name,
        "layout": Layout(replicas=cell.ranks).to_mapping(), "counts_per_rank": cell.counts_per_rank,
    }  # fmt: skip
    try:
        prediction = predict_cell(cell, machine)
    except UserError as error:
        return Record(**shared, state=FAILED, reason=str(error))
    assumptions = [f"{name}: {text}" for name, text in machine.assumptions().items()] + list(prediction.notes)
    peak = device_peaks(machine).get(cell.study.dtype)
    return Record(
        **shared,
        state=DONE,
        step_s=(float(prediction.step_s),),
        phase_s={phase: (float(value),) for phase, value in prediction.phase_s.items()},
        model_flops=float(prediction.flops_model),
        executed_flops=float(prediction.flops_executed),
        memory_bytes=int(prediction.memory_bytes),
        oversubscribed=prediction.oversubscribed,
        facts={"cause_s": dict(prediction.cause_s), "assumptions": assumptions},
        peak=peak.times(machine.devices_used(cell.ranks, 1)) if peak is not None else None,
    )


def predicted_records(cells: Sequence[Cell], machine: Machine) -> list[Record]:
    return [predicted_record(cell, machine) for cell in cells]
