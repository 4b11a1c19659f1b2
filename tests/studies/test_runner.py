"""The runner with a small scheduler: nothing is lost, nothing is done twice, whatever happens to whom."""

import dataclasses
import os
import random
import resource
import signal
import time

import pytest

from janus.errors import UserError
from scaling_studies.attempts import Attempts
from scaling_studies.cells import resolve_cells
from scaling_studies.executors.base import SubmitError
from scaling_studies.records import DONE, FAILED, OOM, PLANNED, RUNNING, SUBMITTED
from scaling_studies.runner import Runner
from tests.studies.file_scheduler import GOOD, FileScheduler, work_for
from tests.study_cases import data, weak

CELLS = resolve_cells(weak(), data())  # two points, two repeats each
REPEATS = 4


class Campaign:
    """A study folder, its scheduler, and runners on them that keep what they say."""

    def __init__(self, folder, cells=CELLS, program=lambda record: GOOD, max_in_flight=1):
        self.scheduler = FileScheduler(folder / "scheduler", max_in_flight=max_in_flight)
        self.attempts, self.cells, self.program, self.said = Attempts(folder / "study"), cells, program, []

    def runner(self, **changes):
        work = dataclasses.replace(work_for(self.cells, self.program), **changes)
        return Runner(Attempts(self.attempts.folder), work, self.scheduler, say=self.said.append)

    def states(self):
        return sorted(record.state for record in self.attempts.read())

    def wait(self, states):
        """Passes of one runner until the attempts are in these states."""
        runner, end = self.runner(), time.monotonic() + 20
        while self.states() != sorted(states):
            assert time.monotonic() < end, (self.states(), self.said)
            runner.run_once()
            time.sleep(0.02)
        return runner


@pytest.fixture
def campaign(tmp_path):
    return Campaign(tmp_path)


def test_a_campaign_runs_to_its_end(campaign):
    standing = campaign.runner().run()
    assert standing.is_complete
    records = campaign.attempts.read()
    assert [record.state for record in records] == [DONE] * REPEATS
    assert sorted((record.cell_id, record.repeat) for record in records) == sorted(
        (cell.id, repeat) for cell in CELLS for repeat in (0, 1)
    )
    assert all(record.job_id and record.submitted_at and record.started_at and record.ended_at for record in records)
    assert campaign.said == []
    campaign.runner().run()
    assert len(campaign.scheduler.tags()) == REPEATS  # a second run starts nothing


def test_attempts_in_flight_are_never_more_than_allowed(tmp_path):
    campaign = Campaign(tmp_path, program=lambda record: "sleep 0.1;" + GOOD, max_in_flight=3)
    runner = campaign.runner()
    assert runner._one_pass().waiting == 3
    assert len(campaign.scheduler.tags()) == 3
    assert runner.run().is_complete


def test_a_failure_is_recorded_with_the_last_words_and_tried_again(tmp_path):
    campaign = Campaign(
        tmp_path, program=lambda record: "echo no such structure; exit 3" if record.attempt == 1 else GOOD
    )
    assert campaign.runner().run().is_complete
    failed = [record for record in campaign.attempts.read() if record.state == FAILED]
    assert {record.reason for record in failed} == {"exit code 3: no such structure"}
    assert len(failed) == len(CELLS)
    assert campaign.states().count(DONE) == REPEATS


def test_a_point_that_fails_too_often_is_left_alone_and_the_others_go_on(tmp_path):
    broken = CELLS[0].id
    campaign = Campaign(tmp_path, program=lambda record: "exit 3" if record.cell_id == broken else GOOD)
    standing = campaign.runner().run()
    assert not standing.is_complete
    assert standing.given_up == (broken,)
    assert campaign.states() == sorted([DONE] * 2 + [FAILED] * CELLS[0].study.max_failures)
    assert any("left alone after 3 failures" in line for line in campaign.said)
    campaign.program = lambda record: GOOD
    assert campaign.runner().run().is_complete  # a new call tries again


def test_passes_from_cron_count_failures_on_record(tmp_path):
    campaign = Campaign(tmp_path, program=lambda record: "exit 3")
    campaign.wait([FAILED] * len(CELLS) * CELLS[0].study.max_failures)
    for _ in range(5):
        campaign.said.clear()
        campaign.runner().run_once()
    assert campaign.states() == [FAILED] * len(CELLS) * CELLS[0].study.max_failures
    assert len(campaign.said) == len(CELLS)  # each pass says why nothing happens, and what would help
    assert all("left alone after 3 failures in a row; a new call of 'run'" in line for line in campaign.said)


