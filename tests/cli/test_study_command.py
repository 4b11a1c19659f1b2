"""``janus study`` from the command line, with the real trainer on very small work."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

from janus.cli.main import main
from janus.cli.study import ACTIONS
from scaling_studies.lease import only_runner
from scaling_studies.records import DONE, PREDICTED, RECORD_FOLDER, from_json, read_folder, write_record
from tests.host_machine import write_host
from tests.record_sets import prediction

CAMPAIGN = """
[[study]]
name = "weak"
question = "Does it run?"
mode = "weak"
ranks = [1, 2]
structures_per_rank = 1
repeats = 1
warm_up_steps = 1
steps = 2
time_out_s = 200
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    assert main(["data", "make", "--out", str(folder / "few.store"), "--count", "6", "--max-atoms", "8"]) == 0
    write_host(folder / "machine.toml")
    (folder / "study.toml").write_text(CAMPAIGN)
    return folder


def words(inputs, out, *more):
    return ["study", "run", "--config", str(inputs / "study.toml"), "--data", str(inputs / "few.store"),
            "--machine", str(inputs / "machine.toml"), "--out", str(out), *more]  # fmt: skip


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    assert main(words(inputs, out)) == 0
    return out


def test_every_point_is_measured_and_predicted(finished):
    folder = read_folder(finished / RECORD_FOLDER)
    assert folder.refused == ()
    measured = [record for record in folder.records if record.source != PREDICTED]
    predicted = [record for record in folder.records if record.source == PREDICTED]
    assert len({record.cell_id for record in folder.records}) == len(measured) == len(predicted) == 2
    assert {record.state for record in folder.records} == {DONE}
    for record in measured:
        twin = next(entry for entry in predicted if entry.cell_id == record.cell_id)
        assert record.counts_per_rank == twin.counts_per_rank
        assert record.model_flops == pytest.approx(twin.model_flops)
        assert record.peak == twin.peak
        assert len(record.step_s) == 2
        assert sum(values[0] for values in record.phase_s.values()) <= 1.05 * record.step_s[0]


def test_ranks_of_the_weak_study_did_equal_work(finished):
    records = read_folder(finished / RECORD_FOLDER).records
    assert len({counts for record in records for counts in record.counts_per_rank}) == 1


def test_a_second_run_does_nothing_more(inputs, finished):
    before = {path.name for path in (finished / "attempts").iterdir()}
    assert main(words(inputs, finished)) == 0
    assert {path.name for path in (finished / "attempts").iterdir()} == before


def test_of_a_measured_run_times_are_kept_and_weights_are_not(finished):
    for folder in (finished / "attempts").iterdir():
        assert {path.name for path in (folder / "run").iterdir()} >= {"run.json", "steps.jsonl", "config.toml"}
        assert not (folder / "run" / "checkpoints").exists()


