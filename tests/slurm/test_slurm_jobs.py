"""The Slurm executor on a real Slurm: what it submits runs, and every way in which a job can end is told apart."""

from __future__ import annotations

import pytest
from slurm_attempts import facts, new_attempt, submit, wait_begun, wait_ended
from slurm_cluster import slurm

from scaling_studies.executors.base import ENDED, QUEUED, UNKNOWN, SchedulerSilentError, SubmitError
from scaling_studies.executors.slurm import SlurmExecutor
from scaling_studies.outcomes import NO_MEMORY
from scaling_studies.records import DONE, FAILED, TIMEOUT

pytestmark = pytest.mark.slurm
LONG = "touch at_work; sleep 300"


def test_ranks_run_on_their_nodes_and_the_folder_tells_all(cluster, tmp_path):
    executor = SlurmExecutor(setup=("export SITE=here",))
    attempt = new_attempt(
        executor, tmp_path, "pair", "echo rank $SLURM_PROCID on $SLURMD_NODENAME, $SITE", ranks=2, nodes=2
    )
    (job_id,) = submit(executor, attempt)
    (status,) = wait_ended(cluster, executor, [job_id])
    assert (status.outcome, status.reason, status.nodes) == (DONE, "", "n[1-2]")
    log = attempt.log.read_text()
    assert "rank 0 on n1, here" in log
    assert "rank 1 on n2, here" in log
    assert facts(attempt, "begin")["job_id"] == job_id
    assert facts(attempt, "end")["exit_code"] == 0


def test_attempts_of_equal_shape_become_one_array(cluster, tmp_path):
    executor = SlurmExecutor(arrays=True)
    attempts = [new_attempt(executor, tmp_path, f"one-attempt{n:02d}", f"echo member {n}; exit {n}") for n in range(3)]
    attempts.insert(1, new_attempt(executor, tmp_path, "two", "echo alone", ranks=2, nodes=2))
    taken = executor.submit(attempts)
    array = taken["one-attempt00"].partition("_")[0]
    assert [taken[f"one-attempt{n:02d}"] for n in range(3)] == [f"{array}_{n}" for n in range(3)]
    assert "_" not in taken["two"]
    assert executor.find([*taken, "no-such-attempt"]) == taken
    ended = dict(zip(taken, wait_ended(cluster, executor, list(taken.values())), strict=True))
    assert [ended[f"one-attempt{n:02d}"].outcome for n in range(3)] == [DONE, FAILED, FAILED]
    assert ended["one-attempt02"].reason == "exit code 2"
    assert executor.find(list(taken)) == taken
    for number in range(3):
        attempt = next(attempt for attempt in attempts if attempt.tag == f"one-attempt{number:02d}")
        assert f"member {number}\n" in attempt.log.read_text()
        assert facts(attempt, "end")["exit_code"] == number
        assert facts(attempt, "begin")["job_id"] == taken[attempt.tag]


def test_a_script_that_is_killed_names_the_signal(cluster, tmp_path):
    executor = SlurmExecutor()
    attempt = new_attempt(executor, tmp_path, "killed", LONG)
    (job_id,) = wait_begun(cluster, executor, attempt)
    slurm("scancel", "--batch", "--signal=KILL", job_id)
    (status,) = wait_ended(cluster, executor, [job_id])
    assert (status.outcome, status.reason) == (FAILED, "the job's script was ended by signal 9")
    assert not (attempt.folder / "end.json").exists()


def test_a_preempted_job_ends_and_is_not_started_again(cluster, tmp_path):
    executor = SlurmExecutor(arrays=True)
    attempts = [new_attempt(executor, tmp_path, f"low-{n}", LONG) for n in range(4)]
    low = wait_begun(cluster, executor, *attempts)
    high = submit(executor, new_attempt(executor, tmp_path, "high", "true", ranks=2, nodes=2, queue="urgent"))
    assert wait_ended(cluster, executor, high)[0].outcome == DONE
    preempted = [n for n, job_id in enumerate(low) if executor.poll([job_id])[job_id].state == ENDED]
    assert len(preempted) == 2
    for number in preempted:
        status = executor.poll(low)[low[number]]
        assert (status.outcome, status.reason) == (FAILED, "preempted")
        assert "DUE TO PREEMPTION" in attempts[number].log.read_text()
        assert facts(attempts[number], "end")["exit_code"] != 0


def test_a_failed_node_ends_its_job_alone(cluster, tmp_path):
    executor = SlurmExecutor()
    attempts = [new_attempt(executor, tmp_path, f"job-{n}", LONG) for n in range(2)]
    job_ids = wait_begun(cluster, executor, *attempts)
    node = executor.poll(job_ids)[job_ids[0]].nodes
    cluster.fail_node(node)
    (status,) = wait_ended(cluster, executor, job_ids[:1])
    assert (status.outcome, status.reason, status.nodes) == (FAILED, "a node failed", node)
    assert executor.poll(job_ids)[job_ids[1]].state == "running"
    assert not (attempts[0].folder / "end.json").exists()


