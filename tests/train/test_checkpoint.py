"""Checkpoints: what any layout writes any other reads bit for bit; what is damaged or cut short costs nothing older."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_states import (
    DIVISIONS,
    DTYPES,
    SHAPES,
    alone,
    assert_equal_states,
    equal_on_all_ranks,
    take,
    whole_pieces,
    whole_state,
)
from safetensors.torch import save_file
from train_runs import environment, launch

from janus.config import to_mapping
from janus.errors import UserError
from janus.parallel.job import RunFailedError
from janus.train.checkpoint import latest_good, read_checkpoint
from janus.train.checkpoint_files import (
    DamagedCheckpointError,
    checksum_of,
    list_checkpoints,
    partial_folder,
    point_to,
    prune_checkpoints,
    remove_left_overs,
)
from janus.train.checkpoint_save import save_checkpoint
from janus.train.checkpoint_storage import Part, SafetensorsReader, merge_indices, read_parts, write_parts
from janus.train.config import TrainConfig, load_train_config
from janus.train.inference import open_checkpoint

ON_RANKS = Path(__file__).with_name("checkpoint_on_ranks.py")


def save(checkpoints, step, *, background=False, **keywords):
    state = whole_state(step)
    pending = save_checkpoint(
        checkpoints, step=step, config=load_train_config(overrides=["--run.seed=3"]), facts={"best_score": 0.5},
        pieces=whole_pieces(), parts={part: {name: tensor.reshape(-1) for name, tensor in tensors.items()}
                                      for part, tensors in state.items()},
        whole=equal_on_all_ranks(step), communicator=alone(), background=background, **keywords,
    )  # fmt: skip
    for tensors in state.values():
        for tensor in tensors.values():
            tensor.fill_(0.5)  # training goes on
    return pending


def parts_in(checkpoint):
    return {part: checkpoint.tensors[part] for part in DTYPES}


@pytest.fixture
def three(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for step in (10, 20, 30):
        save(folder, step)
    return folder


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_reads_back_bit_for_bit_though_training_went_on(tmp_path, background):
    save(tmp_path, 20, background=background).wait()
    back = read_checkpoint(tmp_path / "step_00000020")
    assert (back.step, back.config.run.seed, back.facts) == (20, 3, {"best_score": 0.5})
    assert_equal_states(parts_in(back), whole_state(20))
    assert_equal_states({"whole": back.tensors["whole"]}, {"whole": equal_on_all_ranks(20)})
    assert set(back.tensors) == {*DTYPES, "whole"}
    assert (back.names("average"), back.names("exp_avg_sq")) == (set(SHAPES), set())


def test_inference_uses_averages_and_buffers(tmp_path):
    save(tmp_path, 20)
    back, state = read_checkpoint(tmp_path / "step_00000020"), whole_state(20)
    buffers = {"reference_energies": torch.arange(5) * 20}
    assert_equal_states({"": back.inference_weights()}, {"": state["average"] | buffers})
    assert_equal_states({"": back.inference_weights(raw=True)}, {"": state["weights"] | buffers})


def test_a_save_waits_for_the_one_before_and_the_pointers_follow(tmp_path):
    save(tmp_path, 1, background=True)
    save(tmp_path, 2, background=True, best=True)
    last = save(tmp_path, 3, background=True)
    assert (tmp_path / "step_00000002").is_dir()
    last.wait()
    last.wait()  # a second wait has nothing to wait for
    assert last.done()
    assert [folder.name[-1] for folder in list_checkpoints(tmp_path)] == ["3", "2", "1"]
    assert (tmp_path / "latest").read_text() == "step_00000003\n"
    assert (tmp_path / "best").read_text() == "step_00000002\n"


def test_only_formats_that_cannot_execute_code_are_written(three):
    names = {path.suffix for path in three.rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json", ""}
    description = json.loads((three / "step_00000030" / "checkpoint.json").read_text())
    assert description["schema"] == "janus.checkpoint/2"
    for name, entry in description["files"].items():
        content = (three / "step_00000030" / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])


# Resharding


def write_by_ranks(folder, state, num_ranks, divide):
    """Each rank's parts, written one rank after the other without any process group."""
    folder.mkdir()
    indices = []
    for rank in range(num_ranks):
        mine = {}
        for part, tensors in state.items():
            for name, tensor in tensors.items():
                chunks = divide(tensor.numel(), rank, num_ranks)
                mine[f"{part}/{name}"] = Part(take(tensor, chunks), chunks, SHAPES[name])
        indices.append(write_parts(folder, rank, mine)[0])
    return merge_indices(indices)


