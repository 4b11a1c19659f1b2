"""Traces: what Perfetto and chrome://tracing need of every event, and the times of what was played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfmodel.network.algorithms import make_schedule
from perfmodel.network.flow_events import simulate
from perfmodel.network.routes import Transport
from perfmodel.network.streams import Operation, simulate_streams
from perfmodel.network.trace import message_trace, stream_trace, write_trace
from tests.perfmodel.network.small_networks import OneSwitch


def assert_is_a_trace(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns its complete events."""
    named = {(event["pid"], event["tid"]) for event in trace["traceEvents"] if event["name"] == "thread_name"}
    for event in trace["traceEvents"]:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["name"]
            assert (event["pid"], event["tid"]) in named
        else:
            assert isinstance(event["args"]["name"], str)
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_streams_as_a_trace(tmp_path: Path) -> None:
    program = [Operation(name="block", stream="compute", seconds=1e-3),
               Operation(name="sum", stream="communication", seconds=5e-4, axis="world", after=(0,))]  # fmt: skip
    outcome = simulate_streams(program, {"world": np.zeros(2, np.int64)}, np.array([1.0, 1.5]), record=True)
    write_trace(stream_trace(outcome.spans, ["unit 0", "unit 1"]), tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = assert_is_a_trace(trace)
    assert len(events) == 4
    first = {(event["pid"], event["name"]): event for event in events}
    assert first[0, "block"]["dur"] == pytest.approx(1000)
    assert first[0, "sum"]["ts"] == pytest.approx(1000)
    assert first[0, "sum"]["dur"] == pytest.approx(1000)  # half of it waiting for the slower rank
    assert first[0, "sum"]["args"]["waited_us"] == pytest.approx(500)
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert names == {"unit 0", "unit 1"}
    streams = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert streams == {0: "compute", 1: "communication"}


def test_messages_as_a_trace() -> None:
    schedule = make_schedule("all_to_all", "pairwise", 4)
    outcome = simulate(schedule, OneSwitch(4), Transport(overhead_s=1e-6), 4e6, record=True)
    assert outcome.records is not None
    events = assert_is_a_trace(message_trace(outcome.records))
    assert len(events) == 2 * 12
    assert max(event["ts"] + event["dur"] for event in events) == pytest.approx(outcome.time_s * 1e6)
    assert [event["dur"] for event in events if event["name"] == "latency"] == pytest.approx([2.0] * 12)
