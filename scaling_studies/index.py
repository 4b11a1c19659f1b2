"""The index of a study folder: one Parquet table with a row per record, for people who analyse campaigns.

It is made from the JSON files alone and can be deleted at any time: nothing reads it back. It does not own records.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus.errors import UserError
from scaling_studies.atomic import write_atomically
from scaling_studies.records import Record

INDEX_FILE = "index.parquet"
PLAIN_FIELDS = (
    "source", "study", "mode", "scaled", "scale", "base_scale", "ranks", "nodes", "base_ranks", "model", "dtype",
    "machine", "cell_id", "attempt", "repeat", "state", "reason", "executor", "job_id", "submitted_at", "started_at",
    "ended_at", "oversubscribed", "start_up_s", "loop_s", "wall_s", "model_flops", "executed_flops", "memory_bytes",
)  # fmt: skip
NESTED_FIELDS = ("layout", "facts", "provenance")  # as JSON text


def index_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row of plain values per record. Times in seconds; phase_NAME_s: median over the steps of the record."""
    phases = list(dict.fromkeys(phase for record in records for phase in record.phase_s))
    return [_row(record, phases) for record in records]


def _row(record: Record, phases: Sequence[str]) -> dict[str, Any]:
    step_s = record.step_s
    medians = {f"phase_{phase}_s": _median(record.phase_s.get(phase, ())) for phase in phases}
    return {
        "file": record.file_name, **{name: getattr(record, name) for name in PLAIN_FIELDS},
        "steps": len(step_s), "step_median_s": _median(step_s), "step_min_s": min(step_s, default=None),
        "step_max_s": max(step_s, default=None), "step_s": list(step_s),
        "structures": record.structures or None, **medians,
        "peak_flops_per_s": record.peak.flops_per_s if record.peak else None,
        **{name: json.dumps(getattr(record, name), sort_keys=True) for name in NESTED_FIELDS},
    }  # fmt: skip


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def write_index(folder: Path, records: Sequence[Record]) -> Path:
    """Write the index anew. Raises UserError when there is no record or no room."""
    import pyarrow
    import pyarrow.parquet

    if not records:
        raise UserError(f"{folder} holds no record to index: run 'janus study run' first, or check the path")
    path, sink = folder / INDEX_FILE, pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(index_rows(records)), sink)
    write_atomically(path, sink.getvalue().to_pybytes())
    return path