def test_a_job_ended_by_a_person_waiting_or_running(cluster, tmp_path):
    executor = SlurmExecutor()
    running = wait_begun(cluster, executor, new_attempt(executor, tmp_path, "all", LONG, ranks=4, nodes=4))
    waiting = submit(executor, new_attempt(executor, tmp_path, "next", LONG))
    cluster.wait_for("a reason", lambda: executor.poll(waiting)[waiting[0]].reason == "Resources")
    assert executor.poll(waiting)[waiting[0]].state == QUEUED
    slurm("scancel", *waiting, *running)
    for status in wait_ended(cluster, executor, [*waiting, *running]):
        assert (status.outcome, status.reason) == (FAILED, "cancelled")


def test_cancel_ends_jobs_and_leaves_ended_ones_alone(cluster, tmp_path):
    executor = SlurmExecutor(arrays=True)
    attempts = [new_attempt(executor, tmp_path, f"member-{n}", LONG) for n in range(2)]
    job_ids = wait_begun(cluster, executor, *attempts)
    executor.cancel(job_ids[:1])
    wait_ended(cluster, executor, job_ids[:1])
    assert executor.poll(job_ids)[job_ids[1]].state == "running"
    executor.cancel([*job_ids, "987654"])
    wait_ended(cluster, executor, job_ids)
    executor.cancel(job_ids)
    executor.cancel([])


def test_a_step_ended_for_its_memory(cluster, tmp_path):
    executor = SlurmExecutor(directives=("--mem=200M",))
    attempt = new_attempt(executor, tmp_path, "hungry", "head -c 400M /dev/zero | tail | sleep 60")
    (status,) = wait_ended(cluster, executor, submit(executor, attempt))
    # without cgroups Slurm kills the step and calls the job FAILED; the log tells, which the runner reads
    assert (status.outcome, status.reason) == (FAILED, "exit code 137")
    assert NO_MEMORY.search(attempt.log.read_text())


def test_time_limit(cluster, tmp_path):
    executor = SlurmExecutor(directives=("--time=1",))  # Slurm counts in minutes and looks twice a minute
    attempt = new_attempt(executor, tmp_path, "endless", LONG)
    (status,) = wait_ended(cluster, executor, submit(executor, attempt), patience_s=150)
    assert (status.outcome, status.reason) == (TIMEOUT, "time limit of the job")
    assert "DUE TO TIME LIMIT" in attempt.log.read_text()
    assert facts(attempt, "end")["exit_code"] == 143


def test_a_silent_controller_tells_nothing_and_jobs_go_on(cluster, tmp_path):
    executor = SlurmExecutor()
    attempt = new_attempt(
        executor, tmp_path, "steady", "touch at_work; until [ -e go_on ]; do sleep 0.2; done; echo done"
    )
    other = new_attempt(executor, tmp_path, "other", "true")
    job_ids = wait_begun(cluster, executor, attempt)
    cluster.stop_controller()
    try:
        asks = (lambda: executor.poll(job_ids), lambda: executor.find(["steady"]), lambda: executor.submit([other]))
        for ask in (*asks, lambda: executor.cancel(job_ids)):
            with pytest.raises(SchedulerSilentError, match="contact"):
                ask()
    finally:
        cluster.start_controller()
    assert executor.find(["steady", "other"]) == {"steady": job_ids[0]}
    (attempt.folder / "go_on").touch()
    assert wait_ended(cluster, executor, job_ids)[0].outcome == DONE
    assert "done" in attempt.log.read_text()


def test_refusals_say_why_and_keep_what_was_taken(cluster, tmp_path):
    executor = SlurmExecutor()
    good = new_attempt(executor, tmp_path, "good", "true")
    bad = new_attempt(executor, tmp_path, "bad", "true", queue="no-such-queue")
    with pytest.raises(SubmitError, match="Invalid partition name"):
        executor.submit([bad, good])
    assert executor.find(["good", "bad"]) == {}
    taken = executor.submit([good, bad])
    assert list(taken) == ["good"]
    assert wait_ended(cluster, executor, [taken["good"]])[0].outcome == DONE


def test_a_job_submitted_twice_runs_once(cluster, tmp_path):
    executor = SlurmExecutor()
    attempt = new_attempt(executor, tmp_path, "once", "echo at work; sleep 1")
    (first,) = submit(executor, attempt)
    (second,) = submit(executor, attempt)
    assert executor.find(["once"]) == {"once": first}
    outcomes = [status.outcome for status in wait_ended(cluster, executor, [first, second])]
    assert sorted(outcomes) == [DONE, FAILED]
    assert attempt.log.read_text().count("at work") == 1
    assert facts(attempt, "end")["exit_code"] == 0


def test_what_slurm_has_forgotten_is_unknown(cluster, tmp_path):
    executor = SlurmExecutor(arrays=True)
    attempts = [new_attempt(executor, tmp_path, f"short-{n}", "true") for n in range(2)]
    job_ids = submit(executor, *attempts)
    wait_ended(cluster, executor, job_ids)

    def forgotten() -> bool:
        return all(status.state == UNKNOWN for status in executor.poll(job_ids).values())

    cluster.wait_for("Slurm to forget", forgotten, patience_s=120)  # it cleans up once a minute at the latest
    assert executor.poll(job_ids[:1])[job_ids[0]].state == UNKNOWN
    assert executor.find([attempt.tag for attempt in attempts]) == {}
    assert all(facts(attempt, "end")["exit_code"] == 0 for attempt in attempts)
