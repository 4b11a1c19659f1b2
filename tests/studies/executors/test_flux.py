"""Flux by recorded answers: all states and ends, ids in every form, a silent broker.

Forms of the answers: jobs and "JobID ... unknown" as recorded by Open OnDemand's adapter (spec/fixtures/output/flux of
ood_core), a completed job from flux-operator's documentation, several jobs under "jobs" as flux-core issue 4994 says,
the words without a broker from flux-core pull request 4950, exceptions from flux-core (RFC 32, issues 6653 and 6779),
return codes of a job that a signal, an exception or a missing program ended from flux-core's t2800-jobs-cmd.t, "JobID"
in base 58 from flux-core versions whose JobID forgets how it was written, "rpc: " without words from pull request 3688.
"""

import json

import pytest

from scaling_studies.executors.base import ENDED, QUEUED, RUNNING, UNKNOWN, JobStatus, SchedulerSilentError, SubmitError
from scaling_studies.executors.flux import FluxExecutor, decimal_id
from scaling_studies.records import DONE, FAILED, TIMEOUT

JOB = {
    "t_depend": 1791485339.36, "duration": 0.0, "name": "weak-ranks00002-abc-attempt01", "cwd": "/home/fluxuser",
    "ntasks": 1, "nnodes": 1, "priority": 16, "id": 91088924704768, "t_submit": 1791485339.34, "username": "fluxuser",
    "userid": 1002, "urgency": 16, "dependencies": [], "jobid": "ƒiFkbMhFM", "annotations": {},
    "exception": {"occurred": False},
}  # fmt: skip
OVER = {"state": "INACTIVE", "nodelist": "burst[40-45]"}
NO_BROKER = (1, "", "flux-jobs: ERROR: Unable to connect to Flux: broker socket /run/flux/local was not found\n")


def fatal(kind, note=""):
    return {"occurred": True, "severity": 0, "type": kind, "note": note}


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({"state": "SCHED", "status": "SCHED"}, JobStatus(state=QUEUED)),
        ({"state": "SCHED", "annotations": {"sched": {"reason_pending": "insufficient resources"}}},
         JobStatus(state=QUEUED, reason="insufficient resources")),
        ({"state": "SCHED", "urgency": 0}, JobStatus(state=QUEUED, reason="held")),
        ({"state": "RUN", "nodelist": "3db47f546663"}, JobStatus(state=RUNNING, nodes="3db47f546663")),
        ({"state": "CLEANUP", "nodelist": "3db47f546663"}, JobStatus(state=RUNNING, nodes="3db47f546663")),
        ({"result": "COMPLETED", "returncode": 0, **OVER}, (DONE, "")),
        ({"result": "FAILED", "returncode": 3, **OVER}, (FAILED, "exit code 3")),
        ({"result": "TIMEOUT", "returncode": 142, "exception": fatal("timeout", "resource allocation expired"), **OVER},
         (TIMEOUT, "time limit of the job: resource allocation expired")),
        ({"result": "FAILED", "returncode": 142, **OVER}, (TIMEOUT, "time limit of the job")),
        ({"result": "CANCELED", "returncode": 143, "exception": fatal("cancel"), **OVER}, (FAILED, "cancelled")),
        ({"result": "CANCELED", "returncode": -128, "exception": fatal("cancel", "by jan"), "state": "INACTIVE"},
         JobStatus(state=ENDED, outcome=FAILED, reason="cancelled: by jan")),
        ({"result": "FAILED", "returncode": 137,
          "exception": fatal("node-failure", "node failure on elcap8767 (shell rank 1127)"), **OVER},
         (FAILED, "node-failure: node failure on elcap8767 (shell rank 1127)")),
        ({"result": "FAILED", "returncode": 143, **OVER}, (FAILED, "exit code 143")),
        ({"result": "FAILED", "returncode": 143, "exception": fatal("myexception", "myexception"), **OVER},
         (FAILED, "myexception: myexception")),
        ({"result": "FAILED", "returncode": 127, "exception": fatal("exec", "No such file or directory"), **OVER},
         (FAILED, "exec: No such file or directory")),
    ],
)  # fmt: skip
def test_each_state_and_end(attributes, status, stand_in):
    flux = stand_in("flux").answers((0, json.dumps({**JOB, **attributes}), ""))
    if isinstance(status, tuple):
        status = JobStatus(state=ENDED, outcome=status[0], reason=status[1], nodes="burst[40-45]")
    assert FluxExecutor().poll(["91088924704768"]) == {"91088924704768": status}
    assert flux.calls() == [["jobs", "--json", "91088924704768"]]


