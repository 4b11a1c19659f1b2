"""The planner: the trainer's own packing, memory first, reasons, questions, and a plan that the trainer reads."""

import json
from dataclasses import replace

import numpy as np
import pytest

from janus.errors import UserError
from janus.presets import preset
from janus.train.config import load_train_config
from janus.train.sampler import Sampler
from janus.train.sampler import share_out as trainer_share_out
from perfmodel.advice import answer
from perfmodel.machine import load_machine
from perfmodel.plan_file import plan_mapping
from perfmodel.planner import Request, make_plan, sample_batches, share_out
from perfmodel.questions import Goal
from perfmodel.scaled_data import scaled_data
from perfmodel.verdicts import reason
from tests.host_machine import write_host
from tests.perfmodel.search_cases import spread_data

DATA = spread_data(80, scale=0.5)


def request(**changes) -> Request:
    return Request(**{"model": preset("matris-tiny"), "model_name": "matris-tiny", "world_size": 2,
                      "global_batch": 8, "num_batches": 2, **changes})  # fmt: skip


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return load_machine(write_host(tmp_path_factory.mktemp("host") / "host.toml"))


@pytest.fixture(scope="module")
def plan(machine):
    return make_plan(request(epochs=3), machine, DATA)


def test_batches_and_shares_are_the_trainers_own():
    work = DATA.work
    sampler = Sampler(work, range(len(work)), 8, seed=3)
    batches = sample_batches(work, 8, 4, seed=3)
    assert batches == [sampler.batch(step) for step in range(4)]
    for cap in (None, 5_000, 20_000):
        assert share_out(work, batches[0], 3, cap) == trainer_share_out(work, batches[0], 3, cap)


def test_the_fastest_that_fits_is_chosen_and_the_others_say_why_not(plan):
    finalists = plan.finalists
    assert finalists[0] is plan.chosen
    assert plan.chosen.events_step_s == min(one.events_step_s for one in finalists)
    assert plan.chosen.verdict.startswith("chosen: the fastest")
    assert all("slower by" in one.verdict for one in finalists[1:])
    assert {one.layout.unit for one in finalists} == {1, 2}, "layouts of several kinds are worked out"
    assert all(one.search_step_s == pytest.approx(one.step_s, rel=0.1) for one in finalists)


