"""Runs with sharded parameters, partitioned graphs and spread experts, in every kind of trouble that one rank can make.

Memory, kills, exceptions, signals, full disks, damaged checkpoints, numbers that are not finite. The same weights as
a single process that met none of it are what a run must reach afterwards, whatever layouts it went through.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from test_failure import ranks_of
from train_runs import BIN, CUTOFFS, TINY, command, environment, labelled, launch, make_store, make_structures

from janus.calculator import JanusCalculator
from janus.cli.main import main
from janus.data.store import write_store
from janus.train.checkpoint import latest_good
from janus.train.checkpoint_files import list_checkpoints
from janus.train.steplog import read_step_log

TROUBLED = str(Path(__file__).with_name("troubled_rank.py"))
STOP_LIMIT_S = 30.0  # in which all ranks must have stopped
LAUNCH_LIMIT_S = 240.0  # of a whole launch, on a busy host
NUM_STEPS = 24
EXPERTS = ["--model", "matris-moe-tiny", "--model.num_blocks=2", *TINY[1:]]
RUN = ["--run.dtype=float64", "--run.checkpoint_every=4", "--batch.structures=4", "--steps", str(NUM_STEPS)]
FOUR = ["--parallel.unit=4", "--parallel.shard_degree=4", "--parallel.graph_degree=2", "--parallel.expert_degree=4"]
TWO = ["--parallel.unit=2", "--parallel.shard_degree=2", "--parallel.graph_degree=2", "--parallel.expert_degree=1"]
ONE = [f"--parallel.{name}=1" for name in ("unit", "shard_degree", "graph_degree", "expert_degree")]
GLOO, MPI = "--parallel.transport=gloo", "--parallel.transport=mpi"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("layouts") / "ten.store")


@pytest.fixture(scope="module")
def straight(store, tmp_path_factory):
    """The run that never met trouble, by a single process."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert main(["train", "--data", str(store.path), "--out", str(out), *EXPERTS, *RUN]) == 0
    return latest_good(out / "checkpoints", pytest.fail)


