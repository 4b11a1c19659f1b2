"""``janus plan`` from a packed store to a plan file that the trainer reads; mistakes in one sentence."""

import json

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
    assert "verdict" in shown
    assert "phases:" in shown
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert load_train_config(None, plan["train"]).batch.structures == 12, "all there are"
    assert plan["considered"][0]["verdict"].startswith("chosen")


def test_json_is_one_document_equal_to_the_file(words, tmp_path, capsys):
    assert main([*words, "--json", "--global-batch", "4"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "plan.json").read_text())
    assert document["train"]["batch"]["structures"] == 4


def test_catalogue_machine_and_model_file(words, tmp_path, capsys):
    model = tmp_path / "model.toml"
    model.write_text("[model]\nwidth = 48\nnum_blocks = 1\n")
    words[words.index("--model") + 1] = str(model)
    words[words.index("--machine") + 1] = "lineshine"
    assert main(words) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert load_train_config(None, plan["train"]).model.width == 48
    assert plan["prediction"]["assumptions"]
    assert "assumed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("--world-size", "0", "--world-size is 0: it must be above 0"),
        ("--model", "matris-tyni", "did you mean 'matris-tiny'"),
        ("--machine", "lineshin", "did you mean 'lineshine'"),
        ("--machine", "none.toml", "no file none.toml"),
        ("--data", "none.store", "none.store"),
        ("--out", "plan.txt", "a plan's name ends in .json"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, name, value, sentence, capsys):
    words[words.index(name) + 1] = value
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert "Traceback" not in errors


def test_too_little_memory_leaves_an_older_plan_as_it_was(words, tmp_path, capsys):
    (tmp_path / "plan.json").write_text("older")
    assert main([*words, "--memory-gb", "0.001"]) == 2
    assert "nothing fits" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_text() == "older"


def test_a_batch_above_the_data_is_refused_as_training_would(words, capsys):
    assert main([*words, "--global-batch", "1000"]) == 2
    assert "exceeds the 12" in capsys.readouterr().err
