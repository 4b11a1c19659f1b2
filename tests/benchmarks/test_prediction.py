"""The benchmark of predicted step times: its cases, measuring and going on, what the predictor is told, and errors."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import prediction
import prediction_cases
import prediction_figure
import prediction_judge
import prediction_shaped
import prediction_steps
import prediction_tables
import pytest
from prediction_cases import EQUAL, MAIN, SECOND, SETS, UNEVEN, Case, CaseSet
from prediction_judge import Measured
from prediction_predict import Predictor
from prediction_truth import RealDivisions, real_experts

from janus.config import ExpertConfig, ModelConfig
from janus.data.store import StructureStore
from janus.parallel.communication import connect
from perfmodel.machine import load_machine
from tests.host_machine import write_host

SMALL = CaseSet(name="small", seed=2, models={
    "matris": ModelConfig(num_blocks=1, width=16, cutoff_angstrom=4.6, line_cutoff_angstrom=3.2),
    "moe": ModelConfig(
        family="matris-moe", num_blocks=1, width=16, num_heads=2, angle_width=16, cutoff_angstrom=4.6,
        line_cutoff_angstrom=3.2,
        experts=ExpertConfig(num_experts=4, top_k=2, message_hidden=16, feature_hidden=16),
    ),
})  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Sixteen uneven cells, without the sample data."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JANUS_SHARED_DATA", str(folder))
        patch.setattr(prediction_cases, "NUM_STRUCTURES", 16)
        return prediction_cases.make_store(UNEVEN, folder / "uneven.store")


@pytest.mark.parametrize("case_set", SETS.values(), ids=lambda one: one.name)
def test_every_model_has_at_least_24_layouts_that_fill_their_ranks(case_set):
    for name, model in case_set.models.items():
        layouts = set()
        for ranks in (1, 2, 4):
            cases = case_set.cases_of(ranks, name)
            assert len({case.key for case in cases}) == len(cases)
            assert cases[0] == Case(name=f"data {ranks}")
            for case in cases:
                config = prediction_steps.config_of(case, model, SimpleNamespace(work=np.ones(3)), case_set.seed)
                assert config.parallel.layout(ranks).world_size == ranks
                assert config.run.seed == case_set.seed
                layouts.add((ranks, case.name))
            assert ranks == 1 or any(case.transport == "mpi" for case in cases)
        assert len(layouts) >= 24


def test_the_sets_share_no_model_cutoff_crystal_or_file(monkeypatch, tmp_path):
    monkeypatch.setenv("JANUS_SHARED_DATA", str(tmp_path))
    monkeypatch.setattr(prediction_cases, "NUM_STRUCTURES", 8)
    assert not set(MAIN.models) & set(SECOND.models)
    cutoffs = [{one.cutoff_angstrom for one in case_set.models.values()} for case_set in (MAIN, SECOND)]
    assert not cutoffs[0] & cutoffs[1]
    for data in prediction_cases.DATA_SETS:
        first, second = (
            prediction_cases.make_store(data, tmp_path / f"{data} {one.name}.store", one) for one in (MAIN, SECOND)
        )
        for mine, other in zip(first, second, strict=True):
            assert sorted(mine.numbers) == sorted(other.numbers), "the same salts, so that sizes are alike"
            assert not np.isclose(mine.positions, other.positions).any()
    assert MAIN.fingerprint() != SECOND.fingerprint() != replace(SECOND, seed=0).fingerprint()
    assert len({prediction.raw_file(one, quick) for one in SETS.values() for quick in (False, True)}) == 4


def test_crystals_of_the_sample_data_are_taken_from_the_sets_first_one_on(monkeypatch, tmp_path):
    entries = [SimpleNamespace(structure=number if number != 501 else None) for number in range(504)]
    (tmp_path / prediction_cases.REAL_FILE).parent.mkdir()
    (tmp_path / prediction_cases.REAL_FILE).touch()
    monkeypatch.setattr(prediction_cases, "read_entries", lambda path: entries)
    assert list(prediction_cases._uneven_structures(tmp_path, SECOND)) == [500, 502, 503]
    assert list(prediction_cases._uneven_structures(tmp_path, MAIN))[:2] == [0, 1]


@pytest.mark.parametrize(
    ("words", "models", "raw"),
    [
        ([], list(MAIN.models), "prediction_host_raw.jsonl"),
        (["--set", "second"], list(SECOND.models), "prediction_host_second_raw.jsonl"),
        (
            ["--set", "second", "--quick", "--only-models", "moe 3x64"],
            ["moe 3x64"],
            "prediction_quick_second_raw.jsonl",
        ),
        (["--raw", "mine.jsonl", "--quick"], list(MAIN.models), "mine.jsonl"),
    ],
)
def test_a_set_has_models_and_a_raw_file_of_its_own(monkeypatch, words, models, raw):
    monkeypatch.setattr("sys.argv", ["prediction.py", "--machine", "x.toml", *words])
    options = prediction.read_options()
    assert (options.only_models, options.raw.name) == (models, raw)


def test_a_model_of_the_other_set_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["prediction.py", "--what", "measure", "--set", "second", "--only-models", "matris"]
    )
    with pytest.raises(SystemExit) as ended:
        prediction.read_options()
    assert ended.value.code == 2
    assert "the second set has matris 4x48, moe 3x64" in capsys.readouterr().err


def test_uneven_cells_are_there_without_sample_data_and_within_their_sizes(store):
    assert len(store) == 16
    assert store.work.min() >= prediction_cases.UNEVEN_WORK[0]
    assert store.work.max() <= prediction_cases.UNEVEN_WORK[1]
    assert store.work.max() > 2 * store.work.min()


def work_for(raw: Path) -> list[list[int]]:
    work = prediction.work_to_do(MAIN, 1, ["matris"], 3, False, prediction.read_raw(raw, MAIN))
    return [one["rounds"] for one in work]


def test_a_stopped_measurement_goes_on_where_it_stood(tmp_path):
    raw = tmp_path / "raw.jsonl"
    assert work_for(raw) == [[0, 1, 2]] * 2
    prediction.append_line(raw, {"kind": "launch", "cases": MAIN.fingerprint()})
    done = {"kind": "round", "ranks": 1, "model": "matris", "data": EQUAL, "round": 1, "cases": {}}
    prediction.append_line(raw, done)
    with raw.open("a") as stream:
        stream.write(json.dumps(done | {"round": 2})[:-4])  # killed while it wrote
    assert work_for(raw) == [[0, 2], [0, 1, 2]]
    prediction.append_line(raw, done | {"round": 2})
    assert work_for(raw) == [[0], [0, 1, 2]]
    prediction.append_line(raw, {"kind": "launch", "cases": SECOND.fingerprint()})
    with pytest.raises(SystemExit, match="measured with other cases"):
        prediction.read_raw(raw, MAIN)


def small_predictor(store, folder) -> Predictor:
    machine = load_machine(write_host(folder / "host.toml"))
    return Predictor(machine, {UNEVEN: str(store.path)}, models=SMALL.models, seed=SMALL.seed)


def test_steps_are_measured_by_phase_and_predicted_from_their_own_micro_batches(store, tmp_path, monkeypatch):
    """One rank; the losses of all layouts agree or the job ends."""
    monkeypatch.setitem(SETS, "small", SMALL)
    raw = tmp_path / "raw.jsonl"
    cases = [{"name": "data 1"}, {"name": "data 1, capped, recomputed", "capped": True, "recompute": True}]
    work = [{"model": model, "data": UNEVEN, "rounds": [0], "cases": cases} for model in SMALL.models]
    job = {"set": "small", "raw": str(raw), "stores": {UNEVEN: str(store.path)}, "steps": 2, "work": work}
    prediction_steps.measure_rounds(job, connect(device="cpu"))
    lines = [json.loads(line) for line in raw.read_text().splitlines()]
    assert [line["model"] for line in lines] == list(SMALL.models)
    measured = prediction_judge.measured_cases(lines, SMALL.known_cases)
    assert len(measured) == 4
    for case in measured:
        assert [step["step"] for step in case.steps] == [1, 2], "step 0 was the warm-up"
        for step in case.steps:
            phases = prediction_judge.phases_of(step)
            assert sum(phases.values()) == pytest.approx(step["step_s"])
            assert 0 <= phases["outside"] < step["step_s"]
            assert min(phases[name] for name in ("FE", "FF", "BF_BE", "optimizer")) > 0
        assert (case.steps[0]["counts"][0]["micro_batches"] > 1) == case.case.capped
    predictor = small_predictor(store, tmp_path)
    for case in measured:
        for step in case.steps:
            [rank] = predictor.work(case, step["step"], "exact").ranks
            assert len(rank.micro_batches) == step["counts"][0]["micro_batches"]
            for name in ("atoms", "edges", "bonds", "angles"):
                assert sum(getattr(one.counts, name) for one in rank.micro_batches) == step["counts"][0][name]
    for one in prediction_judge.judge(measured, predictor):
        assert min(one.predicted_s["planned"]) > 0
        if one.measured.model == "matris":  # no experts, nothing divided: there is nothing that a planner does not know
            assert one.predicted_s["exact"] == one.predicted_s["planned"]


def test_what_only_a_run_knows_is_what_the_trainers_code_gives(store):
    model = SMALL.models["moe"]
    experts = real_experts(model)
    assert [table.shape for table in experts] == [(94, 2)] * 2
    assert real_experts(SMALL.models["matris"]) is None
    divisions = RealDivisions(StructureStore.open(store.path), model, 4)
    indices = (3, 1, 5)
    parts = divisions.get(indices)
    assert divisions.get(()) is None
    chosen = np.array(indices)
    for name, column in (("atoms", store.num_atoms), ("edges", store.num_edges), ("angles", store.num_angles)):
        assert sum(getattr(part.counts, name) for part in parts) == column[chosen].sum()
    assert sum(part.edges_of.sum() for part in parts) == store.num_edges[chosen].sum()
    assert sum(part.boundary for part in parts) == sum(part.counts.ghosts for part in parts) > 0


def test_the_predictor_is_told_the_real_parts(store, tmp_path):
    case = measured_case(2, "graph 2", [1.0], data=UNEVEN, parallel={"unit": 2, "graph_degree": 2})
    predictor = small_predictor(store, tmp_path)
    work = predictor.work(case, 0, "exact")
    [(indices, parts)] = predictor._divisions_of(case, 2).items()
    assert len(indices) == prediction_cases.BATCH
    assert [rank.micro_batches[0].counts.ghosts for rank in work.ranks] == [part.counts.ghosts for part in parts]
    assert [rank.micro_batches[0].counts.edges for rank in work.ranks] == [part.counts.edges for part in parts]


def measured_case(ranks: int, name: str, seconds: list[float], data: str = EQUAL, **case) -> Measured:
    steps = tuple(
        {"step": number, "step_s": step_s, "phase_s": {"FE": [0.25 * step_s], "BF_BE": [0.5 * step_s]}}
        for number, step_s in enumerate(seconds)
    )
    return Measured(ranks=ranks, model="matris", data=data, case=Case(name=name, **case), steps=steps)


def judged_with(factors: dict[str, float], cases: list[Measured]) -> list:
    """Predictions that are the measured median times a factor by layout."""

    def predict(case: Measured, knowledge: str) -> list:
        step_s = factors[case.case.name] * median(step["step_s"] for step in case.steps)
        one = SimpleNamespace(step_s=step_s, phase_s={"FE": 0.25 * step_s, "BF_BE": 0.5 * step_s}, notes=())
        return [one for _ in case.steps]

    return prediction_judge.judge(cases, predict)


NOISE = [0.99, 1.0, 1.0, 1.0, 1.0, 1.01]
CASES = [
    measured_case(2, "fast", [0.10 * x for x in NOISE]),
    measured_case(2, "close", [0.101 * x for x in reversed(NOISE)]),
    measured_case(2, "slow", [0.2 * x for x in NOISE], recompute=True),
    measured_case(1, "alone", [0.3 * x for x in NOISE]),
]  # fmt: skip


def test_errors_by_layout_group_and_phase():
    judged = judged_with({"fast": 1.1, "close": 0.98, "slow": 0.8, "alone": 1.0}, CASES)
    errors = prediction_judge.errors_of(judged, "exact")
    assert errors["layouts"] == 4
    assert errors["worst"] == pytest.approx(-0.2)
    assert errors["worst_case"].endswith("slow")
    assert errors["median"] == pytest.approx(0.06)
    assert errors["bias"] == pytest.approx(-0.01)
    summary = prediction_judge.summary_of(judged, "planned")
    assert set(summary["by_ranks"]) == {"1", "2"}
    assert summary["by_kind"]["recomputed"]["worst"] == pytest.approx(-0.2)
    assert summary["by_phase"]["1"]["FE"]["error_of_step"] == pytest.approx(0.0, abs=1e-12)
    phases = prediction_judge.phase_errors(judged[2:3], "exact")
    assert phases["BF_BE"]["error_of_step"] == pytest.approx(-0.1)
    assert phases["outside"]["part_of_step"] == pytest.approx(0.25)


def test_the_choice_its_regret_and_the_order():
    right = prediction_judge.choice(
        judged_with({"fast": 1.1, "close": 1.12, "slow": 0.9, "alone": 1}, CASES)[:3], "exact"
    )
    assert (right["chosen"], right["best"], right["regret"]) == ("fast", "fast", 0.0)
    assert right["rank_correlation"] == pytest.approx(1.0)
    near = prediction_judge.choice(judged_with({"fast": 1.1, "close": 1, "slow": 0.9, "alone": 1}, CASES)[:3], "exact")
    assert (near["chosen"], near["regret"]) == ("close", pytest.approx(0.01))
    assert near["inside"], "the steps' regrets reach from -1 to +3 %"
    wrong = prediction_judge.choice(judged_with({"fast": 1.1, "close": 1, "slow": 0.4, "alone": 1}, CASES)[:3], "exact")
    assert (wrong["chosen"], wrong["regret"], wrong["inside"]) == ("slow", pytest.approx(1.0), False)
    assert wrong["rank_correlation"] == pytest.approx(-1.0)


def test_corrections_are_fitted_to_one_rank_of_one_data_set_only():
    judged = judged_with({"alone": 0.5, "fast": 1, "close": 1, "slow": 1}, CASES)
    pairs = prediction_judge.refit_pairs(judged, MAIN.models)
    ratios = [pair.measured_s / pair.predicted_s for pair in pairs if pair.predicted_s > 0]
    assert len(ratios) == 12, "two phases of six steps"
    assert ratios == pytest.approx([2.0] * 12, rel=0.02)
    other = judged_with({"alone": 0.5}, [measured_case(1, "alone", [0.3] * 6, data=UNEVEN)])
    assert prediction_judge.refit_pairs(other, MAIN.models) == []


def test_the_report_is_shown_and_drawn(tmp_path, capsys):
    judged = judged_with({"fast": 1.1, "close": 0.98, "slow": 0.8, "alone": 1.0}, CASES)
    report = {
        "set": "main", "machine": {"name": "two cores"}, "uneven": "salts", "noise": 0.01,
        "summaries": {name: prediction_judge.summary_of(judged, name) for name in prediction_judge.KNOWLEDGE},
        "cases": [one.to_mapping() for one in judged],
    }  # fmt: skip
    prediction_tables.print_tables(json.loads(json.dumps(report)))
    shown = capsys.readouterr().out
    assert "-20.0 %" in shown
    assert "exact: choice among the layouts over gloo" in shown
    prediction_figure.draw(report, tmp_path / "picture.svg")
    assert "within 15" in (tmp_path / "picture.svg").read_text()


def test_settings_of_the_shaped_network_are_checked(monkeypatch, capsys):
    shape = prediction_shaped.shape_of("80:40:250")
    assert (shape.host_bytes_per_s, shape.rack_bytes_per_s, shape.cable_delay_s) == (1e7, 5e6, pytest.approx(250e-6))
    for wrong in ("80:250", "900:40:1", "fast"):
        monkeypatch.setattr("sys.argv", ["prediction_shaped.py", "--machine", "x.toml", "--settings", wrong])
        with pytest.raises(SystemExit) as ended:
            prediction_shaped.read_options()
        assert ended.value.code == 2
        assert "write HOST:RACK:US" in capsys.readouterr().err
