"""Numbers of a report as CSV: any table of it, and every attempt and prediction. It does not own what is in them."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence

from reports.document import Column, Table, Value
from scaling_studies.records import Record

ATTEMPT_COLUMNS = (
    "study", "mode", "scaled", "x", "ranks", "nodes", "cell_id", "source", "method", "attempt", "repeat", "state",
    "reason", "model", "dtype", "machine", "oversubscribed", "step_s_median", "step_s_max", "num_steps", "start_up_s",
    "loop_s", "wall_s", "model_flops_per_step", "executed_flops_per_step", "peak_flops_per_s", "peak_name",
    "memory_bytes", "executor", "job_id", "started_at", "ended_at",
)  # fmt: skip


def table_csv(table: Table) -> str:
    """The table with one head line; numbers as such, in SI units and full precision, everything else as its text.

    Intervals have two columns, one for each end.
    """
    head = [name for column in table.columns for name in _names(column)]
    rows = (
        [value for column, cell in zip(table.columns, row, strict=True) for value in _cells(column, cell)]
        for row in table.rows
    )
    return _csv(head, rows)


def _names(column: Column) -> list[str]:
    return [column.csv_name or column.name, *([column.csv_high] if column.csv_high else [])]


def _cells(column: Column, cell: Value | str) -> list[str | float]:
    """One cell, or the two ends of an interval; the upper end of what is no interval is empty."""
    if not column.csv_high:
        return [_plain(cell)]
    high = cell.high if isinstance(cell, Value) else None
    return [_plain(cell), "" if high is None else high]


def _plain(cell: Value | str) -> str | float:
    if isinstance(cell, str):
        return cell
    return cell.text if cell.number is None else cell.number


def attempts_csv(records: Sequence[Record]) -> str:
    """A line for every attempt and every prediction, whatever its state; unknown values are empty."""
    return _csv(ATTEMPT_COLUMNS, (_attempt(record) for record in records))


def _attempt(record: Record) -> list[object]:
    return [
        record.study, record.mode, record.scaled, record.x, record.ranks, record.nodes, record.cell_id, record.source,
        record.method, record.attempt, record.repeat, record.state, record.reason, record.model, record.dtype,
        record.machine, record.oversubscribed, statistics.median(record.step_s) if record.step_s else None,
        max(record.step_s, default=None), len(record.step_s), record.start_up_s, record.loop_s, record.wall_s,
        record.model_flops, record.executed_flops, record.peak.flops_per_s if record.peak else None,
        record.peak.name if record.peak else None, record.memory_bytes, record.executor, record.job_id,
        record.started_at, record.ended_at,
    ]  # fmt: skip


def records_jsonl(records: Iterable[Record]) -> str:
    """All records, raw step times included, one JSON document per line, as in their files."""
    encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=vars)
    return "".join(encoder.encode(vars(record)) + "\n" for record in records)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_number(value) for value in row])
    return stream.getvalue()


def _number(value: object) -> object:
    """Whole numbers without a decimal point."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
