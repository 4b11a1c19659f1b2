"""``janus plan`` from a packed store to a plan file that the trainer reads; mistakes in one sentence."""

import json
import subprocess

import pytest

from janus.cli.main import main
from janus.train.config import load_train_config
from tests.host_machine import write_host


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "few.store"
    assert main(["data", "make", "--out", str(path), "--count", "12", "--max-atoms", "16"]) == 0
    return path


@pytest.fixture
def words(store, tmp_path):
    host = write_host(tmp_path / "host.toml")
    return ["plan", "--data", str(store), "--model", "matris-tiny", "--world-size", "2", "--machine", str(host),
            "--out", str(tmp_path / "plan.json"), "--batches", "1"]  # fmt: skip


def test_plan_is_written_and_shown(words, tmp_path, capsys):
    assert main(words) == 0
    shown = capsys.readouterr().out
    for word in ("verdict", "phases:", "causes:", "Chosen: ", "What would help most", "1 epoch on 2 ranks", "n/a"):
        assert word in shown
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert load_train_config(None, plan["train"]).batch.structures == 12, "all there are"
    assert plan["considered"][0]["verdict"].startswith("chosen")


def test_json_is_one_document_equal_to_the_file(words, tmp_path, capsys):
    assert main([*words, "--json", "--global-batch", "4", "--steps", "7"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "plan.json").read_text())
    assert document["train"]["batch"]["structures"] == 4
    assert document["train"]["run"]["steps"] == document["run"]["steps"] == 7


def test_catalogue_machine_and_model_file(words, tmp_path, capsys):
    model = tmp_path / "model.toml"
    model.write_text("[model]\nwidth = 48\nnum_blocks = 1\n")
    words[words.index("--model") + 1] = str(model)
    words[words.index("--machine") + 1] = "lineshine"
    assert main([*words, "--script", "slurm", "--queue", "small"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    config = load_train_config(None, plan["train"])
    assert (config.model.width, config.run.threads) == (48, 38)
    assert plan["prediction"]["assumptions"]
    assert plan["run"]["start_up_s"] > 0
    assert "assumed" in capsys.readouterr().out
    script = tmp_path / "plan.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    for line in ("#SBATCH --nodes=1", "#SBATCH --ntasks=2", "#SBATCH --cpus-per-task=38", "#SBATCH --partition=small"):
        assert f"{line}\n" in text
    assert f"janus train --plan {tmp_path / 'plan.json'} --out runs/plan" in text
    assert "gpu" not in text


def test_fixed_choices_and_several_numbers_of_ranks(words, tmp_path, capsys):
    words[words.index("--world-size") + 1] = "1-2"
    assert main([*words, "--recompute", "yes", "--max-work", "none", "--global-batch", "4"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert all(one["recompute"] and one["max_work"] is None for one in plan["considered"])
    assert plan["world_size"] in (1, 2)
    assert "what nothing beats in time, memory and node-hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--world-size": "0"}, "--world-size is 0: it must be above 0"),
        ({"--world-size": "two"}, "--world-size is 'two': give a number, a list like 1,2,4 or a range like 4-64"),
        ({"--model": "matris-tyni"}, "did you mean 'matris-tiny'"),
        ({"--machine": "lineshin"}, "did you mean 'lineshine'"),
        ({"--machine": "none.toml"}, "no file none.toml"),
        ({"--machine": "frontier"}, "compute rates are n/a: add a [rates.*] table"),
        ({"--data": "none.store"}, "none.store"),
        ({"--out": "plan.txt"}, "a plan's name ends in .json"),
        ({"--nodes": "2"}, "--world-size 2 and --nodes 2 are both given"),
        ({"--shard-degree": "3"}, "no layout of 2 ranks has shard_degree 3: give degrees that divide the ranks"),
        ({"--max-work": "few"}, "--max-work is 'few': give a whole number above 0, or none"),
        ({"--deadline-hours": "1e-9"}, "1 epoch cannot be done in"),
        ({"--node-hours": "-1"}, "--node-hours is -1.0: it must be above 0"),
        ({"--epochs": "1", "--steps": "5"}, "--epochs 1 and --steps 5 are both given: keep one of them"),
        ({"--memory-reserve": "1.5"}, "--memory-reserve is 1.5: it must be in [0, 1)"),
        ({"--global-batch": "1000"}, "exceeds the 12"),
        ({"--seed": "-1"}, "--seed is -1: it must be 0 or more"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, changes, sentence, tmp_path, capsys):
    for name, value in changes.items():
        if name in words:
            words[words.index(name) + 1] = value
        else:
            words += [name, value]
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "plan.json").exists()


def test_a_machine_needs_a_number_of_nodes_or_a_question(words, capsys):
    place = words.index("--world-size")
    del words[place : place + 2]
    words[words.index("--machine") + 1] = "lineshine"
    assert main(words) == 2
    assert "add --nodes, --world-size, --deadline-hours or --node-hours" in capsys.readouterr().err


def test_too_little_memory_leaves_an_older_plan_as_it_was(words, tmp_path, capsys):
    (tmp_path / "plan.json").write_text("older")
    assert main([*words, "--memory-gb", "0.001"]) == 2
    assert "nothing fits" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_text() == "older"
