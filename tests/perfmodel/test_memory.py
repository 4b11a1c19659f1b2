"""Memory: exact states, limits, and the double backward's peak against a real process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from janus.layout import Layout
from janus.presets import preset
from perfmodel.memory import fullest_memory, predict_rank_memory
from perfmodel.step_time import work_of_counts
from perfmodel.step_work import RunSettings
from perfmodel.workload import Counts, parameter_counts

COUNTS = Counts(2, 64, 2726, 786, 8888)


def predicted(model, *micro_batches, **settings):
    """Of one of two replicas; model: a preset's name or a configuration."""
    model = preset(model) if isinstance(model, str) else model
    return predict_rank_memory(model, micro_batches, Layout(replicas=2), RunSettings(**settings))


def test_states_are_five_copies_and_a_bucket():
    parameters = parameter_counts(preset("matris-tiny")).total

    def kept(**settings):
        prediction = predicted("matris-tiny", **settings)
        return prediction.total_bytes - prediction.base_bytes

    assert kept() == 4 * parameters * 6  # the bucket holds all of it
    assert kept(averages=False) == 4 * parameters * 5
    assert kept(dtype="float64") == 2 * kept()


def test_nothing_to_work_on_keeps_nothing_alive_but_the_base_and_states():
    prediction = predicted("matris-tiny")
    assert prediction.activation_bytes == prediction.batch_bytes == 0
    assert prediction.total_bytes == prediction.base_bytes + prediction.states_bytes + prediction.cause_bytes["buffers"]


def test_the_largest_micro_batch_decides_and_recompute_saves():
    one, two = predicted("matris-small", COUNTS), predicted("matris-small", COUNTS, COUNTS.scaled(0.5))
    assert two.activation_bytes == one.activation_bytes
    assert predicted("matris-small", COUNTS, recompute=True).activation_bytes < one.activation_bytes
    deep = replace(preset("matris-small"), num_blocks=6)
    saved = predicted(deep, COUNTS, recompute=True).activation_bytes / predicted(deep, COUNTS).activation_bytes
    assert saved < 0.4


def test_the_fullest_rank_is_the_one_with_most_bytes_not_the_one_with_most_work():
    """A rank of three whole micro-batches beside one of one that is a little larger: gradients and batches wait."""
    few, many = (COUNTS.scaled(1.02),), (COUNTS,) * 3
    work = work_of_counts(preset("matris-moe-s"), [few, many], Layout(replicas=2), RunSettings())
    each = [predicted("matris-moe-s", *part) for part in (few, many)]
    assert each[1].total_bytes > each[0].total_bytes
    assert fullest_memory(work) == each[1]


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
    large, tiny = (predicted(name, part, recompute=recompute) for part in (counts, counts.scaled(1 / 27)))
    growth_bytes = large.resident_bytes - tiny.resident_bytes
    assert 1 / 1.4 < growth_bytes / measured["growth_bytes"] < 1.4
