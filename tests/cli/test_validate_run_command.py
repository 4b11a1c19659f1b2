"""``janus validate run`` on a real run: prediction beside record, refit, and mistakes in one sentence."""

import json
import shutil
from pathlib import Path

import pytest

from janus.cli.main import main
from tests.host_machine import write_host
from tests.train_runs import TINY, launch, make_store

STEPS = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_store(folder / "few.store")
    done = launch(
        1, "-m", "janus", "train", "--data", str(folder / "few.store"), "--out", str(folder / "first"),
        "--steps", str(STEPS), "--batch.structures=3", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "first"


@pytest.fixture
def host(tmp_path):
    return str(write_host(tmp_path / "host.toml"))


@pytest.fixture
def plan(run, tmp_path):
    """A plan for such a run, its prediction written by hand."""
    config = {"unit": 1, "replicas": 1, "shard_degree": 1, "graph_degree": 1, "expert_degree": 1,
              "placement": "unit_first"}  # fmt: skip
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({
        "schema": "janus.plan/1", "world_size": 1, "machine": "hand", "layout": config, "train": {},
        "prediction": {"step_s": 0.01, "phase_s": {"FE": 0.002, "FF": 0.003, "BF_BE": 0.005}, "memory_bytes": 5e8},
    }))  # fmt: skip
    return path


def report(capsys, *words: str) -> dict:
    assert main(["validate", "run", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_phases_are_laid_beside_those_recorded(run, host, capsys):
    document = report(capsys, str(run), "--machine", host)
    [found] = document["runs"][0]["predictions"]
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()][2:]
    assert found["steps"] == len(lines) == STEPS - 2
    recorded = sorted(line["ranks"][0]["phase_s"]["BF_BE"] for line in lines)
    by_phase = {one["phase"]: one for one in found["phases"]}
    assert by_phase["BF_BE"]["measured_s"] == pytest.approx((recorded[6] + recorded[7]) / 2)
    assert sum(one["share"] for one in found["phases"]) == pytest.approx(1.0)
    assert found["memory"]["measured_bytes"] == max(json.loads((run / "run.json").read_text())["peak_memory_bytes"])
    peak = found["percent_of_peak"]
    assert peak["predicted"] * found["predicted_s"] == pytest.approx(peak["measured"] * found["measured_s"])
    worst = max(found["phases"], key=lambda one: one["share"])
    assert f"lies in {worst['phase']} ({100 * worst['share']:.0f} %)" in found["sentence"]


def test_a_plan_is_held_against_what_happened(run, plan, host, capsys):
    document = report(capsys, str(run), "--plan", str(plan), "--machine", host)
    from_plan, from_machine = document["runs"][0]["predictions"]
    assert from_plan["predicted_s"] == pytest.approx(0.01)
    assert from_plan["measured_s"] == from_machine["measured_s"]
    assert from_plan["memory"]["predicted_bytes"] == 5e8
    assert main(["validate", "run", str(run), "--plan", str(plan)]) == 0
    shown = capsys.readouterr().out
    assert "predicted by plan plan.json for hand" in shown
    assert "of the phases' errors lies in" in shown


def test_a_refit_is_kept_judged_on_the_rest_and_can_be_used(run, host, tmp_path, capsys):
    refit = tmp_path / "refit.json"
    document = report(capsys, str(run), "--machine", host, "--refit", str(refit))
    [judged] = document["refit"]["rest"]
    assert judged["steps"] == (STEPS - 2) // 2
    assert json.loads(refit.read_text())["sources"] == ["first: first half"]
    assert {one["phase"] for one in document["refit"]["factors"]} >= {"FE", "FF", "BF_BE", "optimizer"}
    assert judged["new"]["median_absolute_error"] != judged["old"]["median_absolute_error"]  # which is less: real times
    corrected = report(capsys, str(run), "--machine", host, "--corrections", str(refit))
    [found], [plain] = (one["runs"][0]["predictions"] for one in (corrected, document))
    factor = {one["phase"]: one["factor"] for one in document["refit"]["factors"] if one["model"] == "any"}
    for after, before in zip(found["phases"], plain["phases"], strict=True):
        assert after["predicted_s"] == pytest.approx(before["predicted_s"] * factor.get(after["phase"], 1.0))


def test_fitted_on_another_run_all_steps_are_judged_and_several_runs_at_once_shown(run, host, tmp_path, capsys):
    words = [str(run), str(run), "--machine", host, "--refit", str(tmp_path / "refit.json"), "--fit-on", str(run)]
    document = report(capsys, *words)
    assert len(document["runs"]) == len(document["refit"]["rest"]) == 2
    assert document["refit"]["rest"][0]["steps"] == STEPS - 2
    assert main(["validate", "run", *words]) == 0
    assert "steps that took no part in the fit" in capsys.readouterr().out


def changed(run: Path, tmp_path: Path, name: str, old: str, new: str) -> str:
    copy = tmp_path / "changed"
    shutil.copytree(run, copy)
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    return str(copy)


def test_mistakes_are_one_sentence_and_exit_code_2(run, host, plan, tmp_path, capsys):
    other = json.loads(plan.read_text())
    other["world_size"] = 2
    (tmp_path / "other.json").write_text(json.dumps(other))
    fingerprint = json.loads((run / "run.json").read_text())["data_fingerprint"]
    for words, sentence in (
        ([str(run)], "nothing to hold the run against: give --plan"),
        ([str(tmp_path), "--machine", host], "holds no run to validate (config.toml is missing)"),
        ([str(run), "--plan", str(plan), "--refit", "x.json"], "--refit needs --machine"),
        ([str(run), "--machine", host, "--fit-on", str(run)], "--fit-on needs --refit"),
        ([str(run), "--machine", host, "--warm-up", "99"], "has no step after the 99 of warm-up"),
        ([str(run), "--plan", str(tmp_path / "other.json")], "give the plan that the run was started with"),
        ([str(run), "--machine", host, "--data", str(tmp_path / "gone.store")], "name them with --data PATH"),
        ([changed(run, tmp_path, "run.json", fingerprint, "0" * 64), "--machine", host], "the fingerprint differs"),
    ):
        assert main(["validate", "run", *words]) == 2
        shown = capsys.readouterr()
        assert sentence in shown.err
        assert "Traceback" not in shown.err
        assert not shown.out


def test_a_record_of_other_settings_is_refused(run, host, tmp_path, capsys):
    other = changed(run, tmp_path, "config.toml", "structures = 3", "structures = 4")
    assert main(["validate", "run", other, "--machine", host]) == 2
    assert "the record is of other settings" in capsys.readouterr().err
