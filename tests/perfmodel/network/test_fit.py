"""The search for a library's constants: it finds those that made the times, stands odd rows, and keeps its prior."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from perfmodel.network.fit import PRIORS, fit_transport, generic_transport, mean_transport
from perfmodel.network.measured import Measurement
from perfmodel.network.measured_cases import make_cases, predict
from perfmodel.network.routes import Transport

SIZES = [2.0**k for k in range(8, 28, 2)]
TRUE = replace(
    generic_transport(), overhead_s=2e-6, gap_s=0.5e-6, link_fraction=0.9, rendezvous_s=9e-6,
    memory_reduction_bytes_per_s=2e9, reduction_bytes_per_s=5e9, exchange_fraction=0.5,
)  # fmt: skip


def _measurements(transport, change=lambda one: one):
    """A machine of 25 GB/s ports that behaves as the model says, with ring, doubling and linear collectives."""
    runs = [("all_gather", "ring_ompi"), ("all_gather", "recursive_doubling_ompi"), ("all_to_all", "linear_ompi"),
            ("all_reduce", "ring_ompi"), ("all_reduce", "rabenseifner_ompi")]  # fmt: skip
    blank = [
        Measurement(file="f", line=2, system="nowhere", stack="mpi", collective=collective, name=name, num_nodes=nodes,
                    ranks_per_node=1, size_bytes=size, measured_s=1.0)
        for collective, name in runs for nodes in (4, 16) for size in SIZES
    ]  # fmt: skip
    cases, left_out = make_cases(blank)
    assert not left_out
    times = predict(cases, transport)
    ordered = [one for case in cases for one in case.measurements]
    return [change(replace(one, measured_s=float(time_s))) for one, time_s in zip(ordered, times, strict=True)]


def _fit(measurements):
    cases, _ = make_cases(measurements)
    return fit_transport(cases)


def test_constants_that_made_the_times_are_found():
    cases, _ = make_cases(_measurements(TRUE))
    found = fit_transport(cases).transport
    for name in ("overhead_s", "link_fraction", "rendezvous_s", "exchange_fraction"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.1), name
    # memory's rates and the steps act together in these rows: each alone is drawn to its prior, the times are not
    assert np.median(np.abs(predict(cases, found) / predict(cases, TRUE) - 1)) < 0.01


def test_one_row_in_ten_that_took_five_times_as_long_turns_little():
    rows = _measurements(TRUE)
    odd = [replace(one, measured_s=5 * one.measured_s) if i % 10 == 3 else one for i, one in enumerate(rows)]
    cases, _ = make_cases(odd)
    found = fit_transport(cases).transport
    ratios = predict(cases, found) / predict(cases, TRUE)
    assert np.median(np.abs(ratios - 1)) < 0.1
    assert found.link_fraction == pytest.approx(TRUE.link_fraction, rel=0.1)


def test_what_the_rows_do_not_determine_stays_at_its_prior():
    gathers = [one for one in _measurements(TRUE) if one.name == "ring_ompi" and one.collective == "all_gather"]
    found = _fit(gathers).transport
    for name in ("reduction_bytes_per_s", "first_touch_bytes_per_s", "exchange_fraction"):
        assert getattr(found, name) == pytest.approx(PRIORS[name].value, rel=1e-3), name


def test_times_of_a_fit_never_fall_with_size():
    rows = _measurements(TRUE)
    transport = _fit(rows).transport
    cases, _ = make_cases([replace(one, size_bytes=one.size_bytes) for one in rows])
    for case in cases:
        sizes = np.geomspace(64, 2**29, 400)
        fine = replace(case, measurements=tuple(replace(case.measurements[0], size_bytes=float(s)) for s in sizes))
        assert (np.diff(fine.predicted_s(transport)) >= -1e-12).all(), case.implementation


def test_the_mean_of_libraries_is_geometric_and_steps_take_the_middle():
    one, other = generic_transport({"gap_s": 1e-6, "eager_bytes": 4096.0}), generic_transport({"gap_s": 4e-6})
    mean = mean_transport([one, other])
    assert mean.gap_s == pytest.approx(2e-6, rel=1e-12)
    assert mean.eager_bytes == 4096.0
    assert mean_transport([]) == generic_transport()


def test_work_buffers_are_touched_anew_above_what_the_allocator_keeps():
    transport = Transport(kept_bytes=100.0, trim_bytes=150.0, first_touch_bytes_per_s=10.0)
    sizes = np.array([50.0, 90.0, 200.0])
    assert transport.first_touch_s([sizes]).tolist() == [0.0, 0.0, 20.0]
    assert transport.first_touch_s([sizes, sizes]).tolist() == [0.0, 18.0, 40.0]  # two of 90 exceed 150 together
    assert Transport().first_touch_s([sizes]).tolist() == [0.0, 0.0, 0.0]


def test_reductions_out_of_cache_are_continuous():
    transport = Transport(cache_bytes=1000.0, reduction_bytes_per_s=10.0, memory_reduction_bytes_per_s=5.0)
    assert transport.reduction_s(1000.0, 1000.0) == pytest.approx(100.0, rel=1e-12)
    assert transport.reduction_s(2000.0, 2000.0) == pytest.approx(1000 / 10 + 1000 / 5, rel=1e-12)
    assert transport.reduction_s(1000.1, 1000.1) == pytest.approx(100.0, rel=1e-3)


def test_exchanges_of_long_messages_lose_what_their_fraction_says():
    transport = Transport(exchange_fraction=0.5, exchange_bytes=100.0)
    assert transport.exchange_s(np.array([100.0, 101.0]), np.array([3.0, 3.0])).tolist() == [0.0, 3.0]
    assert math.isinf(Transport().exchange_bytes)
