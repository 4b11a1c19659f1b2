"""Plans of campaigns: sums, and every reason for which a campaign may not start."""

import dataclasses
import json

import pytest

from janus.errors import UserError
from perfmodel.machine import load_machine
from scaling_studies.campaign_plan import PLAN_FILE, plan_campaign, write_plan
from scaling_studies.cells import resolve_cells
from scaling_studies.predicted import predicted_records
from scaling_studies.study import ExecutorSettings
from tests.host_machine import write_host
from tests.study_cases import data, strong, throughput, weak

START_UP = {1: 5.0, 2: 6.0, 4: 7.0}


@pytest.fixture
def machine(tmp_path):
    return dataclasses.replace(load_machine(write_host(tmp_path / "host.toml")), start_up_s=START_UP)


def planned(studies, machine, executor=None):
    settings = executor or ExecutorSettings()
    cells = [cell for study in studies for cell in resolve_cells(study, data(), executor=settings)]
    return plan_campaign(cells, predicted_records(cells, machine), settings, machine)


def test_points_hold_the_prediction_and_node_hours_are_those_of_all_jobs(machine):
    studies = weak(ranks=(1, 2, 4), repeats=6, node_hours=10.0), strong(), throughput()
    plan = planned(studies, machine)
    assert plan.refusals == ()
    assert [study.name for study in plan.studies] == ["w", "s", "t"]
    assert plan.jobs == 6 * 3 + 2 * 2 + 2 * 3
    points = [point for study in plan.studies for point in study.points]
    for point in points:
        assert point.job_s == pytest.approx(START_UP[point.ranks] + 10 * point.step_s)
        assert 0 < point.memory_bytes < point.memory_limit_bytes == 0.9 * 8e9 / point.ranks
    assert [point.scale for point in plan.studies[2].points] == [1, 2, 4]
    assert plan.node_hours == pytest.approx(sum(point.job_s * point.repeats for point in points) / 3600)
    assert plan.jobs_s == pytest.approx(3600 * plan.node_hours)
    assert plan.is_exact
    plan.require()


def test_nodes_count_where_a_scheduler_fills_them(machine):
    executor = ExecutorSettings(kind="slurm", ranks_per_node=2)
    (study,) = planned([weak(ranks=(1, 2, 4))], dataclasses.replace(machine, nodes=2), executor).studies
    assert [point.nodes for point in study.points] == [1, 1, 2]
    assert [point.memory_limit_bytes for point in study.points] == [7.2e9, 3.6e9, 3.6e9]
    last = study.points[-1]
    assert last.node_hours == pytest.approx(2 * last.job_s * last.repeats / 3600)


def refused(studies, machine, executor=None):
    plan = planned(studies, machine, executor)
    with pytest.raises(UserError) as caught:
        plan.require()
    assert str(caught.value).splitlines() == list(plan.refusals)
    (sentence,) = plan.refusals
    return sentence


def test_a_point_that_will_not_fit_in_memory_is_refused(machine):
    small = dataclasses.replace(machine, memory_bytes_per_node=1.2e9)
    sentence = refused([weak(ranks=(1, 2))], small)
    assert sentence.startswith("study w at ranks = 2 will not fit: its fullest rank needs 0.")
    assert "may use 0.54 GB" in sentence
    assert "recompute = true" in sentence


def test_more_ranks_or_nodes_than_there_are_are_refused(machine):
    assert "200 ranks and testhost can hold 128" in refused([weak(ranks=(1, 200), structures_per_rank=1)], machine)
    executor = ExecutorSettings(kind="slurm", ranks_per_node=2)
    sentence = refused([weak(ranks=(2, 4))], machine, executor)
    assert "fills 2 nodes and testhost has 1: leave out points above 2 ranks" in sentence
    lineshine = load_machine("lineshine")
    crowded = ExecutorSettings(kind="slurm", ranks_per_node=32)
    assert "lineshine has 16 devices per node" in refused([weak(ranks=(8,))], lineshine, crowded)


def test_a_budget_overrun_is_refused_with_the_repeats_that_would_fit(machine):
    whole = planned([weak(repeats=8)], machine).node_hours
    assert planned([weak(repeats=8, node_hours=1.001 * whole)], machine).refusals == ()
    sentence = refused([weak(repeats=8, node_hours=0.9 * whole)], machine)
    assert "for 8 repeats of 2 points" in sentence
    assert "7 repeats would fit;" in sentence
    assert "5 repeats would fit (below 6 there is no confidence interval)" in refused(
        [weak(repeats=8, node_hours=0.7 * whole)], machine
    )
    assert "not one repeat fits" in refused([weak(repeats=8, node_hours=0.1 * whole)], machine)


def test_a_time_limit_below_the_prediction_is_refused(machine):
    sentence = refused([weak(ranks=(1,), time_out_s=4.0)], machine)
    assert sentence.startswith("study w at ranks = 1 would be stopped: a job takes")
    assert "its time limit is 4 s: set time_out_s to" in sentence


@pytest.mark.parametrize("make", [weak, strong, throughput])
def test_a_study_whose_constant_is_not_constant_is_refused(make, machine):
    study = make()
    first, *others = resolve_cells(study, data(50))
    changed = dataclasses.replace(others[-1], distinct=tuple(index + 7 for index in others[-1].distinct))
    cells = [first, *others[:-1], changed]
    plan = plan_campaign(cells, predicted_records(cells, machine), ExecutorSettings(), machine)
    (sentence,) = plan.refusals
    assert f"is {study.mode} but at {changed.scale}" in sentence
    assert "choose other structures or points" in sentence


def test_what_is_not_known_counts_with_its_limit_and_is_said(machine):
    alone = dataclasses.replace(machine, rates=machine.rates[:1])
    plan = planned([weak(ranks=(1, 2), repeats=6, time_out_s=360.0)], alone)
    known, unknown = plan.studies[0].points
    assert (known.note, unknown.step_s, unknown.memory_bytes) == ("", None, None)
    assert unknown.node_hours == pytest.approx(0.6)
    assert not plan.is_exact
    assert any(note.startswith("no prediction for w at 2: ") for note in plan.notes)
    assert any("upper limit" in note for note in plan.notes)
    assert "needs at most" in refused([weak(ranks=(1, 2), repeats=6, time_out_s=360.0, node_hours=0.5)], alone)


def test_notes_name_oversubscription_and_what_a_stop_rule_may_cost(machine):
    study = weak(ranks=(4,), repeats=6, stop_ci_percent=2.0, max_repeats=12)
    plan = planned([study], machine)
    assert any("more ranks than cores" in note for note in plan.notes)
    assert any("12 repeats per point" in note and f"{2 * plan.node_hours:,.3g}" in note for note in plan.notes)


def test_the_plan_is_kept_as_plain_values(machine, tmp_path):
    plan = planned([strong(ranks=(2,), unit=2, shard_degree=2)], machine)
    kept = json.loads(write_plan(tmp_path, plan).read_text())
    assert (tmp_path / PLAN_FILE).exists()
    (point,) = kept["studies"][0]["points"]
    assert point["layout"]["shard_degree"] == 2
    assert point["node_hours"] == kept["node_hours"] == plan.node_hours