def test_passes_from_cron_finish_a_campaign(campaign):
    end = time.monotonic() + 20
    while not campaign.runner().run_once().is_complete:
        assert time.monotonic() < end
    assert campaign.states() == [DONE] * REPEATS


def test_preemption_is_not_the_points_fault(tmp_path):
    campaign = Campaign(tmp_path, cells=CELLS[:1], program=lambda record: "kill -9 $$" if record.attempt < 6 else GOOD)
    campaign.scheduler.poll = preempting(campaign.scheduler.poll)
    assert campaign.runner().run().is_complete
    reasons = [record.reason for record in campaign.attempts.read() if record.state == FAILED]
    assert len(reasons) == 5
    assert all(reason.startswith("preempted") for reason in reasons)


def test_a_machine_that_fails_again_and_again_is_left_alone_at_a_limit_of_its_own(tmp_path):
    cells = resolve_cells(weak(ranks=(1,), max_failures=2, max_machine_faults=4), data())
    campaign = Campaign(tmp_path, cells=cells, program=lambda record: "kill -9 $$")
    campaign.scheduler.poll = preempting(campaign.scheduler.poll)
    assert campaign.runner().run().given_up == (cells[0].id,)
    assert campaign.states() == [FAILED] * 4
    (line,) = [line for line in campaign.said if "left alone" in line]
    assert "at ranks = 1: left alone after 4 faults of the machine ('janus study show' names the hosts)" in line
    campaign.runner().run_once()
    assert campaign.states() == [FAILED] * 4  # a pass from cron counts those on record


def preempting(poll):
    """A scheduler that says of every ended job that it was preempted."""

    def told(job_ids):
        return {
            job_id: dataclasses.replace(status, outcome=FAILED, reason="preempted")
            if status.state == "ended"
            else status
            for job_id, status in poll(job_ids).items()
        }

    return told


def test_the_memory_killer_is_named(tmp_path):
    campaign = Campaign(tmp_path, cells=CELLS[:1], program=lambda record: "kill -9 $$")
    campaign.runner().run()
    assert set(campaign.states()) == {OOM}
    assert "exit code 137" in campaign.attempts.read()[0].reason


# Jobs that vanish and schedulers that say nothing


def test_a_lost_job_is_recorded_after_two_polls_and_tried_again(tmp_path):
    campaign = Campaign(tmp_path, program=lambda record: "sleep 60" if record.attempt == 1 else GOOD)
    campaign.wait([RUNNING])
    (record,) = campaign.attempts.open()
    (campaign.scheduler.folder / record.job_id).unlink()  # the scheduler forgets it
    os.killpg(int(record.job_id), signal.SIGKILL)
    runner = campaign.runner()
    runner._one_pass()
    assert campaign.states() == [RUNNING]  # once may be an accident
    runner._one_pass()
    lost = campaign.attempts.read()[0]
    assert lost.state == FAILED
    assert "job lost: filed does not know it any more, it had begun and left no end" in lost.reason


def test_a_forgotten_job_that_wrote_its_end_counts(campaign):
    campaign.wait([SUBMITTED])
    (record,) = campaign.attempts.open()
    end = campaign.attempts.folder_of(record) / "end.json"
    while not end.exists():
        time.sleep(0.02)
    (campaign.scheduler.folder / record.job_id).unlink()
    campaign.runner()._one_pass()
    assert campaign.states() == sorted([DONE, SUBMITTED])


def test_a_silent_scheduler_concludes_nothing(campaign):
    runner = campaign.wait([SUBMITTED])
    time.sleep(0.2)
    campaign.scheduler.is_silent = True
    for _ in range(5):
        runner._one_pass()
    assert campaign.states() == [SUBMITTED]
    assert [line for line in campaign.said if "gives no answer (controller is down)" in line] == campaign.said
    assert len(campaign.said) == 1
    campaign.scheduler.is_silent = False
    assert runner.run().is_complete
    assert "filed answers again" in campaign.said
    assert campaign.states() == [DONE] * REPEATS


