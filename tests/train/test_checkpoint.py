"""Checkpoints: what is written is read back; what is damaged is named and the one before is used; no pickle."""

import json
import subprocess
import sys

import pytest
import torch
from train_runs import environment

from janus.errors import UserError
from janus.train.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    latest_good,
    list_checkpoints,
    open_checkpoint,
    point_to_best,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from janus.train.config import load_train_config


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {
        "a": torch.randn(3, 4, generator=generator, dtype=torch.float64),
        "b": torch.randn(2, generator=generator),
    }
    return Checkpoint(
        step=step, config=load_train_config(overrides=["--run.seed=3"]), facts={"best_score": 0.5},
        tensors={"weights": weights, "average": {"a": torch.ones(3, 4, dtype=torch.float64)},
                 "optimizer": {"generator": torch.get_rng_state()}},
    )  # fmt: skip


@pytest.fixture
def three(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (10, 20, 30):
        save_checkpoint(folder, checkpoint(step))
    return folder


def test_a_checkpoint_reads_back_bit_for_bit(three):
    original, back = checkpoint(20), read_checkpoint(three / "step_00000020")
    assert (back.step, back.config, back.facts) == (20, original.config, original.facts)
    for part, tensors in original.tensors.items():
        assert set(tensors) == set(back.tensors[part])
        for name, tensor in tensors.items():
            assert back.tensors[part][name].dtype == tensor.dtype
            assert torch.equal(back.tensors[part][name], tensor)
    assert torch.equal(back.inference_weights()["a"], torch.ones(3, 4, dtype=torch.float64))
    assert torch.equal(back.inference_weights()["b"], original.tensors["weights"]["b"])


def test_only_formats_that_cannot_execute_code_are_written(three):
    names = {path.suffix for path in three.rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json", ""}
    assert (three / "latest").read_text() == "step_00000030\n"


def test_each_way_of_naming_a_checkpoint(three):
    point_to_best(three, 10)
    mute = pytest.fail
    assert open_checkpoint(three.parent, mute).step == 30
    assert open_checkpoint(three, mute).step == 30
    assert open_checkpoint(three / "latest", mute).step == 30
    assert open_checkpoint(three / "best", mute).step == 10
    assert open_checkpoint(three / "step_00000020", mute).step == 20
    with pytest.raises(UserError, match="no checkpoint at"):
        open_checkpoint(three / "step_00000099", mute)
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_checkpoint(three.parent.parent, mute)


def truncate(folder):
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def flip_a_bit(folder):
    file = folder / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def lose_a_file(folder):
    (folder / "average.safetensors").unlink()


def cut_the_description(folder):
    file = folder / "checkpoint.json"
    file.write_text(file.read_text()[:-50])


def edit_the_description(folder):
    file = folder / "checkpoint.json"
    content = json.loads(file.read_text())
    content["step"] = 31
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes instead of"),
        (flip_a_bit, "does not match its hash"),
        (lose_a_file, "is missing"),
        (cut_the_description, "is not valid JSON"),
        (edit_the_description, "does not match its checksum"),
    ],
)
def test_damage_is_named_and_the_previous_checkpoint_used(three, damage, reason):
    damage(three / "step_00000030")
    with pytest.raises(DamagedCheckpointError, match=reason):
        read_checkpoint(three / "step_00000030")
    told = []
    assert latest_good(three, told.append).step == 20
    assert len(told) == 1
    assert "step_00000030" in told[0]
    assert reason in told[0]
    with pytest.raises(UserError, match=reason):
        open_checkpoint(three / "step_00000030", told.append)


def test_all_damaged_is_a_mistake_and_none_is_none(three, tmp_path):
    for folder in list_checkpoints(three):
        truncate(folder)
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        latest_good(three, lambda sentence: None)
    assert latest_good(tmp_path / "nothing", pytest.fail) is None


def test_the_newest_and_the_best_are_kept(three):
    save_checkpoint(three, checkpoint(40))
    point_to_best(three, 10)
    prune_checkpoints(three, keep=2)
    assert [folder.name for folder in list_checkpoints(three)] == ["step_00000040", "step_00000030", "step_00000010"]


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_debris(three):
    """The limit on file size stands in for the full disk: the operating system refuses the write all the same."""
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from janus.train.checkpoint import Checkpoint, save_checkpoint\n"
        "from janus.train.config import TrainConfig\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "big = Checkpoint(step=40, config=TrainConfig(), tensors={'weights': {'a': torch.zeros(10000)}})\n"
        "try: save_checkpoint(Path(sys.argv[1]), big)\n"
        "except OSError as error: print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(three)], capture_output=True, text=True, env=environment(), check=True
    )
    assert "refused:" in done.stdout
    assert sorted(path.name for path in three.iterdir()) == [
        "latest", "step_00000010", "step_00000020", "step_00000030",
    ]  # fmt: skip
    assert latest_good(three, pytest.fail).step == 30
