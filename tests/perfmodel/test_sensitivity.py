"""Sensitivity: changed constants change what they price, and a choice that hangs on one is told from one that does not.

Prices are those of ``step_time.combine`` on parts that were changed by hand."""

from dataclasses import replace

import numpy as np
import pytest

from perfmodel.compute_time import COMPUTE_CAUSES
from perfmodel.machine import load_machine
from perfmodel.search_parts import SearchParts
from perfmodel.sensitivity import ASSUMED_CHANGE, CONSTANTS, change_of, sensitivities
from perfmodel.step_parts import StepParts

LINESHINE = load_machine("lineshine")


def two_candidates(exchange_s: float, extra_s: float) -> SearchParts:
    """One that exchanges rows (a tenth of it latency), and one that computes a little more instead."""
    compute = np.zeros((2, 4, len(COMPUTE_CAUSES)))
    compute[:, 0, COMPUTE_CAUSES.index("products")] = 10.0
    compute[1, 0, COMPUTE_CAUSES.index("plain traffic")] = extra_s
    exchanges = np.zeros((2, 4))
    exchanges[0, 0] = exchange_s
    unit = compute.sum(axis=2)
    parts = StepParts(compute_s=compute, unit_s=unit, slowest_s=unit, exchanges_s=exchanges,
                      exchanges_cover=np.zeros((2, 4)))  # fmt: skip
    return SearchParts(parts=parts, latency_s={"exchanges_s": exchanges / 10}, micro_batches=np.ones(2),
                       overlap=np.full(2, 0.9), notes=())  # fmt: skip


def outcome(outcomes, name: str, worse: bool):
    return next(one for one in outcomes if one.constant == name and (one.change < 0) == worse)


def test_a_choice_that_hangs_on_a_link_is_found_out():
    outcomes = sensitivities(two_candidates(1.0, 1.2), 0, LINESHINE, lambda step_s: step_s)
    slow = outcome(outcomes, "bandwidth of all-to-all", worse=True)
    assert slow.change == -ASSUMED_CHANGE
    assert slow.chosen_step_s == pytest.approx(10 + 0.1 + 0.9 / 0.7)
    assert not slow.still_best
    assert slow.best == 1
    assert slow.loss == pytest.approx(slow.chosen_step_s / 11.2 - 1)
    assert outcome(outcomes, "bandwidth of all-to-all", worse=False).still_best
    assert outcome(outcomes, "speed of matrix products", worse=True).still_best, "both alike"
    assert not outcomes[0].still_best, "what endangers the choice comes first"


def test_a_safe_choice_stays():
    outcomes = sensitivities(two_candidates(1.0, 9.0), 0, LINESHINE, lambda step_s: step_s)
    assert all(one.still_best for one in outcomes)
    assert {one.constant for one in outcomes} >= {"speed of matrix products", "bandwidth of all-to-all"}
    assert "bandwidth of the optimizer" not in {one.constant for one in outcomes}, "changes nothing here"


def test_a_missed_deadline_counts_as_lost():
    late = sensitivities(
        two_candidates(1.0, 1.2), 0, LINESHINE, lambda step_s: np.where(step_s < 11.25, step_s, np.inf)
    )
    slow = outcome(late, "bandwidth of all-to-all", worse=True)
    assert not slow.still_best
    assert slow.loss == float("inf")
    none = sensitivities(two_candidates(1.0, 9.0), 0, LINESHINE, lambda step_s: np.where(step_s < 11.1, step_s, np.inf))
    assert outcome(none, "speed of matrix products", worse=True).best == 0, "the chosen one where none is allowed"


def test_a_constant_is_changed_by_its_quality_where_it_has_one():
    fitted = next(one for one in CONSTANTS if one.rate == "matmul_flops_per_s")
    assert change_of(fitted, LINESHINE) == (ASSUMED_CHANGE, "assumed: 30 %")
    measured = replace(LINESHINE, quality={"rates.ranks_1_threads_1.matmul_flops_per_s": 0.12})
    change, source = change_of(fitted, measured)
    assert change == pytest.approx(0.12)
    assert "12 %" in source


def test_every_constant_can_be_applied_to_a_real_search():
    priced = two_candidates(1.0, 1.0)
    for constant in CONSTANTS:
        parts, overlap = constant.apply(priced, 1.0)
        for name in ("compute_s", "exchanges_s", "sums_s", "unit_s"):
            assert np.allclose(getattr(parts, name), getattr(priced.parts, name)), (constant.name, name)
        assert np.allclose(overlap, priced.overlap)