def read_by_ranks(folder, index, num_ranks, divide):
    """The whole state, put together from what each rank of another layout reads."""
    state = {part: {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}
             for part, dtype in DTYPES.items()}  # fmt: skip
    for rank in range(num_ranks):
        mine = {}
        for part, dtype in DTYPES.items():
            for name, shape in SHAPES.items():
                chunks = divide(math.prod(shape), rank, num_ranks)
                mine[f"{part}/{name}"] = Part(
                    torch.zeros(sum(stop - start for start, stop in chunks), dtype=dtype), chunks, shape
                )
        read_parts(folder, index, mine)
        for full_name, part in mine.items():
            flat, position = state[full_name.split("/")[0]][full_name.split("/")[1]].view(-1), 0
            for start, stop in part.chunks:
                flat[start:stop] = part.values[position : position + stop - start]
                position += stop - start
    return state


@pytest.mark.parametrize("first", DIVISIONS)
@pytest.mark.parametrize("second", DIVISIONS)
def test_eight_ranks_to_two_to_one_and_back(tmp_path, first, second):
    state = whole_state(1)
    for number, (num_writers, num_readers) in enumerate([(8, 2), (2, 1), (1, 3), (3, 8)]):
        divisions = (first, second) if number % 2 == 0 else (second, first)
        index = write_by_ranks(tmp_path / str(number), state, num_writers, DIVISIONS[divisions[0]])
        state = read_by_ranks(tmp_path / str(number), index, num_readers, DIVISIONS[divisions[1]])
    assert_equal_states(state, whole_state(1))


