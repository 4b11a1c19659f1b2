"""What the streams and messages of a prediction did, as a Chrome trace: opens in Perfetto (ui.perfetto.dev).

It owns the export. It does not own what happened (``streams``, ``flow_events``). Format: Trace Event Format, JSON
object form (Google, 2016): complete events (ph "X") with ts and dur in microseconds, pid a rank, tid a stream, and
metadata events (ph "M") that name them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perfmodel.network.flow_events import Records
from perfmodel.network.streams import Span

US = 1e6  # microseconds in a second


def stream_trace(spans: Sequence[Span], rank_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Ranks as processes, their streams as threads. rank_names: for each rank played; default its number."""
    streams = sorted({span.stream for span in spans}, key=lambda name: (name != "compute", name))
    events: list[dict[str, Any]] = []
    for rank in sorted({span.rank for span in spans}):
        name = rank_names[rank] if rank_names is not None else f"rank {rank}"
        events.append(_named("process_name", rank, 0, name))
        events += [_named("thread_name", rank, tid, stream) for tid, stream in enumerate(streams)]
    events += [
        {
            "name": span.name, "cat": span.stream, "ph": "X", "ts": span.begin_s * US,
            "dur": (span.end_s - span.begin_s) * US, "pid": span.rank, "tid": streams.index(span.stream),
            "args": {"waited_us": span.waited_s * US},
        }
        for span in spans
    ]  # fmt: skip
    return _trace(events)


def message_trace(records: Records) -> dict[str, Any]:
    """Messages of a collective: senders as processes, receivers as threads; latency and flow one after the other."""
    events: list[dict[str, Any]] = []
    pairs = sorted(set(zip(records.source.tolist(), records.target.tolist(), strict=True)))
    events += [_named("process_name", rank, 0, f"rank {rank}") for rank in sorted({pair[0] for pair in pairs})]
    events += [_named("thread_name", source, target, f"to rank {target}") for source, target in pairs]
    for number in range(len(records.source)):
        source, target = int(records.source[number]), int(records.target[number])
        posted, begun, ended = (
            float(times[number]) * US for times in (records.posted_s, records.begun_s, records.ended_s)
        )
        common = {"ph": "X", "pid": source, "tid": target, "args": {"bytes": float(records.message_bytes[number])}}
        events.append({"name": "latency", "cat": "latency", "ts": posted, "dur": begun - posted, **common})
        events.append({"name": "flow", "cat": "flow", "ts": begun, "dur": ended - begun, **common})
    return _trace(events)


def write_trace(trace: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(trace, allow_nan=False))


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _trace(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"traceEvents": list(events), "displayTimeUnit": "ms"}
