"""The local executor with real processes: jobs are found, ended and survived by nothing."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from scaling_studies.executors import processes
from scaling_studies.executors.base import ENDED, RUNNING, UNKNOWN, AttemptJob
from scaling_studies.executors.local import LocalExecutor
from scaling_studies.job_facts import END_FILE, read_facts
from scaling_studies.launch_scripts import Job

PATIENCE_S = 60.0  # of these tests, far more than they take


def attempt(folder: Path, *command: str, limit_s: float = 60.0, **changes) -> AttemptJob:
    """A job in a folder and of a name of its own (other test runs on this host start jobs too), its script on disk."""
    place = folder / "attempts" / f"w-ranks00001-{uuid.uuid4().hex[:12]}-attempt01"
    place.mkdir(parents=True)
    values = {"name": place.name, "command": command, "ranks": 1, "nodes": 1, "ranks_per_node": 1, "threads": 1}
    made = AttemptJob(tag=place.name, folder=place, job=Job(**{**values, "time_limit_s": limit_s, **changes}))
    made.script.write_text(LocalExecutor().render(made))
    return made


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        time.sleep(0.02)


def wait_until_ended(executor: LocalExecutor, job_id: str) -> None:
    wait_for(lambda: executor.poll([job_id])[job_id].state == ENDED, "the end of the job")


def test_a_job_runs_to_its_end_and_is_found_while_it_does(tmp_path):
    job = attempt(tmp_path, "sh", "-c", "echo working; sleep 0.5")
    executor, other = LocalExecutor(), LocalExecutor()
    job_id = executor.submit([job])[job.tag]
    assert executor.poll([job_id])[job_id].state == RUNNING
    assert other.find([job.tag, "another"]) == {job.tag: job_id}
    assert other.poll([job_id])[job_id].state == RUNNING  # a runner that was started again sees the same
    wait_until_ended(other, job_id)
    wait_until_ended(executor, job_id)
    assert executor.find([job.tag]) == {}
    assert read_facts(job.folder / END_FILE)["exit_code"] == 0
    assert "working" in job.log.read_text()
    assert not (job.folder / "verdict.json").exists()


def test_the_time_limit_holds_without_a_runner_and_leaves_no_process(tmp_path):
    job = attempt(tmp_path, "sh", "-c", "setsid sleep 600 & sleep 600", limit_s=1.5)
    executor = LocalExecutor()
    job_id = executor.submit([job])[job.tag]
    wait_for(lambda: (job.folder / END_FILE).exists(), "the end of the script")  # nobody polls
    wait_until_ended(executor, job_id)
    assert json.loads((job.folder / "verdict.json").read_text()) == {
        "outcome": "TIMEOUT", "reason": "no end within 1.5 s, stopped"
    }  # fmt: skip
    assert processes.members(job.folder) == set()


def test_a_cancelled_job_says_so_and_leaves_no_process(tmp_path):
    job = attempt(tmp_path, "sleep", "600")
    executor = LocalExecutor()
    job_id = executor.submit([job])[job.tag]
    wait_for(lambda: (job.folder / "begin.json").exists(), "the start of the script")
    executor.cancel([job_id])
    assert executor.poll([job_id])[job_id].state == ENDED
    assert json.loads((job.folder / "verdict.json").read_text())["outcome"] == "FAILED"
    assert read_facts(job.folder / END_FILE)["exit_code"] == 143
    assert processes.members(job.folder) == set()
    executor.cancel([job_id])  # an ended one is left alone


def test_of_a_job_whose_watcher_was_killed_nothing_runs_on(tmp_path):
    job = attempt(tmp_path, "sleep", "600")
    executor = LocalExecutor()
    job_id = executor.submit([job])[job.tag]
    wait_for(lambda: (job.folder / "begin.json").exists(), "the start of the script")
    os.kill(int(job_id.split(":")[2]), signal.SIGKILL)
    wait_until_ended(executor, job_id)
    assert processes.members(job.folder) == set()


def test_a_number_that_is_used_again_is_not_the_job():
    """This very process has the number of the job, another start, and must survive the question."""
    executor = LocalExecutor()
    host, boot, pid, start = mine(os.getpid()).split(":")
    assert executor.poll([f"{host}:{boot}:{pid}:{int(start) - 1}"]).popitem()[1].state == ENDED
    found = executor.poll([f"{host}:00000000:{pid}:{start}"]).popitem()[1]
    assert found.state == UNKNOWN
    assert f"started on {host}" in found.reason


def mine(pid: int) -> str:
    from scaling_studies.executors.local import _job_id

    return _job_id(pid)


def test_what_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    program = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
         "time.sleep(600)"],
        env=os.environ | {processes.VARIABLE: str(tmp_path)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdout.readline()
    assert processes.members(tmp_path) == {program.pid}
    processes.end_attempt(tmp_path)
    assert program.wait(timeout=PATIENCE_S) == -signal.SIGKILL


@pytest.mark.parametrize(("launcher", "words"), [("mpiexec", "mpiexec -n 2 "), ("torchrun", "--nproc-per-node=2 ")])
def test_ranks_are_started_by_the_launcher_of_the_declaration(tmp_path, launcher, words):
    job = attempt(tmp_path, "program", ranks=2, ranks_per_node=2, launcher=launcher)
    assert words in job.script.read_text()
