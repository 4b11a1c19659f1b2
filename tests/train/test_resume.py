"""A run that is stopped and resumed equals one that never stopped, bit for bit, on one rank and on two."""

import json
import shutil

import pytest
import torch
from train_runs import TINY, launch, make_store

from janus.cli.main import main
from janus.config import read_toml
from janus.train.checkpoint import latest_good, read_checkpoint
from janus.train.config import train_config
from janus.train.steplog import read_step_log

SETTINGS = [*TINY, "--batch.structures=4", "--run.checkpoint_every=5", "--schedule.warmup_steps=3", "--steps", "10"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("resume") / "ten.store")


def train(num_ranks, out, store, *words):
    arguments = ["train", "--data", str(store.path), "--out", str(out), *SETTINGS, *words]
    if num_ranks == 1:
        assert main(arguments) == 0
    else:
        done = launch(num_ranks, "-m", "janus", *arguments)
        assert done.returncode == 0, done.stderr


def assert_same_state(one, other):
    assert one.step == other.step
    assert set(one.tensors) == set(other.tensors) == {"weights", "average", "exp_avg", "exp_avg_sq", "whole"}
    for part, tensors in one.tensors.items():
        assert set(tensors) == set(other.tensors[part])
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors[part][name]), (part, name)


def without_times(line):
    ranks = [{k: v for k, v in rank.items() if not k.endswith("_s")} for rank in line["ranks"]]
    return {name: value for name, value in line.items() if name != "step_s"} | {"ranks": ranks}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_ten_steps_equal_five_and_five(store, tmp_path, num_ranks):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(num_ranks, straight, store)
    train(num_ranks, broken, store, "--stop-after", "5")
    assert json.loads((broken / "run.json").read_text())["status"] == "stopped"
    train(num_ranks, broken, store, "--resume")
    final = [read_checkpoint(run / "checkpoints" / "step_00000010") for run in (straight, broken)]
    assert_same_state(*final)
    logs = [[without_times(line) for line in read_step_log(run / "steps.jsonl")] for run in (straight, broken)]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == list(range(10))
    document = json.loads((broken / "run.json").read_text())
    assert (document["status"], document["first_step"], document["steps_done"]) == ("done", 5, 10)
    assert document["world_size"] == num_ranks


def test_a_run_goes_on_in_other_layouts(store, tmp_path):
    """Sharded over two ranks, then alone, then sharded again: the steps of a run that never left one process."""
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    alone, sharded = ["--parallel.unit=1", "--parallel.shard_degree=1"], ["--parallel.unit=2",
                                                                          "--parallel.shard_degree=2"]  # fmt: skip
    train(1, straight, store, "--run.dtype=float64")
    train(2, moved, store, "--run.dtype=float64", "--stop-after", "3", *sharded)
    train(1, moved, store, "--resume", "--stop-after", "6", *alone)
    train(2, moved, store, "--resume", *sharded)
    written = {path.name for path in (moved / "checkpoints" / "step_00000010").iterdir()}
    assert {f"exp_avg_sq-0000{rank}.safetensors" for rank in range(2)} < written
    expected, final = (latest_good(run / "checkpoints", pytest.fail).tensors for run in (straight, moved))
    for part in ("weights", "average", "exp_avg", "exp_avg_sq"):
        for name, tensor in expected[part].items():
            error = torch.linalg.vector_norm(final[part][name] - tensor)
            assert error <= 1e-9 * torch.linalg.vector_norm(tensor) + 1e-12, (part, name, error)


def test_a_damaged_last_checkpoint_costs_the_steps_since_the_one_before(store, tmp_path, capsys):
    run = tmp_path / "run"
    train(1, run, store)
    before = read_checkpoint(run / "checkpoints" / "step_00000010")
    weights = run / "checkpoints" / "step_00000010" / "weights-00000.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    train(1, run, store, "--resume")
    assert "step_00000010 is damaged: weights-00000.safetensors has 100 bytes" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["first_step"] == 5
    assert_same_state(before, read_checkpoint(run / "checkpoints" / "step_00000010"))


def test_resuming_a_finished_run_changes_nothing(store, tmp_path):
    run = tmp_path / "run"
    train(1, run, store)
    before = json.loads((run / "run.json").read_text())
    weights = (run / "checkpoints" / "step_00000010" / "weights-00000.safetensors").read_bytes()
    train(1, run, store, "--resume")
    after = json.loads((run / "run.json").read_text())
    assert (after["status"], after["steps_done"], after["final"]) == ("done", 10, before["final"])
    assert (run / "checkpoints" / "step_00000010" / "weights-00000.safetensors").read_bytes() == weights
    assert len(list(read_step_log(run / "steps.jsonl"))) == 10


def test_settings_are_on_disk_and_read_back_equal(store, tmp_path):
    run = tmp_path / "run"
    train(1, run, store, "--stop-after", "1")
    config = train_config(read_toml(run / "config.toml"))
    assert config.run.steps == 10
    assert config.model.width == 8
    assert config == read_checkpoint(run / "checkpoints" / "step_00000001").config


@pytest.fixture(scope="module")
def stopped(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("stopped") / "run"
    train(1, run, store, "--stop-after", "5")
    return run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optimizer.learning_rate=0.5"], "--resume: optimizer.learning_rate is 0.5 but the run"),
        (["--model.width=16"], "--resume: model.width is 16 but the run"),
        (["--steps", "20"], "--resume: run.steps is 20 but the run"),
        (["--run.seed=9"], "--resume: run.seed is 9 but the run"),
    ],
)
def test_a_contradiction_is_refused_by_name(stopped, capsys, words, sentence):
    before = (stopped / "config.toml").read_text()
    assert main(["train", "--out", str(stopped), "--resume", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert (stopped / "config.toml").read_text() == before


def test_other_data_is_refused(stopped, tmp_path, capsys):
    from train_runs import CUTOFFS, make_structures

    from janus.data.store import write_store

    other = write_store(tmp_path / "other.store", make_structures()[:8], **CUTOFFS)
    assert main(["train", "--out", str(stopped), "--resume", "--data", str(other.path)]) == 2
    assert "not those that the run" in capsys.readouterr().err


def test_resuming_needs_nothing_but_the_folder_and_may_change_what_does_not_matter(stopped, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(stopped, run)
    assert main(["train", "--out", str(run), "--resume", "--run.keep=1"]) == 0
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_00000010"]