def test_the_run_and_its_front(plan):
    chosen = plan.chosen
    assert chosen.num_steps == 3 * (80 // 8)
    assert plan.start_up_s is None, "not measured: n/a"
    assert chosen.run_s == pytest.approx(30 * chosen.events_step_s)
    memory = [point.memory_bytes for point in plan.front]
    assert memory == sorted(memory, reverse=True), "on one node whoever is slower must be leaner"
    assert [point.run_s for point in plan.front] == sorted(point.run_s for point in plan.front)


def test_a_missed_deadline_is_not_called_kept(plan):
    goal = Goal(num_structures=80, epochs=3, deadline_s=0.5 * plan.chosen.run_s)
    assert "miss it" in answer(replace(plan, goal=goal))
    assert " make it in " in answer(replace(plan, goal=replace(goal, deadline_s=2 * plan.chosen.run_s)))
    assert "keeps to deadline and budget" in reason(goal, kept=True)
    assert "does not keep to the deadline" in reason(goal, kept=False)


def test_memory_comes_before_time(machine):
    data = spread_data(60, scale=2)
    free = make_plan(request(), machine, data)
    tight = make_plan(request(memory_bytes=0.9 * free.chosen.memory_bytes), machine, data)
    assert tight.chosen.memory_bytes <= tight.memory_limit_bytes < free.chosen.memory_bytes
    assert tight.chosen.step_s >= free.chosen.step_s
    assert len(tight.found) < tight.found.considered
    with pytest.raises(UserError, match="nothing fits: the leanest candidate needs"):
        make_plan(request(memory_bytes=1e6), machine, data)


def test_the_trainer_reads_the_plan(plan):
    content = json.loads(json.dumps(plan_mapping(plan), allow_nan=False))
    config = load_train_config(None, content["train"])
    assert config.model == preset("matris-tiny")
    assert config.batch.structures == 8
    assert config.batch.max_work == content["train"]["batch"]["max_work"]
    assert (config.run.threads, config.run.epochs) == (1, 3)
    assert config.parallel.layout(2).world_size == content["world_size"] == 2
    assert content["schema"] == "janus.plan/1"
    prediction = content["prediction"]
    assert prediction["percent_of_peak"] > 0
    assert sum(prediction["phase_s"].values()) == pytest.approx(prediction["step_s"])
    assert sum(prediction["cause_s"].values()) == pytest.approx(prediction["step_s"])
    allocated = sum(prediction["memory_by_cause_bytes"].values())
    assert max(prediction["memory_by_phase_bytes"].values()) == pytest.approx(allocated)
    assert content["run"]["node_hours"] == pytest.approx(content["run"]["run_s"] / 3600)
    assert {entry["constant"] for entry in content["sensitivity"]}
    assert content["explanation"][0].startswith("3 epochs on 2 ranks of testhost")
    assert content["provenance"]["calibration"]["cores"]


def test_choices_that_the_user_made_are_kept(machine):
    fixed = {"unit": (2,), "shard_degree": (2,), "recompute": (1,), "cap": (20_000,)}
    chosen = make_plan(request(fixed=fixed), machine, DATA).chosen
    assert (chosen.layout.shard_degree, chosen.recompute, chosen.max_work) == (2, True, 20_000)
    with pytest.raises(UserError, match="no layout of 2 ranks has shard_degree 3"):
        make_plan(request(fixed={"shard_degree": (3,)}), machine, DATA)


def test_unknown_peak_gives_no_percentage(plan):
    content = plan_mapping(replace(plan, machine=replace(plan.machine, peaks={})))
    assert content["prediction"]["percent_of_peak"] is None
    assert content["prediction"]["peak"] is None


def test_two_ranks_may_share_the_one_structure_of_a_step(machine):
    plan = make_plan(request(global_batch=1), machine, DATA)
    assert {one.layout.data_degree for one in plan.finalists} == {1}


def test_what_cannot_be_planned_is_refused(machine):
    with pytest.raises(UserError, match="global batch of 1 structures is below 2, the fewest groups of ranks"):
        make_plan(request(global_batch=1, fixed={"graph_degree": (1,)}), machine, DATA)
    with pytest.raises(UserError, match=r"exceeds the 80 of made\.store"):
        make_plan(request(global_batch=100), machine, DATA)
    with pytest.raises(UserError, match="holds no structure"):
        make_plan(request(), machine, spread_data(1).__class__(
            path="none.store", fingerprint="f", **dict.fromkeys(("atoms", "edges", "bonds", "angles"), np.zeros(0, int))
        ))  # fmt: skip
    with pytest.raises(UserError, match="use at most 128"):
        make_plan(request(world_size=1000, global_batch=1000), machine, spread_data(1000))
    with pytest.raises(UserError, match="no number of ranks is given"):
        make_plan(request(world_size=None), machine, DATA)


@pytest.fixture(scope="module")
def question():
    """A small mixture on a machine of the catalogue, where nodes differ; seconds per epoch of 1, 2 and 4 nodes."""
    asked = Request(
        model=preset("matris-moe-tiny"), model_name="matris-moe-tiny", world_sizes=(16, 32, 64), num_batches=1,
        global_batch=128, num_structures=1_000_000, fixed={"unit": (1, 2)},
    )  # fmt: skip
    return asked, spread_data(400), load_machine("lineshine")


def test_how_many_nodes_make_a_deadline(question):
    asked, data, machine = question
    fastest = make_plan(replace(asked, epochs=1, prefer="time"), machine, data)
    cheapest = make_plan(replace(asked, epochs=1, prefer="node-hours"), machine, data)
    assert cheapest.chosen.nodes < fastest.chosen.nodes
    assert cheapest.chosen.node_s < fastest.chosen.node_s
    middle_s = (fastest.chosen.run_s * cheapest.chosen.run_s) ** 0.5
    few = make_plan(replace(asked, epochs=1, deadline_s=middle_s), machine, data)
    assert few.chosen.run_s <= 1.02 * middle_s
    assert cheapest.chosen.nodes <= few.chosen.nodes <= fastest.chosen.nodes
    assert {point.nodes for point in few.front} >= {1, 4}, "the front is of all numbers of nodes"
    with pytest.raises(UserError, match=r"1 epoch cannot be done in .*: the fastest candidate takes"):
        make_plan(replace(asked, epochs=1, deadline_s=fastest.chosen.run_s / 3), machine, data)


def test_how_many_epochs_a_budget_buys(question):
    asked, data, machine = question
    plan = make_plan(replace(asked, node_s=50 * 3600.0), machine, data)
    content = plan_mapping(plan)
    assert content["run"]["node_hours"] <= 50.001
    assert content["run"]["node_hours"] > 49
    assert content["train"]["run"]["steps"] == int(plan.chosen.num_steps)
    assert content["run"]["length_by"] == "budget"
    assert "buy" in content["explanation"][0]


def test_a_data_set_scaled_up_is_distributed_alike():
    small = spread_data(300)
    large = scaled_data(small, 473_000_000, at_least=9000)
    assert len(large.atoms) == 9000
    assert large.work.mean() == pytest.approx(small.work.mean(), rel=0.05)
    known = {(int(a), int(e)) for a, e in zip(small.atoms, small.edges, strict=True)}
    atoms, edges = large.elements_of(np.arange(50))
    for number in range(50):
        assert (int(large.atoms[number]), int(large.edges[number])) in known
        source = np.flatnonzero((small.atoms == large.atoms[number]) & (small.edges == large.edges[number]))
        histograms = small.elements_of(source)
        assert any((histograms[0][one] == atoms[number]).all() and (histograms[1][one] == edges[number]).all()
                   for one in range(len(source)))  # fmt: skip
    assert len(scaled_data(small, 100, at_least=9000).atoms) == 100
