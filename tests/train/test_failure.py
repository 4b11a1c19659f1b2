"""One rank's failure stops all and is named; numbers that are not finite name their structures; a full disk."""

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_interrupt import start_training, wait_for_steps
from train_runs import CUTOFFS, TINY, command, environment, launch, make_store, make_structures

from janus.cli.main import main
from janus.data.store import write_store
from janus.train.checkpoint import latest_good

SCRIPT = Path(__file__).with_name("failing_rank.py")
LIMIT_S = 30.0  # in which all ranks must have stopped


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("failure") / "ten.store")


def ranks_of(launcher):
    """Processes of the ranks that an mpiexec started, by rank."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return {int(child.environ()["PMI_RANK"]): child for child in children if "PMI_RANK" in child.environ()
            and "guardian" not in child.cmdline()}  # fmt: skip


def test_a_killed_rank_is_named_and_the_others_stop(store, tmp_path):
    out = tmp_path / "run"
    process = start_training(2, store, out)
    wait_for_steps(process, out, 2)
    ranks = ranks_of(process)
    assert set(ranks) == {0, 1}
    os.kill(ranks[1].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert f"rank 1 (process {ranks[1].pid}" in errors
    assert "rank 0 (process" not in errors
    assert "rank 1" in (out / "failure.txt").read_text()
    assert not psutil.pid_exists(ranks[0].pid) or ranks[0].status() == psutil.STATUS_ZOMBIE


def start_as_srun_would(rank, port, words):
    """One of two ranks with the variables of an srun step; nobody cleans up after either."""
    step = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    return subprocess.Popen(
        command(1, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | step
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_where_no_launcher_stops_the_others(store, tmp_path, victim):
    """The watchdog alone has to stop the other rank. Rank 0 holds the store that the ranks share."""
    out = tmp_path / "run"
    words = ["-m", "janus", "train", "--data", str(store.path), "--out", str(out), *TINY, "--steps", "100000"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [start_as_srun_would(rank, port, words) for rank in range(2)]
    wait_for_steps(ranks[0], out, 2)
    ranks[victim].send_signal(signal.SIGKILL)
    _, errors = ranks[1 - victim].communicate(timeout=LIMIT_S)
    assert ranks[1 - victim].returncode == 1
    assert f"janus train: rank {victim} on {os.uname().nodename}" in errors
    assert errors.count("all ranks stop") == 1
    assert f"rank {victim} (process {ranks[victim].pid}" in ranks[victim].communicate()[1]  # its guardian
    if victim == 1:
        document = json.loads((out / "run.json").read_text())
        assert document["status"] == "failed"
        assert "rank 1 on" in document["message"]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("exception", "janus train: rank 1 on {host}: ValueError: something odd on purpose; all ranks stop"),
        ("absent", "janus train: rank 1 on {host} did not come to a collective"),
    ],
)
def test_a_rank_that_fails_or_hangs_is_named(way, expected):
    start = time.monotonic()
    done = launch(2, str(SCRIPT), way, timeout_s=LIMIT_S + 15)
    assert time.monotonic() - start < LIMIT_S + 10  # start-up included
    assert done.returncode != 0
    assert expected.format(host=os.uname().nodename) in done.stderr
    assert done.stderr.count("all ranks stop") == 1


def test_structures_with_bad_labels_are_named_and_the_last_checkpoint_kept(tmp_path, capsys):
    structures = make_structures()
    forces = structures[3].forces.copy()
    forces[1, 2] = np.inf
    structures[3] = replace(structures[3], forces=forces)
    bad = write_store(tmp_path / "bad.store", structures, **CUTOFFS)
    out = tmp_path / "run"
    words = [*TINY, "--batch.structures=2", "--run.checkpoint_every=1", "--run.seed=2"]
    assert main(["train", "--data", str(bad.path), "--out", str(out), "--steps", "5", *words]) == 1
    errors = capsys.readouterr().err
    document = json.loads((out / "run.json").read_text())
    failed_step = len((out / "steps.jsonl").read_text().splitlines())
    assert f"the loss of step {failed_step} is not finite, in structure 3 'Au-3' (forces label)" in errors
    assert document["status"] == "failed"
    assert "Au-3" in document["message"]
    assert failed_step > 0  # the seed puts it after a good step
    assert latest_good(out / "checkpoints", pytest.fail).step == failed_step
    assert f"checkpoint step {failed_step} is kept" in errors


def test_diverging_weights_stop_all_ranks_with_one_sentence(store, tmp_path):
    out = tmp_path / "run"
    words = [*TINY, "--optimizer.learning_rate=1e30", "--schedule.warmup_steps=0", "--steps", "9"]
    done = launch(2, "-m", "janus", "train", "--data", str(store.path), "--out", str(out), *words)
    assert done.returncode != 0
    assert done.stderr.count("is not finite") == 1
    assert "in structures 0 'Cu-0' (predicted" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("limit_bytes", "expected"), [(20_000, "the checkpoint of step 1 could not be written")])
def test_a_full_disk_is_one_sentence_and_exit_code_1(store, tmp_path, limit_bytes, expected):
    """A limit on file size makes the operating system refuse the write, as a full disk does."""
    out = tmp_path / "run"
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
        "from janus.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["train", "--data", str(store.path), "--out", str(out), *TINY, "--run.checkpoint_every=1"]
    done = launch(1, "-c", code, *arguments, "--steps", "3")
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert list((out / "checkpoints").iterdir()) == []
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
