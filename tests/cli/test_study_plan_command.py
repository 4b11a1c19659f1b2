"""``janus study plan`` and ``janus study predict`` from the command line, and the data sets of cells."""

import json
import re

import pytest

from janus.cli.main import main
from janus.cli.study_data import resolve_campaign
from janus.data.store import StructureStore
from perfmodel.machine import load_machine, machine_path
from scaling_studies.records import PREDICTED, RECORD_FOLDER, STUDY_PLACE, Record, read_folder, write_record
from scaling_studies.study import Declaration
from tests.host_machine import write_host
from tests.study_cases import strong, weak

CAMPAIGN = """
[[study]]
name = "weak"
question = "What will it cost?"
mode = "weak"
ranks = [1, 2]
structures_per_rank = 2
repeats = 6
node_hours = {budget}

[[study]]
name = "rate"
question = "What does more work per rank bring?"
mode = "throughput"
ranks = [2]
structures_per_rank = [1, 3]
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    assert main(["data", "make", "--out", str(folder / "few.store"), "--count", "6", "--max-atoms", "8"]) == 0
    write_host(folder / "machine.toml")
    return folder


def plan(inputs, text, *more, machine=None):
    suffix = ".py" if "import" in text else ".toml"
    path = inputs / f"campaign{suffix}"
    path.write_text(text)
    return main(["study", "plan", "--config", str(path), "--data", str(inputs / "few.store"),
                 "--machine", machine or str(inputs / "machine.toml"), *more])  # fmt: skip


def test_a_plan_is_printed_and_nothing_is_written(inputs, capsys):
    before = sorted(inputs.rglob("*"))
    assert plan(inputs, CAMPAIGN.format(budget=50)) == 0
    text = capsys.readouterr().out
    for words in ("weak (weak)", "budget 50", "per rank", "What will it cost?", "24 jobs on testhost", "predicted"):
        assert words in text
    assert [path for path in sorted(inputs.rglob("*")) if path not in before] == [inputs / "campaign.toml"]


def test_a_question_is_printed_as_it_is(inputs, capsys):
    assert plan(inputs, CAMPAIGN.format(budget=50).replace("What will it cost?", "How many [bold] s [/s] a step?")) == 0
    assert "How many [bold] s [/s] a step?" in capsys.readouterr().out


def test_a_refusal_is_exit_code_2_with_the_reason_and_the_plan_is_shown_all_the_same(inputs, capsys):
    assert plan(inputs, CAMPAIGN.format(budget=0.001), "--json") == 2
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [len(study["points"]) for study in document["studies"]] == [2, 2]
    (refusal,) = document["refusals"]
    assert "its budget is 0.001: not one repeat fits" in refusal
    assert printed.err == f"refused: {refusal}\n"


RECIPE = """
from scaling_studies.study import ExecutorSettings, Declaration, Study
declaration = Declaration(studies=(Study(
    name="experts", question="How far?", mode="weak", ranks=(8, 64), structures_per_rank=1, model="matris-moe-tiny",
    unit=8, shard_degree=8, expert_degree=8,
),))
"""


def test_a_machine_of_the_catalogue_is_planned_for_with_its_own_nodes(inputs, capsys):
    assert plan(inputs, RECIPE, "--json", machine="lineshine") == 0
    points = json.loads(capsys.readouterr().out)["studies"][0]["points"]
    assert [point["nodes"] for point in points] == [1, 4]
    assert all(point["step_s"] > 0 and point["memory_bytes"] > 0 for point in points)


def test_a_machine_without_rates_gives_upper_limits(inputs, capsys):
    assert plan(inputs, RECIPE, machine="frontier") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "at most" in text
    assert "no prediction for experts at 8, experts at 64: machine 'frontier'" in text


def test_a_plan_in_units_on_a_scheduler_is_whole_at_80_columns(inputs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = """
[[study]]
name = "moe"
question = "How far?"
mode = "weak"
ranks = [8, 16]
structures_per_rank = 2
model = "matris-moe-s"
unit = 8
shard_degree = 8
graph_degree = 2
expert_degree = 8
node_hours = 1.0
[executor]
kind = "slurm"
ranks_per_node = 8
"""
    assert plan(inputs, text) == 2
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "unit: s,g,e" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_model_of_quick_is_not_passed_over_beside_a_file(inputs, capsys):
    assert plan(inputs, CAMPAIGN.format(budget=50), "--model", "matris-tiny") == 2
    assert "--model matris-tiny is for --quick: set model in" in capsys.readouterr().err


def test_a_wrong_declaration_is_one_sentence(inputs, capsys):
    assert plan(inputs, CAMPAIGN.format(budget=-1)) == 2
    assert "study weak has node_hours -1.0" in capsys.readouterr().err


def test_data_sets_of_cells_hold_their_structures_and_copies(inputs, tmp_path):
    declaration = Declaration(studies=(weak(), strong(layout="planned")))
    campaign = resolve_campaign(declaration, inputs / "few.store", load_machine(inputs / "machine.toml"))
    assert [cell.study.name for cell in campaign.cells] == ["w", "w", "s", "s"]
    assert all(cell.code_version for cell in campaign.cells)
    assert all(cell.layout.world_size == cell.ranks for cell in campaign.cells)
    paths = [campaign.write_data(tmp_path, cell) for cell in campaign.cells]
    assert paths[2] == paths[3]  # the strong points share theirs
    source = StructureStore.open(inputs / "few.store")
    for cell, path in zip(campaign.cells, paths, strict=True):
        store = StructureStore.open(path)
        assert store.num_atoms.tolist() == [source.num_atoms[index] for index in cell.indices]
        names = [store[place].name for place in range(len(store))]
        assert names[0] == source[cell.indices[0]].name
        assert len(set(names)) == len(names) == len(cell.indices)
    written = paths[0].stat().st_mtime_ns
    assert campaign.write_data(tmp_path, campaign.cells[0]).stat().st_mtime_ns == written


def test_a_predicted_campaign_is_a_folder_of_records(tmp_path, capsys):
    out, machine = tmp_path / "full", tmp_path / "cnis.toml"
    text = machine_path("cnis").read_text()
    machine.write_text(re.sub(r"(?m)^nodes = \{value = 5632", "nodes = {value = 16", text))
    old = Record(source=PREDICTED, method="", study="old", question="?", mode="weak", cell_id="1", repeats_planned=0,
                 ranks=1, base_ranks=1, model="m", dtype="float32", machine="m", layout={}, step_s=(1.0,))  # fmt: skip
    write_record(out / RECORD_FOLDER, old)
    assert main(["study", "predict", "--machine", str(machine), "--out", str(out), "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    records = read_folder(out / RECORD_FOLDER).records
    assert len(records) == len(points)
    assert {(record.study, record.facts[STUDY_PLACE]) for record in records} == {("cnis-weak", 0), ("cnis-strong", 1)}
    assert {point["source"] for point in points} == {PREDICTED}
    for mode in ("weak", "strong"):
        line = [point for point in points if point["mode"] == mode]
        assert [line[0]["ranks"], line[-1]["ranks"], line[-1]["nodes"]] == [8, 128, 16]
        known = [point["efficiency"] for point in line if point["efficiency"] is not None]
        assert known == sorted(known, reverse=True)
        assert known[0] == 1.0


@pytest.mark.parametrize(
    ("machine", "model", "words"),
    [("frontir", "matris-moe-s", "did you mean 'frontier'"), ("cnis", "matris-tiny", "use a matris-moe model")],
)
def test_what_cannot_be_predicted_is_one_sentence(machine, model, words, tmp_path, capsys):
    assert main(["study", "predict", "--machine", machine, "--model", model, "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_a_prediction_is_not_written_over_a_measured_campaign(tmp_path, capsys):
    (tmp_path / RECORD_FOLDER).mkdir()
    (tmp_path / RECORD_FOLDER / "x.json").write_text("{")
    words = ["study", "predict", "--machine", "cnis", "--model", "matris-moe-s", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "use a new --out" in capsys.readouterr().err
