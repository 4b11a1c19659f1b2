"""LSF by recorded answers: all states and ends, "Please wait" before an answer, a silent cluster.

Forms of the answers: records of ``bjobs -json`` from the tests of BatchEuphoria (LSF 10.1), of buildtest and of
Balsam (Summit), the bsub line from Open OnDemand's adapter, TERM_RUNLIMIT and "is not found" from pipelite's tests,
TERM_OWNER and "Please wait" from the tests of beagle and nextflow. An answer without a line and exit code 0, and one
that leaves out a job that runs, are nextflow issues 910 and 927; hosts that are silent for a time issue 5666. Refusals:
ert issue 9185, bcbio-nextgen issue 2803, with exit code 0 Balsam pull request 34.
"""

import json

import pytest

from scaling_studies.executors.base import ENDED, QUEUED, RUNNING, UNKNOWN, JobStatus, SchedulerSilentError, SubmitError
from scaling_studies.executors.lsf import FIELDS, LsfExecutor
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT

JOB = {
    "JOBID": "22005", "JOB_NAME": "weak-ranks00002-abc-attempt01", "EXIT_CODE": "", "EXIT_REASON": "",
    "PEND_REASON": "", "EXEC_HOST": "",
}  # fmt: skip
RAN = {"EXEC_HOST": "2*tbi-cn019:2*tbi-cn020"}
IS_DOWN = (255, "", "LSF is down. Please wait ...\n")


def answer(*jobs):
    return json.dumps({"COMMAND": "bjobs", "JOBS": len(jobs), "RECORDS": [{**JOB, **job} for job in jobs]}, indent=2)


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({"STAT": "PEND", "PEND_REASON": "New job is waiting for scheduling;"},
         JobStatus(state=QUEUED, reason="New job is waiting for scheduling;")),
        ({"STAT": "PSUSP"}, JobStatus(state=QUEUED, reason="held")),
        ({"STAT": "RUN", **RAN}, JobStatus(state=RUNNING, nodes="tbi-cn019,tbi-cn020")),
        ({"STAT": "SSUSP", **RAN}, JobStatus(state=RUNNING, reason="suspended by LSF", nodes="tbi-cn019,tbi-cn020")),
        ({"STAT": "UNKWN", **RAN}, JobStatus(state=RUNNING, reason="its host is silent", nodes="tbi-cn019,tbi-cn020")),
        ({"STAT": "ZOMBI", **RAN}, JobStatus(state=RUNNING, nodes="tbi-cn019,tbi-cn020")),
        ({"STAT": "USUSP", **RAN}, JobStatus(state=RUNNING, reason="suspended", nodes="tbi-cn019,tbi-cn020")),
        ({"STAT": "DONE", "EXEC_HOST": "tbi-cn019:tbi-cn019"},
         JobStatus(state=ENDED, outcome=DONE, nodes="tbi-cn019")),
        ({"STAT": "EXIT", "EXIT_CODE": "3"}, (FAILED, "exit code 3")),
        ({"STAT": "EXIT", "EXIT_CODE": "143",
          "EXIT_REASON": "TERM_RUNLIMIT: job killed after reaching LSF run time limit"},
         (TIMEOUT, "TERM_RUNLIMIT: job killed after reaching LSF run time limit")),
        ({"STAT": "EXIT", "EXIT_REASON": "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit"},
         (OOM, "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit")),
        ({"STAT": "EXIT", "EXIT_REASON": "TERM_OWNER: job killed by owner"},
         (FAILED, "cancelled: TERM_OWNER: job killed by owner")),
        ({"STAT": "EXIT", "EXIT_REASON": "TERM_PREEMPT: job killed after preemption"},
         (FAILED, "preempted: TERM_PREEMPT: job killed after preemption")),
        ({"STAT": "EXIT", "EXIT_REASON": "TERM_EXTERNAL_SIGNAL: job killed by a signal external to LSF"},
         (FAILED, "TERM_EXTERNAL_SIGNAL: job killed by a signal external to LSF")),
        ({"STAT": "EXIT"}, (FAILED, "exit code not known")),
    ],
)  # fmt: skip
def test_each_state_and_end(attributes, status, stand_in):
    bjobs = stand_in("bjobs").answers((0, answer(attributes), ""))
    if isinstance(status, tuple):
        status = JobStatus(state=ENDED, outcome=status[0], reason=status[1])
    assert LsfExecutor().poll(["22005"]) == {"22005": status}
    assert bjobs.calls() == [["-a", "-json", "-o", FIELDS, "22005"]]


