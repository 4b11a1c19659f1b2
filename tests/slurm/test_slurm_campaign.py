"""Whole campaigns by the runner on a real Slurm: arrays, everything that goes wrong with jobs, a runner killed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from slurm_attempts import new_attempt, wait_begun, wait_ended
from slurm_campaign import GOOD, LONG, measured, small_runner, small_study, start_runner
from slurm_cluster import Cluster, slurm

from janus.cli.main import main
from scaling_studies.executors.slurm import SlurmExecutor
from scaling_studies.records import DONE, FAILED, OOM, RUNNING, TIMEOUT, Record
from tests.host_machine import write_host

pytestmark = pytest.mark.slurm


def test_a_campaign_with_arrays_runs_every_attempt_once(cluster, tmp_path):
    def program(record: Record) -> str:
        return "exit 3" if record.ranks == 2 and record.attempt == 1 else GOOD

    standing = small_runner(tmp_path, small_study(), program, arrays=True).run()
    assert (standing.good, standing.wanted) == (6, 6)
    records = measured(tmp_path)
    assert Counter((record.ranks, record.state) for record in records) == {(1, DONE): 3, (2, DONE): 3, (2, FAILED): 1}
    (failed,) = [record for record in records if record.state == FAILED]
    assert failed.reason.startswith("exit code 3")
    assert sum("_" in record.job_id for record in records) == 6  # the one tried again was a job of its own
    assert len({record.job_id for record in records}) == len(records)
    for record in records:
        assert record.submitted_at <= record.started_at <= record.ended_at
        if record.state == DONE:
            assert len((tmp_path / "attempts" / record.tag / "ran").read_text().split()) == record.ranks


def preempt(cluster: Cluster, folder: Path, record: Record) -> None:
    executor = SlurmExecutor()
    urgent = new_attempt(executor, folder / "others", "urgent", "sleep 1", ranks=4, nodes=4, queue="urgent")
    wait_ended(cluster, executor, list(executor.submit([urgent]).values()))


def fail_node(cluster: Cluster, folder: Path, record: Record) -> None:
    cluster.fail_node(SlurmExecutor().poll([record.job_id])[record.job_id].nodes)


def cancel(cluster: Cluster, folder: Path, record: Record) -> None:
    slurm("scancel", record.job_id)


def wait(cluster: Cluster, folder: Path, record: Record) -> None:
    """Nothing is done to it: it ends by itself."""


@pytest.mark.parametrize(
    ("trouble", "program", "directives", "state", "reason"),
    [
        (preempt, LONG, (), FAILED, "preempted"),
        (fail_node, LONG, (), FAILED, "a node failed"),
        (cancel, LONG, (), FAILED, "cancelled"),
        (wait, "touch at_work; head -c 400M /dev/zero | tail | sleep 60", ("--mem=200M",), OOM, "137"),
        (wait, LONG, ("--time=1",), TIMEOUT, "time limit of the job"),
    ],
    ids=["preemption", "node-failure", "cancelled", "memory", "time-limit"],
)
def test_what_goes_wrong_is_told_apart_and_tried_again(cluster, tmp_path, trouble, program, directives, state, reason):
    def first_one_fails(record: Record) -> str:
        return program if record.attempt == 1 else GOOD

    study = small_study(ranks=(1,), repeats=1)
    runner = start_runner(tmp_path, study, first_one_fails, directives=directives)
    try:
        cluster.wait_for("an attempt at work", lambda: states(tmp_path) == [RUNNING] and at_work(tmp_path) == 1)
        trouble(cluster, tmp_path, measured(tmp_path)[0])
        runner.join(timeout=150)
        assert runner.exitcode == 0
    finally:
        runner.kill()
    first, second = measured(tmp_path)
    assert (first.state, second.state) == (state, DONE)
    assert reason in first.reason


@pytest.mark.parametrize("arrays", [False, True], ids=["jobs", "array"])
def test_a_killed_runner_loses_nothing_and_repeats_nothing(cluster, tmp_path, arrays):
    def waits_for_us(record: Record) -> str:
        return f"touch at_work; until [ -e ../go_on ]; do sleep 0.2; done; {GOOD}"

    study = small_study(ranks=(1,), repeats=4)
    runner = start_runner(tmp_path, study, waits_for_us, arrays=arrays)
    cluster.wait_for("attempts at work", lambda: at_work(tmp_path) == 4)
    runner.kill()
    runner.join()
    before = {record.tag: record.job_id for record in measured(tmp_path)}
    runner = start_runner(tmp_path, study, waits_for_us, arrays=arrays)
    cluster.wait_for("the runner to see them", lambda: states(tmp_path) == [RUNNING] * 4)
    runner.kill()
    runner.join()
    (tmp_path / "attempts" / "go_on").touch()
    standing = small_runner(tmp_path, study, waits_for_us, arrays=arrays).run()
    assert (standing.good, standing.wanted) == (4, 4)
    assert {record.tag: record.job_id for record in measured(tmp_path) if record.state == DONE} == before
    assert all((tmp_path / "attempts" / tag / "ran").read_text() == "0\n" for tag in before)


def test_a_runner_killed_before_it_noted_the_jobs_finds_them_by_name(cluster, tmp_path):
    """The job ids are wiped from the records, as if the runner had died between sbatch and the note. Slurm remembers
    the first campaign when the second, whose attempts have the same tags, looks for its own jobs."""
    study = small_study(ranks=(1, 2), repeats=2)
    for arrays in (False, True):
        folder = tmp_path / str(arrays)
        runner = start_runner(folder, study, lambda record: f"touch at_work; sleep 3; {GOOD}", arrays=arrays)
        cluster.wait_for("submitted attempts", lambda place=folder: len(submitted(place)) == 4)
        runner.kill()
        runner.join()
        before = {record.tag: record.job_id for record in measured(folder)}
        for path in (folder / "records").glob("*.json"):
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "state": "PLANNED", "job_id": "", "started_at": None}))
        assert small_runner(folder, study, arrays=arrays).run().good == 4
        assert {record.tag: record.job_id for record in measured(folder)} == before


def test_status_says_why_a_job_waits(cluster, tmp_path, capsys):
    executor = SlurmExecutor()
    wait_begun(cluster, executor, new_attempt(executor, tmp_path / "others", "all", LONG, ranks=4, nodes=4))
    small_runner(tmp_path, small_study(ranks=(1,), repeats=1)).run_once()
    (record,) = measured(tmp_path)
    cluster.wait_for("a reason", lambda: executor.poll([record.job_id])[record.job_id].reason)
    assert main(["study", "status", str(tmp_path), "--json"]) == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    assert [(entry["job_id"], entry["scheduler"]) for entry in point["in_flight"]] == [
        (record.job_id, "queued Resources")
    ]


def test_a_silent_controller_is_waited_for(cluster, tmp_path):
    heard: list[str] = []
    study = small_study(ranks=(1,), repeats=2)

    def program(record: Record) -> str:
        return f"touch at_work; until [ -e ../go_on ]; do sleep 0.2; done; {GOOD}"

    runner = small_runner(tmp_path, study, program, say=heard.append)
    runner.run_once()
    cluster.wait_for("attempts at work", lambda: at_work(tmp_path) == 2)
    cluster.stop_controller()
    try:
        runner.run_once()
        runner.run_once()
    finally:
        cluster.start_controller()
    (tmp_path / "attempts" / "go_on").touch()
    assert runner.run().good == 2
    assert [text for text in heard if "gives no answer" in text and "nothing is concluded" in text]
    assert len(measured(tmp_path)) == 2


def test_the_real_trainer_on_two_ranks_by_srun(cluster, tmp_path, capsys):
    (tmp_path / "study.toml").write_text(
        '[[study]]\nname = "weak"\nquestion = "Does it run?"\nmode = "weak"\nranks = [1, 2]\nstructures_per_rank = 1\n'
        "repeats = 1\nwarm_up_steps = 1\nsteps = 2\ntime_out_s = 200\n"
        '[executor]\nkind = "slurm"\nranks_per_node = 2\narrays = true\npoll_s = 1.0\n'
        'setup = ["export MASTER_ADDR=127.0.0.1"]\n'  # the made-up names of the nodes have no address
    )
    assert main(["data", "make", "--out", str(tmp_path / "few.store"), "--count", "6", "--max-atoms", "8"]) == 0
    host = write_host(tmp_path / "host.toml")
    words = ["study", "run", "--config", str(tmp_path / "study.toml"), "--data", str(tmp_path / "few.store"),
             "--out", str(tmp_path / "out"), "--machine", str(host)]  # fmt: skip
    assert main(words) == 0
    records = [record for record in measured(tmp_path / "out") if record.state == DONE]
    assert sorted(record.ranks for record in records) == [1, 2]
    for record in records:
        assert len(record.step_s) == 2
        assert record.provenance["job_id"] == record.job_id
        assert record.provenance["node_list"].startswith("n")


def states(folder: Path) -> list[str]:
    return [record.state for record in measured(folder)]


def submitted(folder: Path) -> list[Record]:
    return [record for record in measured(folder) if record.job_id]


def at_work(folder: Path) -> int:
    """How many attempts have a program at work."""
    return len(list(folder.glob("attempts/*/at_work")))
