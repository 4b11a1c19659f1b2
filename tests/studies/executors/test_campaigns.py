"""Campaigns by the runner through PBS, Flux and LSF, played by a small scheduler that really starts the scripts."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from study_cases import data, weak

from scaling_studies.attempts import Attempts
from scaling_studies.cells import identity, resolve_cells
from scaling_studies.executors.base import AttemptJob
from scaling_studies.executors.choice import executor_for
from scaling_studies.launch_scripts import Job
from scaling_studies.records import DONE, FAILED, MEASURED, PLANNED, Record
from scaling_studies.runner import Runner, Work
from scaling_studies.study import ExecutorSettings

PROGRAMS = ("qsub", "qstat", "qselect", "qdel", "flux", "bsub", "bjobs", "bkill", "mpiexec")
SMALL_SCHEDULER = Path(__file__).parents[2] / "small_scheduler.py"
VERSION = "1+c0de"


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """Folder of the small scheduler, whose programs are first on the path."""
    folder = tmp_path / "scheduler"
    (folder / "jobs").mkdir(parents=True)
    text = SMALL_SCHEDULER.read_text()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f"#!{sys.executable} -SE\n{text}")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture(params=["pbs", "flux", "lsf"])
def make_runner(request, scheduler, tmp_path):
    """command of the jobs -> a new runner on the same study folder, two attempts at one cell wanted."""
    settings = ExecutorSettings(kind=request.param, ranks_per_node=1, poll_s=0.15)
    study = weak(ranks=(1,))
    cells = resolve_cells(study, data(), executor=settings, code_version=VERSION)

    def planned(cell, repeat):
        return Record(**identity(cell), source=MEASURED, method="by hand", machine="here", layout={}, state=PLANNED,
                      repeat=repeat, executor=settings.kind)  # fmt: skip

    def make(command="echo 0.25 > time"):
        def job_of(cell, record, folder):
            job = Job(name="any", command=["bash", "-c", command], ranks=1, nodes=1, ranks_per_node=1, threads=1,
                      time_limit_s=60.0)  # fmt: skip
            return AttemptJob(tag=record.tag, folder=folder, job=job)

        def measure(cell, record, folder):
            return replace(record, state=DONE, step_s=(float((folder / "time").read_text()),))

        work = Work(cells=cells, planned=planned, job_of=job_of, measure=measure, code_version=lambda: VERSION)
        return Runner(Attempts(tmp_path / "study"), work, executor_for(settings), say=said.append)

    said = []
    make.said = said
    return make


def num_jobs(scheduler):
    return len(list((scheduler / "jobs").glob("*.json")))


def states(runner):
    return [record.state for record in runner.attempts.read()]


def test_a_campaign_runs_to_its_end(make_runner, scheduler):
    runner = make_runner()
    runner.run()
    found = runner.attempts.read()
    assert [(record.state, record.step_s) for record in found] == [(DONE, (0.25,))] * 2
    assert len({record.job_id for record in found}) == num_jobs(scheduler) == 2
    assert all(record.started_at and record.ended_at for record in found)
    make_runner().run()
    assert num_jobs(scheduler) == 2, "nothing that is done is done again"


def test_jobs_of_a_runner_that_was_killed_before_it_noted_them_are_found_by_name(make_runner, scheduler):
    def run_and_die():
        runner = make_runner()
        submit = runner.executor.submit

        def submit_and_die(attempts):
            submit(attempts)
            os._exit(9)

        object.__setattr__(runner.executor, "submit", submit_and_die)
        runner.run()

    if not (process := os.fork()):
        run_and_die()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    second = make_runner()
    assert states(second) == [PLANNED, PLANNED]
    second.run()
    assert states(second) == [DONE, DONE]
    assert num_jobs(scheduler) == 2, "adopted, not submitted again"


def test_what_a_person_cancels_is_recorded_and_tried_again(make_runner, tmp_path):
    waits = f'until [ -e "{tmp_path}/go" ]; do touch started; sleep 0.02; done; echo 0.25 > time'
    runner = make_runner(waits)
    while len(list(runner.attempts.folder.glob("attempts/*/started"))) < 2:
        runner.run_once()
    cancelled = runner.attempts.open()
    runner.executor.cancel([record.job_id for record in cancelled])
    (tmp_path / "go").touch()
    runner.run()
    ends = {record.tag: record for record in runner.attempts.read()}
    assert all(ends[record.tag].state == FAILED for record in cancelled)
    assert sorted(states(runner)) == [DONE, DONE, FAILED, FAILED]


def test_a_silent_scheduler_is_waited_for(make_runner, scheduler):
    runner = make_runner()
    (scheduler / "down").touch()
    runner.run_once()
    assert states(runner) in ([PLANNED, PLANNED], [])
    assert "gives no answer" in make_runner.said[0]
    (scheduler / "down").unlink()
    runner.run()
    assert states(runner) == [DONE, DONE]
    assert any("answers again" in line for line in make_runner.said)
