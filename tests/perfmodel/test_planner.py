"""The planner: the trainer's own packing, memory first, reasons, and a plan that the trainer reads."""

import json

import numpy as np
import pytest

from janus.errors import UserError
from janus.presets import preset
from janus.train.config import load_train_config
from janus.train.sampler import Sampler
from janus.train.sampler import share_out as trainer_share_out
from perfmodel.machine import load_machine
from perfmodel.planner import NOT_YET, DataCounts, Request, make_plan, plan_mapping, sample_batches, share_out
from tests.host_machine import write_host


def data_counts(number: int = 40, scale: float = 1.0) -> DataCounts:
    random = np.random.default_rng(0)
    atoms = random.integers(2, 100, number)
    return DataCounts(
        path="alloys.store", fingerprint="f", atoms=atoms, edges=(atoms * 40 * scale).astype(int),
        bonds=(atoms * 12 * scale).astype(int), angles=(atoms * 132 * scale).astype(int),
    )  # fmt: skip


def request(**changes) -> Request:
    return Request(**{"model": preset("matris-tiny"), "model_name": "matris-tiny", "world_size": 2,
                      "global_batch": 8, "num_batches": 3, **changes})  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    return load_machine(write_host(tmp_path / "host.toml"))


def test_batches_and_shares_are_the_trainers_own():
    work = data_counts().work
    sampler = Sampler(work, range(len(work)), 8, seed=3)
    batches = sample_batches(work, 8, 4, seed=3)
    assert batches == [sampler.batch(step) for step in range(4)]
    for cap in (None, 5_000, 20_000):
        assert share_out(work, batches[0], 3, cap) == trainer_share_out(work, batches[0], 3, cap)
    assert share_out(work, batches[0][:1], 3, None) == trainer_share_out(work, batches[0][:1], 3, None)


def test_the_fastest_that_fits_is_chosen_and_the_others_say_why_not(machine):
    plan = make_plan(request(), machine, data_counts())
    runnable = [one for one in plan.considered if one.step_s is not None]
    assert plan.considered[0] is plan.chosen
    assert plan.chosen.step_s == min(one.step_s for one in runnable)
    assert plan.chosen.verdict.startswith("chosen")
    assert all(one.verdict for one in plan.considered)
    recomputed = next(one for one in runnable if one.recompute and one.max_work == plan.chosen.max_work)
    assert "mostly recomputed" in recomputed.verdict
    units = [one for one in plan.considered if one.layout.unit > 1]
    assert units
    assert {one.verdict for one in units} == {NOT_YET}


def test_memory_comes_before_time(machine):
    data = data_counts(scale=4)
    free = make_plan(request(), machine, data)
    tight = make_plan(request(memory_bytes=0.8 * free.chosen.memory_bytes), machine, data)
    assert tight.chosen.memory_bytes <= tight.memory_limit_bytes < free.chosen.memory_bytes
    assert tight.chosen.step_s >= free.chosen.step_s
    assert any(one.verdict.startswith("does not fit") for one in tight.considered)
    with pytest.raises(UserError, match="nothing fits: the leanest candidate needs"):
        make_plan(request(memory_bytes=1e6), machine, data)


def test_the_trainer_reads_the_plan(machine):
    content = json.loads(json.dumps(plan_mapping(make_plan(request(), machine, data_counts()))))
    config = load_train_config(None, content["train"])
    assert config.model == preset("matris-tiny")
    assert config.batch.structures == 8
    assert config.batch.max_work == content["train"]["batch"]["max_work"]
    assert config.run.threads == 1
    assert config.parallel.layout(2).world_size == content["world_size"] == 2
    assert content["schema"] == "janus.plan/1"
    assert content["prediction"]["percent_of_peak"] > 0
    assert sum(content["prediction"]["phase_s"].values()) == pytest.approx(content["prediction"]["step_s"])


def test_unknown_peak_gives_no_percentage(machine):
    from dataclasses import replace

    content = plan_mapping(make_plan(request(), replace(machine, peaks={}), data_counts()))
    assert content["prediction"]["percent_of_peak"] is None
    assert content["prediction"]["peak"] is None


def test_what_cannot_be_planned_is_refused(machine):
    with pytest.raises(UserError, match="global batch of 1 structures is below the 2 ranks"):
        make_plan(request(global_batch=1), machine, data_counts())
    with pytest.raises(UserError, match="holds no structure"):
        make_plan(request(), machine, data_counts(0))
    with pytest.raises(UserError, match="use at most 128"):
        make_plan(request(world_size=1000, global_batch=1000), machine, data_counts(1000))