def test_several_jobs_and_one_that_was_purged(stand_in):
    jobs = {"jobs": [{**JOB, "id": number, "state": "RUN"} for number in (5, 6)]}
    unknown = (1, "", "JobID 999999 unknown\n")
    stand_in("flux").answers((0, json.dumps(jobs), "JobID 999999 unknown\n"), unknown, (0, '{"jobs": []}', unknown[2]))
    found = FluxExecutor().poll(["5", "6", "999999"])
    assert [found[job_id].state for job_id in ("5", "6", "999999")] == [RUNNING, RUNNING, UNKNOWN]
    assert FluxExecutor().poll(["999999"]) == {"999999": JobStatus(state=UNKNOWN)}
    assert FluxExecutor().poll(["999999"]) == {"999999": JobStatus(state=UNKNOWN)}
    for prefix in "ƒf":
        stand_in("flux").answers((0, "", f"JobID {prefix}iFkbMhFM unknown\n"))
        assert FluxExecutor().poll(["91088924704768"]) == {"91088924704768": JobStatus(state=UNKNOWN)}
    assert FluxExecutor().poll([]) == {}


@pytest.mark.parametrize(
    "silence",
    [
        NO_BROKER, (0, "{", ""), (1, "", ""), (0, '{"jobs": []}', "rpc: Timed out\n"), (0, "", "rpc: \n"), (0, "", ""),
        (0, json.dumps({"jobs": [{**JOB, "id": 6, "state": "RUN"}]}), "JobID 7 unknown\n"),
    ],
)  # fmt: skip
def test_silence_says_nothing_about_a_job(silence, stand_in):
    stand_in("flux").answers(silence)
    with pytest.raises(SchedulerSilentError):
        FluxExecutor().poll(["5"])


def test_a_warning_beside_an_answer_is_not_silence(stand_in):
    stand_in("flux").answers((0, json.dumps({**JOB, "state": "RUN"}), "flux-jobs: WARNING: something is deprecated\n"))
    assert FluxExecutor().poll([str(JOB["id"])])[str(JOB["id"])].state == RUNNING


def test_an_id_in_every_form_is_one_number():
    recorded = (("ƒiFkbMhFM", "91088924704768"), ("ƒiFxrykWs", "91096977768448"))
    for printed, number in recorded:
        assert decimal_id(printed) == decimal_id(printed.replace("ƒ", "f")) == decimal_id(number) == number


def test_submission(stand_in, make_attempt):
    one, two = make_attempt("a-1"), make_attempt("a-2")
    flux = stand_in("flux").answers((0, "ƒiFkbMhFM\n", ""), (1, "", "flux-batch: ERROR: too many jobs\n"))
    assert FluxExecutor().submit([one, two]) == {"a-1": "91088924704768"}
    assert flux.calls() == [["batch", str(one.script)], ["batch", str(two.script)]]
    flux.answers((1, "", "flux-batch: ERROR: Invalid queue\n"), (1, "", NO_BROKER[2].replace("jobs", "batch")))
    with pytest.raises(SubmitError, match="Invalid queue"):
        FluxExecutor().submit([one])
    with pytest.raises(SchedulerSilentError, match="broker socket"):
        FluxExecutor().submit([one])
    flux.answers((0, "submitted, see below\n", ""))
    with pytest.raises(SchedulerSilentError, match="printed no job id"):
        FluxExecutor().submit([one])


def test_jobs_are_found_by_name(stand_in):
    jobs = {"jobs": [{**JOB, "state": "RUN"}, {**JOB, "id": 9, "state": "INACTIVE"}]}
    flux = stand_in("flux").answers((0, json.dumps(jobs), ""), (0, '{"jobs": []}', ""), NO_BROKER, (0, "", ""))
    assert FluxExecutor().find(["a-1", "a-2"]) == {"a-1": "9"}
    assert flux.calls()[0] == ["jobs", "--json", "-a", "--name=a-1"]
    for _ in range(2):
        with pytest.raises(SchedulerSilentError):
            FluxExecutor().find(["a-3"])


def test_cancelling_leaves_ended_jobs_alone(stand_in):
    over = (1, "", "flux-cancel: ERROR: ƒ68GN: unknown job id\nflux-cancel: ERROR: ƒ68GP: job is inactive\n")
    flux = stand_in("flux").answers((0, "", ""), over, (1, "", NO_BROKER[2]))
    FluxExecutor().cancel(["5"])
    FluxExecutor().cancel(["5", "6"])
    with pytest.raises(SchedulerSilentError):
        FluxExecutor().cancel(["5"])
    assert flux.calls()[1] == ["cancel", "5", "6"]