def test_a_job_killed_from_outside_leaves_its_reason(tmp_path):
    campaign = Campaign(tmp_path, cells=CELLS[:1], program=lambda r: "sleep 60" if r.attempt == 1 else GOOD)
    campaign.wait([RUNNING])
    os.killpg(int(campaign.attempts.open()[0].job_id), signal.SIGKILL)
    assert campaign.runner().run().is_complete
    first = campaign.attempts.read()[0]
    assert first.state == FAILED
    assert first.reason.startswith("job lost: it was killed, it had begun and left no end")


# Submission


def test_a_queue_that_takes_nothing_is_an_error_after_three_times(campaign):
    refusals = []

    def submit(attempts):
        refusals.append(attempts)
        raise SubmitError("sbatch: error: Invalid account")

    def refused():
        with pytest.raises(UserError, match=r"Invalid account.*3 times in a row, nothing is in flight"):
            campaign.runner().run()
        assert len(refusals) == 3

    campaign.scheduler.submit = submit
    assert os.waitpid(in_child(refused), 0)[1] == 0
    assert campaign.states() == [PLANNED]
    del campaign.scheduler.submit
    assert campaign.runner().run().is_complete  # the attempt that was planned is used
    assert campaign.states() == [DONE] * REPEATS


def test_a_full_queue_is_waited_for(tmp_path):
    campaign = Campaign(tmp_path, program=lambda record: "sleep 0.2;" + GOOD, max_in_flight=4)
    submit = campaign.scheduler.submit
    campaign.scheduler.submit = lambda attempts: submit(attempts[:1])  # takes one, leaves the others
    runner = campaign.runner()
    runner._one_pass()
    assert campaign.states() == sorted([PLANNED] * 3 + [SUBMITTED])

    def full(attempts):
        raise SubmitError("QOSMaxSubmitJobPerUserLimit")

    campaign.scheduler.submit = full
    for _ in range(5):
        runner._one_pass()
    campaign.scheduler.submit = submit
    assert runner.run().is_complete
    assert campaign.states() == [DONE] * REPEATS
    assert campaign.said == ["QOSMaxSubmitJobPerUserLimit"]


def test_changed_code_stops_the_campaign_by_name(campaign):
    with pytest.raises(UserError, match=r"study w at ranks = 1 is of code  and the code is 0\.2\.0 by now"):
        campaign.runner(code_version=lambda: "0.2.0").run()
    assert campaign.attempts.read() == ()


def test_a_spent_budget_ends_the_campaign_and_says_so(tmp_path):
    study = weak(ranks=(1,), repeats=6, node_hours=0.05, time_out_s=60.0)
    campaign = Campaign(tmp_path, resolve_cells(study, data()), lambda record: "sleep 0.1;" + GOOD)
    measure = work_for(campaign.cells).measure

    def long_one(cell, record, folder):
        return dataclasses.replace(measure(cell, record, folder), started_at="2026-11-20T10:00:00+00:00",
                                   ended_at="2026-11-20T10:01:00+00:00")  # fmt: skip

    standing = campaign.runner(measure=long_one).run()
    assert not standing.is_complete
    assert standing.exhausted == ("w",)
    assert campaign.states() == [DONE] * 3  # a minute each of 0.05 hours
    assert campaign.said == ["study w: its budget of node-hours allows no further attempt"]


# Files


