"""Two memories: what leaves first, what it moves, and when it does not fit."""

from dataclasses import replace

import pytest

from janus.layout import Layout
from janus.presets import preset
from perfmodel.machine import load_machine
from perfmodel.memory import place_in_tiers, predict_rank_memory
from perfmodel.products import Counts
from perfmodel.step_work import RunSettings

COUNTS = Counts(2, 64, 2726, 786, 8888)
PREDICTION = predict_rank_memory(preset("matris-moe-s"), [COUNTS], Layout(replicas=2), RunSettings())


def _machine(first: float, second: float):
    """One device per node with these memories."""
    machine = load_machine("lineshine")
    return replace(machine, memory_bytes_per_node=first * machine.devices_per_node,
                   second_memory_bytes_per_node=second * machine.devices_per_node)  # fmt: skip


def test_everything_that_fits_stays_in_the_first_memory():
    tiers = place_in_tiers(PREDICTION, _machine(2 * PREDICTION.total_bytes, 1e12))
    assert tiers.fits
    assert tiers.second_bytes == tiers.moved_bytes_per_step == 0
    assert tiers.first_bytes == PREDICTION.total_bytes


def test_moments_leave_first_and_move_twice():
    over = 0.5 * PREDICTION.cause_bytes["moments"]
    tiers = place_in_tiers(PREDICTION, _machine(PREDICTION.total_bytes - over, 1e12))
    assert tiers.fits
    assert set(tiers.second) == {"moments"}
    assert tiers.second_bytes == pytest.approx(over)
    assert tiers.moved_bytes_per_step == pytest.approx(2 * over)


def test_what_finds_no_room_does_not_fit():
    over = 1.5 * PREDICTION.cause_bytes["moments"]
    without = place_in_tiers(PREDICTION, _machine(PREDICTION.total_bytes - over, 0))
    assert not without.fits
    assert without.second_bytes == 0
    assert not place_in_tiers(PREDICTION, _machine(PREDICTION.total_bytes - over, 0.5 * over)).fits
    both = place_in_tiers(PREDICTION, _machine(PREDICTION.total_bytes - over, 2 * over))
    assert both.fits
    assert both.first_bytes + both.second_bytes == pytest.approx(PREDICTION.total_bytes)


def test_more_ranks_on_a_node_share_its_memory():
    machine = _machine(1.5 * PREDICTION.total_bytes, 0)
    assert place_in_tiers(PREDICTION, machine).fits
    assert not place_in_tiers(PREDICTION, machine, ranks_per_node=2 * machine.devices_per_node).fits
    assert not place_in_tiers(PREDICTION, machine, reserve=0.5).fits