def test_elements_that_no_rank_or_two_ranks_write_are_noticed(tmp_path):
    for number, chunks in enumerate([((0, 5), (6, 11)), ((0, 6), (5, 11)), ((0, 10),)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        part = Part(torch.zeros(sum(stop - start for start, stop in chunks)), chunks, (11,))
        index, _ = write_parts(folder, 0, {"weights/vector": part})
        with pytest.raises(AssertionError, match="weights/vector: elements from"):
            merge_indices([index])


def test_other_tensors_than_those_of_the_checkpoint_are_refused(three):
    pieces = whole_pieces()
    checkpoint = read_checkpoint(three / "step_00000010")
    with pytest.raises(UserError, match="average/unknown is not in checkpoint"):
        checkpoint.fill({"unknown": pieces["vector"]}, {"average": {"unknown": torch.zeros(11)}})
    with pytest.raises(UserError, match=r"weights/matrix has shape \[7, 5\]"):
        checkpoint.fill({"matrix": pieces["vector"]}, {"weights": {"matrix": torch.zeros(11)}})


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_own_loader_reads_our_folder(three):
    state = {"weights/matrix": torch.zeros(35), "exp_avg/vector": torch.zeros(11, dtype=torch.float64)}
    dcp.load(state, storage_reader=SafetensorsReader(three / "step_00000020"), no_dist=True)
    assert torch.equal(state["weights/matrix"], whole_state(20)["weights"]["matrix"].view(-1))
    assert torch.equal(state["exp_avg/vector"], whole_state(20)["exp_avg"]["vector"])


def test_ranks_of_many_layouts_save_and_load_one_anothers(tmp_path):
    """Four real ranks, then two that load what four wrote, then one that loads what both wrote."""
    save(tmp_path / "one" / "alone", 7)
    origins = [str(tmp_path / "one")]
    for num_ranks in (4, 2):
        done = launch(num_ranks, str(ON_RANKS), str(tmp_path / str(num_ranks)), *origins)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        origins.append(str(tmp_path / str(num_ranks)))
    written = [path for origin in origins for path in sorted(Path(origin).iterdir())]
    assert len(written) == 1 + 6 + 3  # copies of pairs need four ranks
    for checkpoints in written:
        assert_equal_states(parts_in(latest_good(checkpoints, pytest.fail)), whole_state(7))
    files = {path.name for path in (tmp_path / "4" / "shards-of-4-times-1" / "step_00000007").iterdir()}
    assert {f"weights-0000{rank}.safetensors" for rank in range(4)} < files
    copied = {path.name for path in (tmp_path / "4" / "shards-of-2-times-2" / "step_00000007").iterdir()}
    assert sorted(name for name in copied if "weights" in name) == [
        "weights-00000.safetensors", "weights-00001.safetensors",
    ]  # fmt: skip


# Found by name


def test_each_way_of_naming_a_checkpoint(three):
    point_to(three, "best", 10)
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


# Damage


def truncate(folder):
    file = folder / "weights-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def flip_a_bit(folder, name="exp_avg-00000.safetensors"):
    file = folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flip_a_bit_of_the_index(folder):
    flip_a_bit(folder, "index.json")


def lose_a_file(folder):
    (folder / "average-00000.safetensors").unlink()


def lose_the_description(folder):
    (folder / "checkpoint.json").unlink()


def cut_the_description(folder):
    file = folder / "checkpoint.json"
    file.write_text(file.read_text()[:-50])


def edit_the_description(folder):
    file = folder / "checkpoint.json"
    content = json.loads(file.read_text())
    content["step"] = 31
    file.write_text(json.dumps(content))


def describe_one_file_less(folder):
    content = json.loads((folder / "checkpoint.json").read_text())
    del content["files"]["average-00000.safetensors"]
    (folder / "checkpoint.json").write_text(json.dumps(content | {"checksum": checksum_of(content)}))


def give_it_an_unknown_schema(folder):
    content = json.loads((folder / "checkpoint.json").read_text()) | {"schema": "janus.checkpoint/9"}
    (folder / "checkpoint.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "weights-00000.safetensors has .* bytes instead of"),
        (flip_a_bit, "exp_avg-00000.safetensors does not match its hash"),
        (flip_a_bit_of_the_index, "index.json does not match its hash"),
        (lose_a_file, "average-00000.safetensors is missing"),
        (lose_the_description, "checkpoint.json is missing"),
        (cut_the_description, "checkpoint.json is not valid JSON"),
        (edit_the_description, "checkpoint.json does not match its checksum"),
        (describe_one_file_less, "it does not describe average-00000.safetensors"),
        (give_it_an_unknown_schema, "is not of schema janus.checkpoint/2"),
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
    with pytest.raises(UserError, match=reason):
        open_checkpoint(three / "step_00000030", told.append)


def test_all_damaged_is_a_mistake_and_none_is_none(three, tmp_path):
    for folder in list_checkpoints(three):
        truncate(folder)
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        latest_good(three, lambda sentence: None)
    assert latest_good(tmp_path / "nothing", pytest.fail) is None


# Cut short


def test_a_process_killed_during_a_background_write_leaves_the_former_checkpoint(tmp_path):
    save(tmp_path, 1)
    code = (
        "import os, signal, sys, torch; from pathlib import Path; from torch import nn\n"
        "from checkpoint_states import alone, LoneAxis, Piece\n"
        "from janus.train.checkpoint_save import save_checkpoint; from janus.train.config import TrainConfig\n"
        "big = torch.zeros(50_000_000)\n"
        "lone = LoneAxis('lone')\n"
        "pieces = {'big': Piece(name='big', shape=(50_000_000,), parameter=nn.Parameter(big),\n"
        "                       chunks=((0, 50_000_000),), owners=lone, copies=lone)}\n"
        "save_checkpoint(Path(sys.argv[1]), step=2, config=TrainConfig(), facts={}, pieces=pieces,\n"
        "                parts={'weights': {'big': big}}, whole={}, communicator=alone(), background=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True,
        env=environment() | {"PYTHONPATH": os.pathsep.join([folder, str(Path(folder).parent)])},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step_00000002.partial", "latest", "step_00000001"]
    assert latest_good(tmp_path, pytest.fail).step == 1
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000001", "step_00000003"]


def test_a_kill_between_renaming_and_pointing_costs_nothing(three):
    point_to(three, "latest", 20)
    assert latest_good(three, pytest.fail).step == 30


def test_a_kill_while_a_checkpoint_is_replaced_brings_the_old_one_back(three):
    (three / "step_00000030").rename(three / ".step_00000030.replaced")
    shutil.copytree(three / ".step_00000030.replaced", partial_folder(three / "step_00000030"))
    remove_left_overs(three)
    assert [path.name for path in three.glob(".*")] == []
    assert latest_good(three, pytest.fail).step == 30


def test_what_a_killed_replacement_or_removal_left_is_removed(three):
    shutil.copytree(three / "step_00000030", three / ".step_00000030.replaced")
    shutil.copytree(three / "step_00000010", three / ".step_00000005.removed")
    remove_left_overs(three)
    assert sorted(path.name for path in three.iterdir()) == [
        "latest", "step_00000010", "step_00000020", "step_00000030",
    ]  # fmt: skip


def test_saving_a_step_again_replaces_a_damaged_one(three):
    truncate(three / "step_00000030")
    save(three, 30)
    assert_equal_states(parts_in(latest_good(three, pytest.fail)), whole_state(30))
    assert sorted(path.name for path in three.iterdir()) == [
        "latest", "step_00000010", "step_00000020", "step_00000030",
    ]  # fmt: skip


def test_the_newest_the_latest_and_the_best_are_kept(three):
    save(three, 40)
    point_to(three, "best", 10)
    point_to(three, "latest", 20)
    prune_checkpoints(three, keep=1)
    assert [folder.name for folder in list_checkpoints(three)] == ["step_00000040", "step_00000020", "step_00000010"]


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_debris(tmp_path):
    """The limit on file size stands in for the full disk: the operating system refuses the write all the same."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from test_checkpoint import save, RunFailedError\n"
        "folder = Path(sys.argv[1])\n"
        "save(folder, 30)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
        "for wait in (lambda: save(folder, 40), lambda: save(folder, 50, background=True).wait()):\n"
        "    try: wait()\n"
        "    except RunFailedError as error: print('refused:', error)\n"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False,
        env=environment() | {"PYTHONPATH": os.pathsep.join([folder, str(Path(folder).parent)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for step in (40, 50):
        assert f"refused: the checkpoint of step {step} could not be written (File too large" in done.stdout
    assert done.stdout.count("on rank 0); that of step 30 is intact") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000030"]
    assert latest_good(tmp_path, pytest.fail).step == 30


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(RunFailedError, match=r"step 5 could not be written \(.*\); there is none before it"):
        save(tmp_path / "checkpoints", 5)


# The first schema


def test_a_checkpoint_of_the_first_schema_can_be_used_but_not_resumed(tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000004"
    folder.mkdir(parents=True)
    weights = {"a": torch.randn(3, 4), "buffer": torch.ones(2)}
    average = {"a": torch.zeros(3, 4)}
    for part, tensors in {"weights": weights, "average": average}.items():
        save_file(tensors, folder / f"{part}.safetensors")
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in folder.iterdir()
    }
    document = {"schema": "janus.checkpoint/1", "step": 4, "config": to_mapping(TrainConfig()), "facts": {},
                "files": files}  # fmt: skip
    (folder / "checkpoint.json").write_text(json.dumps(document | {"checksum": checksum_of(document)}))
    old = open_checkpoint(tmp_path, pytest.fail)
    assert_equal_states({"": old.inference_weights()}, {"": average | {"buffer": torch.ones(2)}})
    assert_equal_states({"": old.inference_weights(raw=True)}, {"": weights})
    with pytest.raises(UserError, match="of an older format"):
        old.fill(whole_pieces(), {})
    flip_a_bit(folder, "weights.safetensors")
    with pytest.raises(DamagedCheckpointError, match=r"weights\.safetensors does not match its hash"):
        read_checkpoint(folder)
