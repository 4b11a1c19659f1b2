"""Memory: exact states, limits, and the double backward's peak against a real process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from janus.presets import preset
from perfmodel.memory import activation_bytes, predict_memory, states_bytes
from perfmodel.workload import Counts, parameter_counts

COUNTS = Counts(2, 64, 2726, 786, 8888)


def test_states_are_five_copies_and_a_bucket():
    parameters = parameter_counts(preset("matris-tiny")).total
    assert states_bytes(preset("matris-tiny")) == 4 * parameters * 6  # the bucket holds all of it
    assert states_bytes(preset("matris-tiny"), average=False) == 4 * parameters * 5
    assert states_bytes(preset("matris-tiny"), "float64") == 2 * states_bytes(preset("matris-tiny"))


def test_nothing_to_work_on_keeps_nothing_alive_but_the_base_and_states():
    prediction = predict_memory(preset("matris-tiny"), [], recompute=False)
    assert prediction.activation_bytes == prediction.batch_bytes == 0
    assert prediction.total_bytes == prediction.base_bytes + prediction.states_bytes + prediction.cause_bytes["buffers"]


def test_the_largest_micro_batch_decides_and_recompute_saves():
    model = preset("matris-small")
    one = predict_memory(model, [COUNTS], recompute=False)
    two = predict_memory(model, [COUNTS, COUNTS.scaled(0.5)], recompute=False)
    assert two.activation_bytes == one.activation_bytes
    assert activation_bytes(model, COUNTS, recompute=True) < activation_bytes(model, COUNTS, recompute=False)
    deep = replace(model, num_blocks=6)
    saved = activation_bytes(deep, COUNTS, recompute=True) / activation_bytes(deep, COUNTS, recompute=False)
    assert saved < 0.4


def _growth(name, recompute):
    script = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, str(script), name, str(int(recompute))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.fixture(scope="module")
def compiled_operators():
    """The operators' loops compiled and cached: a first compilation needs more memory than the step it is for."""
    return [_growth(name, False) for name in ("matris-tiny", "matris-moe-tiny")]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["matris-small", "matris-moe-tiny"])
def test_growth_of_a_real_process_is_near_the_prediction(name, recompute, compiled_operators):
    """Peak resident memory of a step over that of a tiny step: within a factor of 1.4."""
    measured = _growth(name, recompute)
    counts = Counts(**measured["counts"])
    large, tiny = (
        predict_memory(preset(name), [part], recompute=recompute) for part in (counts, counts.scaled(1 / 27))
    )
    predicted = large.resident_bytes - tiny.resident_bytes
    assert 1 / 1.4 < predicted / measured["growth_bytes"] < 1.4
