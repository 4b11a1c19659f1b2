"""Streams: dependencies, overlap, meetings of groups, stragglers; by hand."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.network.streams import Operation, StreamOutcome, simulate_streams


def compute(seconds: float, *after: int) -> Operation:
    return Operation(name="compute", stream="compute", seconds=seconds, after=after)


def collective(seconds: float, *after: int, stream: str = "communication") -> Operation:
    return Operation(name="sum", stream=stream, seconds=seconds, axis="world", after=after)


def run(program: list[Operation], factor: list[float], *, overlap: bool = True, record: bool = False) -> StreamOutcome:
    return simulate_streams(program, {"world": np.zeros(len(factor), np.int64)}, np.array(factor), overlap=overlap,
                            record=record)  # fmt: skip


def test_a_collective_hides_behind_compute_only_with_overlap() -> None:
    program = [compute(1.0), collective(0.6, 0), compute(1.0), compute(0.5, 1)]
    assert run(program, [1.0, 1.0]).step_s == pytest.approx(2.5)
    assert run(program, [1.0, 1.0], overlap=False).step_s == pytest.approx(3.1)


def test_the_rest_of_a_long_collective_is_exposed() -> None:
    outcome = run([compute(1.0), collective(1.6, 0), compute(1.0), compute(0.5, 1)], [1.0, 1.0])
    assert outcome.step_s == pytest.approx(3.1)
    np.testing.assert_allclose(outcome.exposed_s, 0.6)
    assert outcome.transfer_s == {"world": 1.6}


def test_all_wait_for_the_straggler() -> None:
    outcome = run([compute(1.0), collective(0.25, 0), compute(1.0, 1)], [1.0, 1.0, 1.5, 1.0], record=True)
    assert outcome.step_s == pytest.approx(1.5 + 0.25 + 1.5)
    np.testing.assert_allclose(outcome.finish_s, [2.75, 2.75, 3.25, 2.75])
    waits = {span.rank: span.waited_s for span in outcome.spans if span.name == "sum"}
    assert waits == pytest.approx({0: 0.5, 1: 0.5, 2: 0.0, 3: 0.5})


def test_groups_do_not_wait_for_each_other() -> None:
    program = [compute(1.0), collective(0.25, 0)]
    outcome = simulate_streams(program, {"world": np.array([0, 0, 1, 1])}, np.array([1.0, 2.0, 1.0, 1.0]))
    np.testing.assert_allclose(outcome.finish_s, [2.25, 2.25, 1.25, 1.25])


def test_collectives_of_one_stream_are_one_after_the_other() -> None:
    both = [collective(1.0), collective(1.0)]
    apart = [collective(1.0), collective(1.0, stream="other")]
    assert run(both, [1.0]).step_s == pytest.approx(2.0)
    assert run(apart, [1.0]).step_s == pytest.approx(1.0)


def test_no_operation_takes_no_time() -> None:
    assert run([], [1.0, 1.0]).step_s == 0


def test_a_program_that_waits_for_the_future_is_refused() -> None:
    with pytest.raises(AssertionError, match="later operation"):
        run([compute(1.0, 1), compute(1.0)], [1.0])
