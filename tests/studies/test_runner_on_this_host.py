"""A runner with the executor of this host: killed, it leaves its job at work; interrupted, it ends it."""

import dataclasses
import os
import signal
import time

import pytest

from scaling_studies.attempts import Attempts
from scaling_studies.cells import resolve_cells
from scaling_studies.executors import processes
from scaling_studies.executors.local import LocalExecutor
from scaling_studies.records import DONE, FAILED, RUNNING, SUBMITTED
from scaling_studies.runner import Runner
from tests.studies.file_scheduler import work_for
from tests.studies.test_runner import in_child
from tests.study_cases import data, weak

CELLS = resolve_cells(weak(ranks=(1,), repeats=1), data())
WAITS = "until [ -e go ]; do sleep 0.05; done; echo 0.07 > step_s"  # in the attempt's folder


def runner_on(folder, said) -> Runner:
    work = work_for(CELLS, lambda record: WAITS)

    def job_of(cell, record, place):
        made = work.job_of(cell, record, place)
        return dataclasses.replace(made, job=dataclasses.replace(made.job, command=("sh", "-c", WAITS)))

    return Runner(Attempts(folder), dataclasses.replace(work, job_of=job_of), LocalExecutor(), say=said.append)


def wait_for_state(folder, *states):
    end = time.monotonic() + 60
    while not any(record.state in states for record in Attempts(folder).read()):
        assert time.monotonic() < end
        time.sleep(0.02)
    (record,) = Attempts(folder).read()
    return record


def test_a_killed_runner_leaves_its_job_and_the_next_one_takes_it_up(tmp_path):
    said = []
    child = in_child(lambda: runner_on(tmp_path, said).run())
    record = wait_for_state(tmp_path, RUNNING)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    place = Attempts(tmp_path).folder_of(record)
    assert processes.members(place)
    (place / "go").touch()
    assert runner_on(tmp_path, said).run().is_complete
    (done,) = Attempts(tmp_path).read()
    assert (done.state, done.job_id, done.started_at) == (DONE, record.job_id, record.started_at)
    assert said == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_runner_ends_its_job_and_says_so(tmp_path, number):
    said_file = tmp_path / "said"

    def run():
        from janus.cli.main import _terminate

        signal.signal(signal.SIGTERM, _terminate)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with said_file.open("w") as stream:
            runner = runner_on(tmp_path, [])
            runner._say = lambda line: print(line, file=stream, flush=True)
            runner.run()

    child = in_child(run)
    wait_for_state(tmp_path, SUBMITTED, RUNNING)
    os.kill(child, number)
    assert os.waitpid(child, 0)[1] == 1 << 8  # it left by an exception, not by the signal
    (record,) = Attempts(tmp_path).read()
    assert record.state == FAILED
    assert record.reason.startswith("stopped by the runner")
    assert processes.members(Attempts(tmp_path).folder_of(record)) == set()
    assert "stopping 1 job of this host" in said_file.read_text()