def test_a_truncated_record_is_named_and_the_campaign_completed_without_it(campaign):
    campaign.runner().run()
    victim = campaign.attempts.read()[0]
    path = campaign.attempts.record_folder / victim.file_name
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert campaign.runner().run().is_complete
    assert len(campaign.scheduler.tags()) == REPEATS + 1
    assert path.read_text() == text[: len(text) // 2]
    (line,) = campaign.said
    assert victim.file_name in line
    assert "does not count" in line


class FullDisk(Attempts):
    """Attempts on a disk that is full when the first final record is written: the system refuses to write on."""

    is_full = True

    def replace(self, record):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if record.state == DONE and self.is_full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        try:
            return super().replace(record)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_and_loses_nothing(campaign):
    def stopped():
        attempts = FullDisk(campaign.attempts.folder)
        runner = Runner(attempts, work_for(CELLS), campaign.scheduler, say=campaign.said.append)
        with pytest.raises(UserError, match=r"cannot write .*attempt01.json .*: free space"):
            runner.run()
        assert campaign.said == ["1 job in flight: the same command takes them up again"]

    assert os.waitpid(in_child(stopped), 0)[1] == 0
    assert campaign.states() in ([RUNNING], [SUBMITTED])
    assert campaign.runner().run().is_complete
    assert campaign.states() == [DONE] * REPEATS
    assert len(campaign.scheduler.tags()) == REPEATS


# Points that the declaration has dropped


def test_jobs_at_a_dropped_point_are_ended_and_what_they_were_is_kept(tmp_path):
    both = Campaign(tmp_path, program=lambda record: "sleep 60" if record.ranks == 2 else GOOD, max_in_flight=4)
    both.wait([DONE, DONE, RUNNING, RUNNING])
    fewer = Campaign(tmp_path, cells=CELLS[:1])
    began = time.monotonic()
    assert fewer.runner().run().is_complete
    assert time.monotonic() - began < 30
    assert fewer.states() == [DONE, DONE, FAILED, FAILED]
    assert len(fewer.scheduler.tags()) == REPEATS  # nothing was started for it
    reasons = {record.reason for record in fewer.attempts.read() if record.state == FAILED}
    assert all(reason.startswith("withdrawn, its point was no longer declared: ") for reason in reasons)
    again = Campaign(tmp_path)
    assert again.runner().run().is_complete  # declared again: good attempts count, withdrawn ones are no failures
    assert again.states() == [DONE] * 4 + [FAILED] * 2


def test_an_attempt_at_a_dropped_point_that_no_scheduler_took_is_closed(tmp_path):
    both = Campaign(tmp_path, cells=CELLS[1:])
    both.scheduler.submit = lambda attempts: {}
    assert os.waitpid(in_child(lambda: both.runner()._one_pass()), 0)[1] == 0
    assert both.states() == [PLANNED]
    fewer = Campaign(tmp_path, cells=CELLS[:1])
    assert fewer.runner().run_once().waiting == 1
    (closed,) = [record for record in fewer.attempts.read() if record.state == FAILED]
    assert "withdrawn" in closed.reason
    assert "it was never submitted" in closed.reason


def test_a_silent_scheduler_ends_no_job_of_a_dropped_point(tmp_path):
    both = Campaign(tmp_path, program=lambda record: "sleep 60", max_in_flight=4)
    both.wait([RUNNING] * 4)
    fewer = Campaign(tmp_path, cells=CELLS[:1])
    fewer.scheduler.is_silent = True
    fewer.runner().run_once()
    assert fewer.states() == [RUNNING] * 4
    both.scheduler.cancel([record.job_id for record in both.attempts.open()])


# Two runners


def test_two_runners_in_turns_do_nothing_twice(tmp_path):
    campaign = Campaign(tmp_path, max_in_flight=2)
    first, second = campaign.runner(), campaign.runner()
    end = time.monotonic() + 20
    while not (first._one_pass().is_complete and second._one_pass().is_complete):
        assert time.monotonic() < end
    assert campaign.states() == [DONE] * REPEATS
    assert sorted(campaign.scheduler.tags()) == sorted(record.tag for record in campaign.attempts.read())


def test_two_runner_processes_without_a_lease_do_nothing_twice(tmp_path):
    campaign = Campaign(tmp_path, max_in_flight=2)
    children = [in_child(lambda: campaign.runner().run()) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert campaign.states() == [DONE] * REPEATS
    assert sorted(campaign.scheduler.tags()) == sorted(record.tag for record in campaign.attempts.read())


def in_child(function) -> int:
    """Run a function in a forked process that exits with 0 when it returned. Returns the process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return child


# A runner that is killed


class Killed(Attempts):
    """Attempts whose process is killed at a point of an attempt's life, the second time it gets there."""

    point, times = "", 0

    def at(self, point):
        if point == self.point:
            self.times += 1
            if self.times == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    def claim(self, record):
        self.at("before the claim")
        claimed = super().claim(record)
        self.at("after the claim")
        return claimed

    def replace(self, record):
        self.at(f"before {record.state}")
        written = super().replace(record)
        self.at(f"after {record.state}")
        return written


def killed_runner(campaign, point):
    """Run a campaign in a process that is killed at a point."""
    attempts = Killed(campaign.attempts.folder)
    attempts.point = point
    scheduler, submit = campaign.scheduler, campaign.scheduler.submit

    def watched(jobs):
        attempts.at("before the submission")
        taken = submit(jobs)
        attempts.at("after the submission")
        return taken

    scheduler.submit = watched
    work = work_for(CELLS, campaign.program)
    child = in_child(lambda: Runner(attempts, work, scheduler, say=campaign.said.append).run())
    status = os.waitpid(child, 0)[1]
    scheduler.submit = submit
    return status


POINTS = (
    "before the claim", "after the claim", "before the submission", "after the submission", "before SUBMITTED",
    "after SUBMITTED", "before RUNNING", "after RUNNING", "before DONE", "after DONE",
)  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_and_started_again_nothing_is_lost_and_nothing_done_twice(tmp_path, point):
    campaign = Campaign(tmp_path, program=lambda record: "sleep 0.03;" + GOOD)
    assert killed_runner(campaign, point) == signal.SIGKILL
    assert campaign.states().count(DONE) < REPEATS
    assert campaign.runner().run().is_complete
    assert campaign.states() == [DONE] * REPEATS
    assert sorted(campaign.scheduler.tags()) == sorted(record.tag for record in campaign.attempts.read())


def test_a_job_of_the_same_attempt_in_another_folder_is_not_adopted(tmp_path):
    first, second = Campaign(tmp_path / "first"), Campaign(tmp_path / "second")
    second.scheduler = first.scheduler
    assert first.runner().run().is_complete
    assert killed_runner(second, "after the claim") == signal.SIGKILL
    assert {record.tag for record in second.attempts.read()} <= {record.tag for record in first.attempts.read()}
    assert second.runner().run().is_complete
    jobs = [record.job_id for campaign in (first, second) for record in campaign.attempts.read()]
    assert len(set(jobs)) == 2 * REPEATS


def test_killed_again_and_again_it_still_ends(tmp_path):
    campaign = Campaign(tmp_path, program=lambda record: "sleep 0.05;" + GOOD)
    for point in ("after the submission", "after the claim", "before DONE"):
        killed_runner(campaign, point)
    assert campaign.runner().run().is_complete
    assert campaign.states() == [DONE] * REPEATS
    assert len(campaign.scheduler.tags()) == REPEATS


@pytest.mark.slow
def test_killed_at_any_moment_it_still_ends(tmp_path):
    """Not at chosen points but whenever: two runners at a time, both killed after a random while, sixty times."""
    cells = resolve_cells(weak(ranks=(1, 2, 4), repeats=15), data())
    campaign = Campaign(tmp_path, cells, lambda record: "echo started >> ran; sleep 0.05;" + GOOD, max_in_flight=3)
    draw = random.Random(5)
    for _ in range(60):
        children = [in_child(lambda: campaign.runner().run()) for _ in range(2)]
        time.sleep(draw.uniform(0, 0.15))
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert campaign.runner().run().is_complete
    done = [record for record in campaign.attempts.read() if record.state == DONE]
    assert len({(record.cell_id, record.repeat) for record in done}) == len(done) == 45
    starts = [path.read_text().split() for path in campaign.attempts.folder.glob("attempts/*/ran")]
    assert starts == [["started"]] * len(starts)  # none was ever started twice
    # This scheduler may forget a job that it was about to note when its caller was killed: such an attempt is lost.
    lost = [record.reason for record in campaign.attempts.read() if record.state == FAILED]
    assert len(lost) + len(done) == len(campaign.attempts.read())
    assert all("left no end" in reason for reason in lost)


def test_a_job_that_ended_while_no_runner_was_there_is_adopted_although_nobody_knows_its_id(tmp_path):
    campaign = Campaign(tmp_path)
    assert killed_runner(campaign, "after the submission") == signal.SIGKILL
    (record,) = campaign.attempts.open()
    while not (campaign.attempts.folder_of(record) / "end.json").exists():
        time.sleep(0.02)
    for path in campaign.scheduler.folder.iterdir():
        path.unlink()  # and the scheduler has forgotten it
    assert campaign.runner().run().is_complete
    assert campaign.states() == [DONE] * REPEATS
    assert len(campaign.scheduler.tags()) == REPEATS - 2  # jobs started after that


def test_the_attempt_of_a_living_runner_is_left_to_it(campaign):
    first = campaign.runner()
    campaign.scheduler.submit = lambda attempts: {}  # takes nothing and says nothing
    first._one_pass()
    assert campaign.states() == [PLANNED]
    del campaign.scheduler.submit
    campaign.runner()._one_pass()
    assert campaign.states() == [PLANNED]
    assert campaign.scheduler.tags() == []
    assert first.run().is_complete