def test_show_prints_one_json_document(finished, capsys):
    assert main(["study", "show", str(finished), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    points = [point for point in document["points"] if point["study"] == "weak"]
    assert [point["ranks"] for point in points] == [1, 2]
    assert all(point["measured_step_s"] > 0 and point["predicted_step_s"] > 0 for point in points)


def test_show_prints_a_table_for_people(finished, capsys):
    assert main(["study", "show", str(finished)]) == 0
    text = capsys.readouterr().out
    assert text.lstrip().startswith("weak")
    assert "1 of 1" in text


def test_the_report_of_a_real_study_names_its_question_and_its_peak(finished, tmp_path):
    assert main(["report", str(finished), "--out", str(tmp_path / "report.html"), "--only", "html"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "Does it run?" in text
    assert "matrix product, one core" in text


def test_status_of_a_finished_campaign(finished, capsys):
    assert main(["study", "status", str(finished)]) == 0
    text = capsys.readouterr().out
    assert "1 of 1" in text
    assert "2 of 2 good attempts; no runner at work" in text
    assert main(["study", "status", str(finished), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [point["states"] for point in document["points"]] == [{"DONE": 1}] * 2
    assert document["studies"][0]["node_hours"] > 0


def as_of_other_cells(folder, change):
    """Make the attempts of a study folder those of other cells. change: takes the values of a record."""
    for path in (folder / RECORD_FOLDER).glob("*attempt*.json"):
        record = json.loads(path.read_text())
        record["cell_id"] = "0" * 12
        change(record)
        path.unlink()
        (path.parent / from_json(json.dumps(record)).file_name).write_text(json.dumps(record))


def test_results_of_another_layout_are_refused_with_both(inputs, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    as_of_other_cells(tmp_path / "out", lambda record: record["layout"].update(unit=4, graph_degree=2))
    assert main(words(inputs, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "at ranks = 1 was measured with layout unit 4, graph_degree 2 and would have unit 1 now" in error


def test_results_of_other_code_are_refused_with_both_versions(inputs, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    as_of_other_cells(tmp_path / "out", lambda record: record["provenance"].update(code_version="0.0.1+older"))
    assert main(words(inputs, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "study weak at ranks = 1 was measured with code 0.0.1+older and the code is 0.1.0+" in error
    assert "use a new --out" in error


def test_other_data_in_the_same_folder_is_refused_and_nothing_is_lost(inputs, finished, tmp_path, capsys):
    assert main(["data", "make", "--out", str(tmp_path / "other.store"), "--count", "6", "--seed", "7",
                 "--max-atoms", "8"]) == 0  # fmt: skip
    before = read_folder(finished / RECORD_FOLDER)
    other = [str(tmp_path / "other.store") if "few.store" in word else word for word in words(inputs, finished)]
    assert main(other) == 2
    error = capsys.readouterr().err
    assert "the settings are as they were, the data are not): use a new --out" in error
    assert read_folder(finished / RECORD_FOLDER) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "words_of_it"),
    [("study.toml", "repeats = 1", "repeats = 1\nbase_ranks = 2", "set base_ranks = 1, or use a new --out"),
     ("study.toml", "repeats = 1", "repeats = 1\nlayout = 'planned'\nrecompute = true",
      "weak.recompute was False and is True, weak.layout was declared and is planned"),
     ("study.toml", "\nsteps = 2", "\nsteps = 3", "weak.steps was 2 and is 3): use a new --out"),
     ("study.toml", "[1, 2]", "[4]", "holds attempts at study weak at ranks = 1 and at no point of this declaration"),
     ("study.toml", "[1, 2]", "[2]", "the declaration has dropped that point: declare it again, or use a new --out"),
     ("study.toml", "[1, 2]\nstructures_per_rank = 1", "[1]\nstructures_per_rank = 2",
      "(study weak at ranks = 1, cell CELL; weak.structures_per_rank was 1 and is 2): use a new --out"),
     ("machine.toml", 'name = "', 'name = "other-', "holds times of machine")],
    ids=["base", "settings", "steps", "all points", "base point", "a point and a setting", "machine"],
)  # fmt: skip
def test_another_base_or_machine_in_the_same_folder_is_refused_before_anything_changes(
    inputs, finished, tmp_path, file, old, new, words_of_it, capsys
):
    text = (inputs / file).read_text()
    (tmp_path / file).write_text(text.replace(old, new, 1))
    assert (tmp_path / file).read_text() != text
    before = read_folder(finished / RECORD_FOLDER)
    assert main([str(tmp_path / file) if word.endswith(file) else word for word in words(inputs, finished)]) == 2
    assert words_of_it in re.sub(r"cell \w{12}", "cell CELL", capsys.readouterr().err)
    assert read_folder(finished / RECORD_FOLDER) == before


def test_a_point_may_be_dropped_and_declared_again_and_its_attempts_stay(inputs, finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    measured = {path.name: path.read_bytes() for path in (out / RECORD_FOLDER).glob("*attempt*.json")}
    (tmp_path / "study.toml").write_text(CAMPAIGN.replace("[1, 2]", "[1]"))
    fewer = [str(tmp_path / "study.toml") if word.endswith("study.toml") else word for word in words(inputs, out)]
    assert main(fewer) == 0
    gone = "study weak at ranks = 2 is no longer declared and left out: 1 DONE"
    assert gone in capsys.readouterr().out
    assert main(["study", "status", str(out)]) == 0
    text = capsys.readouterr().out
    assert gone in text
    assert "1 of 1 good attempts" in text
    assert main(["study", "status", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (point,), (dropped,) = document["points"], document["no_longer_declared"]
    assert document["studies"][0]["node_hours"] == pytest.approx(point["node_hours"] + dropped["node_hours"])
    assert main(["report", str(out), "--out", str(tmp_path / "report.html"), "--only", "html"]) == 0
    assert gone in capsys.readouterr().out
    assert "its point is no longer declared" in (tmp_path / "report.html").read_text()
    assert main(words(inputs, out)) == 0
    assert "no longer declared" not in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (out / RECORD_FOLDER).glob("*attempt*.json")} == measured


def test_a_run_that_fails_gives_exit_code_1_and_is_listed(inputs, tmp_path, capfd):
    text = CAMPAIGN.replace("[1, 2]", "[1]") + "max_failures = 1\n"
    (tmp_path / "study.toml").write_text(text.replace("time_out_s = 200", "time_out_s = 0.2"))
    arguments = ["study", "run", "--config", str(tmp_path / "study.toml"), "--data", str(inputs / "few.store"),
                 "--machine", str(inputs / "machine.toml"), "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    assert main(arguments) == 1
    document = json.loads(capfd.readouterr().out)
    (point,) = [point for point in document["points"] if point["study"] == "weak"]
    left_out = point["excluded"][0]
    assert left_out["state"] == "TIMEOUT"
    assert left_out["hosts"] == platform.node()
    assert "janus train" in left_out["launch_command"]
    assert left_out["code_version"].startswith("0.1.0+")
    assert point["measured_step_s"] is None
    assert main(["study", "show", str(tmp_path / "out")]) == 0
    assert f"attempt01: TIMEOUT on {platform.node()}, job " in capfd.readouterr().out
    assert main(["study", "status", str(tmp_path / "out")]) == 0
    (place,) = [line for line in capfd.readouterr().out.splitlines() if "its script and log: " in line]
    assert (tmp_path / "out" / place.split(": ")[1] / "log.txt").is_file()


SBATCH = """#!/bin/sh
test -e {refuses} && { echo "sbatch: error: Invalid account" >&2; exit 1; }
echo 17
"""


def test_once_gives_exit_code_1_where_the_scheduler_takes_no_job_and_0_once_it_does(inputs, tmp_path, monkeypatch):
    (tmp_path / "refuses").touch()
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("sbatch", SBATCH.replace("{refuses}", str(tmp_path / "refuses"))),
        *((name, "#!/bin/sh\n") for name in ("squeue", "sacct", "scontrol")),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "study.toml").write_text(CAMPAIGN + '[executor]\nkind = "slurm"\nranks_per_node = 2\n')
    command = [sys.executable, "-m", "janus", "study", "run", "--config", str(tmp_path / "study.toml"), "--machine",
               "lineshine", "--data", str(inputs / "few.store"), "--out", str(tmp_path / "out"), "--once"]  # fmt: skip
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "Invalid account" in refused.stderr
    (tmp_path / "refuses").unlink()
    assert subprocess.run(command, capture_output=True).returncode == 0  # the jobs are queued now


def test_a_point_that_waits_for_its_first_job_is_not_called_predicted_only(tmp_path, capsys):
    write_record(tmp_path / RECORD_FOLDER, prediction(1.0, repeats_planned=6))
    assert main(["study", "show", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "nothing measured yet" in text
    assert "0 of 6" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--machine", "nowhere.toml"), "nowhere.toml"),
        (("--machine", "lineshine"), "not a file of this host"),
        (("--data", "nowhere.xyz"), "nowhere.xyz"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_missing_input_is_one_sentence_and_exit_code_2(inputs, tmp_path, change, expected, capsys):
    arguments = words(inputs, tmp_path / "out")
    arguments[arguments.index(change[0]) + 1] = change[1]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert not (tmp_path / "out" / "records").exists()
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_a_predicted_campaign_is_not_overwritten(inputs, tmp_path, capsys):
    write_record(tmp_path / "out" / RECORD_FOLDER, prediction(1.0, repeats_planned=0))
    assert main(words(inputs, tmp_path / "out")) == 2
    assert "predicted only: use a new --out" in capsys.readouterr().err
    assert len(read_folder(tmp_path / "out" / RECORD_FOLDER).records) == 1


@pytest.mark.parametrize(("name", "what"), [("run.json", "a training run"), ("meta.json", "a store of structures")])
@pytest.mark.parametrize("action", ["run", "predict"])
def test_a_folder_of_something_else_is_left_alone(inputs, tmp_path, action, name, what, capsys):
    (tmp_path / name).write_text("{}")
    predict = ["study", "predict", "--machine", "lineshine", "--out", str(tmp_path)]
    assert main(words(inputs, tmp_path) if action == "run" else predict) == 2
    assert f"is the folder of {what} ({name}): use another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_refused_plan_starts_nothing(inputs, tmp_path, capsys):
    (tmp_path / "study.toml").write_text(CAMPAIGN + "node_hours = 0.001\n")
    arguments = ["study", "run", "--config", str(tmp_path / "study.toml"), "--data", str(inputs / "few.store"),
                 "--machine", str(inputs / "machine.toml"), "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 2
    assert "its budget is 0.001" in capsys.readouterr().err
    assert not (tmp_path / "out" / "records").exists()


def test_a_second_runner_is_told_of_the_first(inputs, tmp_path, capsys):
    with only_runner(tmp_path / "out"):
        assert main(words(inputs, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert f"another runner works on {tmp_path / 'out'} (process " in error
    assert "Traceback" not in error


def test_torchrun_is_for_this_host(inputs, tmp_path, capsys):
    (tmp_path / "study.toml").write_text(CAMPAIGN + '[executor]\nkind = "slurm"\nranks_per_node = 1\n')
    arguments = ["study", "run", "--config", str(tmp_path / "study.toml"), "--data", str(inputs / "few.store"),
                 "--machine", "lineshine", "--out", str(tmp_path / "out"), "--torchrun"]  # fmt: skip
    assert main(arguments) == 2
    assert "--torchrun is for jobs of this host" in capsys.readouterr().err


@pytest.mark.slow
def test_a_campaign_runs_by_torchrun(inputs, tmp_path):
    assert main(words(inputs, tmp_path / "out", "--torchrun")) == 0
    records = [entry for entry in read_folder(tmp_path / "out" / RECORD_FOLDER).records if entry.source != PREDICTED]
    assert {entry.provenance["launcher"] for entry in records if entry.ranks > 1} == {"torchrun"}


def test_status_and_index_of_nothing_are_one_sentence(tmp_path, capsys):
    assert main(["study", "status", str(tmp_path)]) == 2
    assert "give a folder that 'janus study run' wrote" in capsys.readouterr().err
    assert main(["study", "index", str(tmp_path)]) == 2
    assert "holds no record" in capsys.readouterr().err


def test_show_of_nothing_is_exit_code_2(tmp_path, capsys):
    assert main(["study", "show", str(tmp_path)]) == 2
    assert "janus study run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words_of_it", [["study"], *(["study", action] for action in ACTIONS), ["report"]], ids=" ".join
)
def test_help_fits_a_terminal_of_80_columns(words_of_it, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*words_of_it, "--help"])
    assert ended.value.code == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_help_has_examples():
    result = subprocess.run(
        [sys.executable, "-m", "janus", "study", "run", "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in result.stdout
    assert "[[study]]" in result.stdout