def test_a_forgotten_job_is_unknown_and_the_others_are_read(stand_in):
    missing = {"COMMAND": "bjobs", "JOBS": 2, "RECORDS": [{**JOB, "STAT": "RUN"},
               {"JOBID": "9", "ERROR": "Job <9> is not found"}]}  # fmt: skip
    gone = {"COMMAND": "bjobs", "JOBS": 1, "RECORDS": missing["RECORDS"][1:]}
    answers = (0, json.dumps(missing), ""), (255, "", "Job <9> is not found\n"), (255, json.dumps(gone), "")
    stand_in("bjobs").answers(*answers)
    found = LsfExecutor().poll(["22005", "9"])
    assert (found["22005"].state, found["9"]) == (RUNNING, JobStatus(state=UNKNOWN))
    for _ in answers[1:]:
        assert LsfExecutor().poll(["9"]) == {"9": JobStatus(state=UNKNOWN)}
    assert LsfExecutor().poll([]) == {}


def test_an_answer_after_please_wait_is_read(stand_in):
    waited = "Cannot connect to LSF. Please wait ...\nLSF is processing your request. Please wait ...\n"
    stand_in("bjobs").answers((0, waited + answer({"STAT": "RUN"}), ""))
    assert LsfExecutor().poll(["22005"])["22005"].state == RUNNING


@pytest.mark.parametrize(
    "silence",
    [
        IS_DOWN, (0, '{"RECORDS": [', ""), (255, "", ""), (255, "", "Bad field name\n"), (0, "", ""),
        (0, answer({"JOBID": "22006", "STAT": "RUN"}), ""), (0, answer(), ""),
        (255, "", "Job <220051> is not found\n"),
    ],
)  # fmt: skip
def test_silence_says_nothing_about_a_job(silence, stand_in):
    stand_in("bjobs").answers(silence)
    with pytest.raises(SchedulerSilentError):
        LsfExecutor().poll(["22005"])


def test_submission_reads_the_script_from_standard_input(stand_in, make_attempt):
    one, two = make_attempt("a-1"), make_attempt("a-2")
    for attempt in (one, two):
        attempt.script.write_text(LsfExecutor().render(attempt))
    taken = "Job <542935> is submitted to queue <short>.\n"
    taken = f"--> Checking available allocation...OK\n{taken}<<Waiting for dispatch ...>>\n"
    bsub = stand_in("bsub").answers((0, taken, ""), (255, "", "Pending job threshold reached. Job not submitted.\n"))
    assert LsfExecutor().submit([one, two]) == {"a-1": "542935"}
    assert bsub.calls() == [[], []]
    assert bsub.standard_input(0) == one.script.read_text()
    assert "#BSUB -rn\n" in bsub.standard_input(0)
    refusals = {
        "No such queue": (255, "", "batch: No such queue. Job not submitted.\n"),
        "non-LSF host": (255, "", f"{IS_DOWN[2]}Request from non-LSF host rejected. Job not submitted.\n"),
        "Bad reservation": (0, "", "Bad reservation. Job\nnot submitted.\n"),
    }
    bsub.answers(*refusals.values(), IS_DOWN, (0, "", ""))
    for words in refusals:
        with pytest.raises(SubmitError, match=words):
            LsfExecutor().submit([one])
    for _ in range(2):
        with pytest.raises(SchedulerSilentError):
            LsfExecutor().submit([one])


def test_jobs_are_found_by_name(stand_in):
    found = answer({"STAT": "RUN", "JOBID": "10"}, {"STAT": "EXIT", "JOBID": "9"})
    none = (255, "", "Job <a-2> is not found\n"), (0, answer(), ""), (255, "", "No matching job found\n")
    bjobs = stand_in("bjobs").answers((0, found, ""), *none, IS_DOWN, (0, "", ""))
    assert LsfExecutor().find(["a-1", "a-2", "a-2", "a-2"]) == {"a-1": "9"}
    assert bjobs.calls()[0][-2:] == ["-J", "a-1"]
    for _ in range(2):
        with pytest.raises(SchedulerSilentError):
            LsfExecutor().find(["a-3"])


def test_cancelling_leaves_ended_jobs_alone(stand_in):
    over = (255, "", "Job <9>: Job has already finished\nJob <8>: No matching job found\n")
    bkill = stand_in("bkill").answers((0, "Job <5> is being terminated\n", ""), over, IS_DOWN)
    LsfExecutor().cancel(["5"])
    LsfExecutor().cancel(["9", "8"])
    with pytest.raises(SchedulerSilentError):
        LsfExecutor().cancel(["5"])
    assert bkill.calls() == [["5"], ["9", "8"], ["5"]]
