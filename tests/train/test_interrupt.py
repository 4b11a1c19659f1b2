"""Ctrl-C and SIGTERM, sent to real processes: a checkpoint, a clean exit with the right code, no traceback."""

import json
import signal
import subprocess
import time

import pytest
from train_runs import TINY, command, environment, make_store

from janus.cli.main import main
from janus.train.checkpoint import latest_good
from janus.train.steplog import read_step_log


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("interrupt") / "ten.store")


def start_training(num_ranks, store, out):
    words = ["-m", "janus", "train", "--data", str(store.path), "--out", str(out), *TINY, "--steps", "100000"]
    return subprocess.Popen(
        command(num_ranks, *words, "--batch.structures=4"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(),
    )  # fmt: skip


def wait_for_steps(process, out, count):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (out / "steps.jsonl").exists() and len(list(read_step_log(out / "steps.jsonl"))) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no {count} steps within 60 s: {process.communicate()}")


@pytest.mark.parametrize(
    ("num_ranks", "number", "code"), [(1, signal.SIGINT, 130), (1, signal.SIGTERM, 143), (2, signal.SIGTERM, 143)]
)
def test_a_signal_saves_and_exits(store, tmp_path, num_ranks, number, code):
    out = tmp_path / "run"
    process = start_training(num_ranks, store, out)
    wait_for_steps(process, out, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    document = json.loads((out / "run.json").read_text())
    checkpoint = latest_good(out / "checkpoints", pytest.fail)
    steps = [line["step"] for line in read_step_log(out / "steps.jsonl")]
    assert document["status"] == "interrupted"
    assert checkpoint.step == document["steps_done"] == len(steps) >= 3
    if num_ranks == 1:  # and it goes on from there
        assert main(["train", "--out", str(out), "--resume", "--stop-after", str(checkpoint.step + 2)]) == 0
        assert [line["step"] for line in read_step_log(out / "steps.jsonl")] == list(range(checkpoint.step + 2))


def test_a_second_signal_exits_at_once():
    """Both signals arrive within one long step, so that only the second can end it."""
    code = (
        "import os, signal, time\nfrom janus.train.interrupt import SAME_REQUEST_S, InterruptFlag\n"
        "with InterruptFlag(speak=True) as flag:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    assert flag.requested == 130\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"  # the launcher's echo of the same keystroke
        "    assert flag.requested == 130\n"
        "    time.sleep(SAME_REQUEST_S)\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(30)\n"
    )
    done = subprocess.run(command(1, "-c", code), capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 143, done.stderr
    assert "SIGINT, saving at the end of this step" in done.stderr