def start(num_ranks, store, out, *words, trouble="none"):
    """A run on many ranks; the process of its launcher."""
    arguments = ["train", "--data", str(store.path), "--out", str(out), *EXPERTS, *RUN, *words]
    return subprocess.Popen(
        command(num_ranks, TROUBLED, trouble, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip


def wait_until(process, condition):
    deadline = time.monotonic() + LAUNCH_LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def wait_for_steps(process, out, count):
    wait_until(process, lambda: (out / "steps.jsonl").exists() and len((out / "steps.jsonl").read_text().splitlines())
               >= count)  # fmt: skip


def resume(num_ranks, out, *words):
    arguments = ["train", "--out", str(out), "--resume", *words]
    if num_ranks == 1:
        assert main(arguments) == 0
        return ""
    done = launch(num_ranks, "-m", "janus", *arguments, timeout_s=LAUNCH_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_same_weights(out, expected):
    found = latest_good(out / "checkpoints", pytest.fail)
    assert found.step == expected.step == NUM_STEPS
    for part in ("weights", "average", "exp_avg", "exp_avg_sq"):
        for name, tensor in expected.tensors[part].items():
            error = torch.linalg.vector_norm(found.tensors[part][name] - tensor)
            assert error <= 1e-9 * torch.linalg.vector_norm(tensor) + 1e-12, (part, name, error)


def newest(out):
    return int(list_checkpoints(out / "checkpoints")[0].name[5:])


@pytest.mark.parametrize("transport", [GLOO, MPI])
def test_a_rank_killed_in_a_step_is_named_and_the_run_goes_on_in_other_layouts(store, straight, tmp_path, transport):
    out = tmp_path / "run"
    process = start(4, store, out, *FOUR, transport)
    wait_for_steps(process, out, 6)
    wait_until(process, lambda: list_checkpoints(out / "checkpoints"))
    ranks = ranks_of(process)
    os.kill(ranks[2].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=STOP_LIMIT_S)
    assert process.returncode != 0
    assert f"rank 2 (process {ranks[2].pid}" in errors
    assert "rank 2" in (out / "failure.txt").read_text()
    assert not any(rank.is_running() and rank.status() != "zombie" for rank in ranks.values())
    kept, steps = newest(out), len(list(read_step_log(out / "steps.jsonl")))
    assert steps - kept <= 2 * 4  # those since the last checkpoint, and since the one before where it was being written
    resume(2, out, *TWO, GLOO, "--stop-after", str(kept + 3))
    assert json.loads((out / "run.json").read_text())["first_step"] == kept
    if transport == MPI:
        resume(4, out, *FOUR, transport, "--parallel.expert_strategy=weights", "--stop-after", str(kept + 6))
    resume(1, out, *ONE)
    assert_same_weights(out, straight)


def test_ranks_killed_while_a_checkpoint_is_written_cost_that_checkpoint_only(store, straight, tmp_path):
    out = tmp_path / "run"
    process = start(2, store, out, *TWO, "--run.checkpoint_every=1")
    wait_for_steps(process, out, 3)
    wait_until(process, lambda: len(list_checkpoints(out / "checkpoints")) > 1)
    partial = out / "checkpoints"
    wait_until(process, lambda: any(path.name.endswith(".partial") for path in partial.iterdir()))
    os.kill(ranks_of(process)[1].pid, signal.SIGKILL)
    process.communicate(timeout=STOP_LIMIT_S)
    kept, steps = newest(out), len(list(read_step_log(out / "steps.jsonl")))
    assert steps - kept <= 2
    resume(1, out, *ONE)
    assert json.loads((out / "run.json").read_text())["first_step"] == kept
    assert not any(path.name.endswith(".partial") for path in partial.iterdir())
    assert_same_weights(out, straight)


@pytest.mark.parametrize("transport", [pytest.param(GLOO, marks=pytest.mark.slow), MPI])
def test_an_exception_in_a_step_names_its_rank(store, tmp_path, transport):
    out = tmp_path / "run"
    process = start(4, store, out, *FOUR, transport, "--steps=100000", trouble="error")
    wait_for_steps(process, out, 3)
    ranks_of(process)[3].send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=STOP_LIMIT_S)
    sentence = f"janus train: rank 3 on {os.uname().nodename}: ValueError: something odd on purpose; all ranks stop"
    assert process.returncode != 0
    assert errors.count(sentence) == errors.count("all ranks stop") == 1, errors
    document = json.loads((out / "run.json").read_text())
    assert (document["status"], document["message"] in sentence) == ("failed", True)


@pytest.mark.parametrize(
    ("transport", "number", "code"),
    [pytest.param(GLOO, signal.SIGINT, 130, marks=pytest.mark.slow), (MPI, signal.SIGTERM, 143)],
)
def test_a_signal_saves_on_all_ranks(store, tmp_path, transport, number, code):
    out = tmp_path / "run"
    process = start(4, store, out, *FOUR, transport, "--steps=100000")
    wait_for_steps(process, out, 5)
    for rank in ranks_of(process).values():
        rank.send_signal(number)
    _, errors = process.communicate(timeout=STOP_LIMIT_S)
    document = json.loads((out / "run.json").read_text())
    assert process.returncode == code, errors
    assert document["status"] == "interrupted"
    assert newest(out) == document["steps_done"] == len(list(read_step_log(out / "steps.jsonl")))
    assert errors.count("saving at the end of this step") == 1


def test_a_full_disk_of_one_rank_stops_all_and_keeps_what_is_there(store, tmp_path):
    out = tmp_path / "run"
    done = start(2, store, out, *TWO, trouble="disk=1").communicate(timeout=LAUNCH_LIMIT_S)
    assert "the checkpoint of step 4 could not be written (File too large" in done[1]
    assert "on rank 1); there is none before it" in done[1]
    assert "Traceback" not in done[1]
    assert list((out / "checkpoints").iterdir()) == []
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_piece_of_one_rank_costs_its_checkpoint(store, straight, tmp_path, damage):
    out = tmp_path / "run"
    process = start(2, store, out, *TWO, "--stop-after", "8")
    assert process.wait(timeout=LAUNCH_LIMIT_S) == 0
    (folder, before) = list_checkpoints(out / "checkpoints")
    piece = folder / "exp_avg-00001.safetensors"
    content = bytearray(piece.read_bytes())
    if damage == "changed":
        content[-5] ^= 1
    piece.write_bytes(content if damage == "changed" else content[:-5])
    errors = resume(2, out, *TWO)
    assert errors.count("step_00000008 is damaged: exp_avg-00001.safetensors") == 1
    assert errors.count("trying the one before") == 1
    assert json.loads((out / "run.json").read_text())["first_step"] == int(before.name[5:]) == 4
    assert_same_weights(out, straight)


def test_structures_with_bad_labels_are_named_by_all_ranks_together(tmp_path):
    structures = make_structures()
    forces = structures[3].forces.copy()
    forces[1, 2] = np.inf
    structures[3] = replace(structures[3], forces=forces)
    bad = write_store(tmp_path / "bad.store", structures, **CUTOFFS)
    out = tmp_path / "run"
    process = start(
        4, bad, out, *FOUR, "--parallel.gathered_blocks=0", "--data.validation_fraction=0.1", "--run.validate_every=1"
    )
    _, errors = process.communicate(timeout=LAUNCH_LIMIT_S)
    assert process.returncode == 1
    assert errors.count("is not finite") == 1
    assert "is not finite, in structure 3 'Au-3' (forces label); " in errors
    assert "Traceback" not in errors


def test_a_cell_beyond_one_ranks_memory_trains_across_four(tmp_path):
    """The cap is on address space, beyond what the libraries take; small stacks, since every thread reserves one."""
    atoms = bulk("Cu", cubic=True).repeat((4, 4, 4))
    atoms.positions += 0.05 * np.random.default_rng(1).standard_normal(atoms.positions.shape)
    big = write_store(tmp_path / "big.store", [labelled(atoms, "big")], **CUTOFFS)
    model = ["--model.num_blocks=3", "--model.width=32", *TINY[2:], "--batch.structures=1", "--steps", "2"]
    start = ["train", "--data", str(big.path), *model, "--run.checkpoint_every=0", "--out"]

    def run(num_ranks, name, cap, *words):
        limits = environment() | {"MALLOC_ARENA_MAX": "1"}
        words = command(num_ranks, TROUBLED, cap, *start, str(tmp_path / name), *words)
        stacks = ["sh", "-c", 'ulimit -s 1024; exec "$@"', "sh"]
        return subprocess.run(
            [*stacks, *words], capture_output=True, text=True, timeout=LAUNCH_LIMIT_S, env=limits, check=False
        )

    def losses(name):
        return [line["loss"] for line in read_step_log(tmp_path / name / "steps.jsonl")]

    cap = f"memory={500 << 20}"
    alone = run(1, "alone", cap)
    assert alone.returncode == 1
    assert "janus train: no memory for " in alone.stderr
    assert (
        "lower batch.max_work, set run.recompute to true, or spread each micro-batch by parallel.graph" in alone.stderr
    )
    assert "Traceback" not in alone.stderr
    assert losses("alone") == []
    four = run(4, "four", cap, "--parallel.unit=4", "--parallel.graph_degree=4")
    assert four.returncode == 0, four.stderr
    assert run(1, "uncapped", "none").returncode == 0
    assert len(losses("four")) == 2
    assert losses("four") == pytest.approx(losses("uncapped"), rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("loss_of", "transport"),
    [("all_to_all/BE", GLOO), ("all_to_all/BF", MPI), pytest.param("reduce_scatter/BE", GLOO, marks=pytest.mark.slow),
     pytest.param("all_reduce/sync", MPI, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_collective_that_loses_an_adjoint_is_caught(loss_of, transport):
    """Energies, forces and stresses are right all the same: the error is silent."""
    layout = [*TWO[:3], "--parallel.expert_degree=2", transport]
    done = launch(
        4,
        TROUBLED,
        f"deaf={loss_of}",
        "check",
        "gradients",
        *EXPERTS,
        *layout,
        "--structures=3",
        "--json",
        timeout_s=LAUNCH_LIMIT_S,
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["passes"]) == ("janus.check/1", False)
    assert all(row["relative"] < 1e-10 for row in document["outputs"])
    assert max(row["relative"] for row in document["gradients"]) > 1e-2


def test_a_layout_that_is_not_exact_does_not_train(store, tmp_path):
    process = start(2, store, tmp_path / "run", *TWO, "--run.verify=true", trouble="deaf=all_to_all/BE")
    _, errors = process.communicate(timeout=LAUNCH_LIMIT_S)
    assert process.returncode == 1
    assert errors.count("the layout differs from a single process by more than 1e-10 in") == 1
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_exact_layout_is_verified_and_trains(store, tmp_path, dtype):
    """The two smallest structures pull the last bias in opposite directions: nothing is left but rounding."""
    out = tmp_path / "run"
    words = [*TWO, "--run.verify=true", f"--run.dtype={dtype}", "--stop-after", "2"]
    _, errors = start(2, store, out, *words).communicate(timeout=LAUNCH_LIMIT_S)
    assert "the layout equals a single process within" in errors
    assert json.loads((out / "run.json").read_text())["steps_done"] == 2


def test_torchrun_trains_a_layout_with_fewer_structures_than_data_groups(store, tmp_path, capsys):
    """One structure per step for two graph groups, a validation of two, averaged weights; then used as any run is."""
    out = tmp_path / "run"
    words = ["--parallel.unit=2", "--parallel.shard_degree=2", "--parallel.expert_degree=2", "--batch.structures=1",
             "--batch.max_work=1", "--data.validation_fraction=0.2", "--run.validate_every=2",
             "--stop-after=4"]  # fmt: skip
    arguments = ["train", "--data", str(store.path), "--out", str(out), *EXPERTS, *RUN, *words]
    start = [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "janus", *arguments]
    done = subprocess.run(start, capture_output=True, text=True, timeout=LAUNCH_LIMIT_S, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "run.json").read_text())
    assert document["validation"]["energy"]["count"] == 2
    assert main(["evaluate", str(out), str(store.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["energy"]["count"] == 10
    assert main(["export", str(out), "--out", str(tmp_path / "whole.safetensors")]) == 0
    atoms = bulk("Cu", cubic=True)
    energies = []
    for potential in (out, tmp_path / "whole.safetensors"):
        atoms.calc = JanusCalculator(potential)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1]
    assert np.isfinite(energies[0])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--parallel.unit=4", "--parallel.shard_degree=3"], "degree 3 does not divide the unit of 4 ranks: use one"),
        (["--parallel.unit=4"], "the layout needs 4 ranks (4 per unit x 1 replicas) but 1 were started: start 4"),
        (["--parallel.unit=2", "--parallel.expert_degree=2"], "but the model has no experts: set it to 1 or use"),
        (["--parallel.unit=2", "--parallel.graph_degree=2", "--model.compat=true"], "cannot be split over ranks: set"),
        (["--parallel.gathered_blocks=1"], "use 2 (the block in use and the next) or more, or 0 to keep all"),
        (["--parallel.transport=nccl", "--run.device=cpu"], "does not carry tensors on device 'cpu': use 'gloo'"),
    ],
)  # fmt: skip
def test_impossible_layouts_are_refused_before_anything_is_made(store, tmp_path, capsys, words, sentence):
    arguments = ["train", "--data", str(store.path), "--out", str(tmp_path / "run"), *TINY, *words]
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("launcher", "words", "sentence", "code"),
    [
        (["mpiexec", "-n"], ["train", "--parallel.transport=nccl"], "transport 'nccl' does not carry tensors on", 2),
        (["mpiexec", "-n"], ["check"], "the following arguments are required: CHECK", 2),
        (["torchrun", "--nproc-per-node"], ["train", "--parallel.transport=mpi"], "started by mpiexec or srun, not", 1),
    ],
)
def test_many_ranks_tell_a_mistake_once(store, tmp_path, launcher, words, sentence, code):
    data = ["--data", str(store.path), "--out", str(tmp_path / "run"), "--run.device=cpu"] if words[1:] else []
    python = [] if launcher[0] == "torchrun" else [sys.executable]
    start = [str(BIN / launcher[0]), launcher[1], "2", *python, "-m", "janus", *words, *data]
    done = subprocess.run(start, capture_output=True, text=True, timeout=LAUNCH_LIMIT_S, env=environment(), check=False)
    assert done.returncode == code
    assert done.stderr.count(sentence) == 1, done.stderr
    assert not (tmp_path / "run").exists()
