"""PBS by recorded answers: all states and ends, history switched off, a silent server.

Forms of the answers: jobs as PBS 19 and 22 print them (buildtest's executor documentation, swrap, PSI/J's guide),
"cannot connect" and its exit code 255 from the tests of baw-server (PBS 22.05 and 2025.2), "Unknown Job Id" with exit
code 153 and the words on missing history as several public clients handle them, exit values from OpenPBS's job.h.
"""

import json

import pytest

from janus.errors import UserError
from scaling_studies.executors.base import ENDED, QUEUED, RUNNING, UNKNOWN, JobStatus, SchedulerSilentError, SubmitError
from scaling_studies.executors.pbs import PbsExecutor
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT

JOB = {
    "Job_Name": "weak-ranks00002-abc-attempt01", "Job_Owner": "jan@login1", "queue": "charon_2h", "server": "meta-pbs",
    "Join_Path": "oe", "Rerunable": "False", "Resource_List": {"ncpus": 4, "nodect": 2, "walltime": "00:02:00"},
    "Variable_List": {"PBS_O_HOME": "/home/jan", "PBS_O_QUEUE": "charon_2h"}, "project": "_pbs_project_default",
}  # fmt: skip
RAN = {
    "exec_host": "charon24/0*2+charon21/0*2", "exec_vnode": "(charon24:ncpus=2)+(charon21:ncpus=2)",
    "stime": "Tue Oct  4 21:23:23 2022", "comment": "Job run at Tue Oct 04 at 21:23 on (charon24:ncpus=2) and finished",
}  # fmt: skip
NO_SERVER = (
    255, '{\n    "timestamp":1750053827,\n    "pbs_version":"22.05.11",\n    "pbs_server":"6cfab3a0b8ac"\n}\n',
    "Connection refused\nqstat: cannot connect to server 6cfab3a0b8ac (errno=15010)\n",
)  # fmt: skip
NO_HISTORY = (1, "", "qstat: PBS is not configured to maintain job history\n")


def answer(**jobs):
    """What qstat -f -F json prints of jobs: number -> attributes."""
    known = {f"{number[1:]}.pbs": {**JOB, **attributes} for number, attributes in jobs.items()}
    head = {"timestamp": 1664911414, "pbs_version": "19.0.0", "pbs_server": "pbs"}
    return json.dumps({**head, "Jobs": known} if known else head, indent=4).replace("/", "\\/")


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({"job_state": "Q", "substate": 10, "comment": "Not Running: Insufficient amount of resource: ncpus"},
         JobStatus(state=QUEUED, reason="Not Running: Insufficient amount of resource: ncpus")),
        ({"job_state": "H", "Hold_Types": "u", "substate": 20}, JobStatus(state=QUEUED, reason="held")),
        ({"job_state": "R", "substate": 42, **RAN}, JobStatus(state=RUNNING, nodes="charon24,charon21")),
        ({"job_state": "E", "substate": 51, **RAN}, JobStatus(state=RUNNING, nodes="charon24,charon21")),
        ({"job_state": "S", **RAN}, JobStatus(state=RUNNING, reason="suspended", nodes="charon24,charon21")),
        ({"job_state": "F", "substate": 92, "Exit_status": 0, **RAN},
         JobStatus(state=ENDED, outcome=DONE, nodes="charon24,charon21")),
        ({"job_state": "F", "substate": 92, "Exit_status": 3}, (FAILED, "exit code 3")),
        ({"job_state": "F", "substate": 93, "Exit_status": -29}, (TIMEOUT, "walltime exceeded")),
        ({"job_state": "F", "substate": 93, "Exit_status": -27}, (OOM, "memory limit exceeded")),
        ({"job_state": "F", "substate": 91, "Exit_status": 271},
         (FAILED, "stopped by SIGTERM (qdel, preemption or the node)")),
        ({"job_state": "F", "substate": 91, "Exit_status": 143},
         (FAILED, "stopped by SIGTERM (qdel, preemption or the node)")),
        ({"job_state": "F", "Exit_status": 271, "resources_used": {"walltime": "00:02:11"}},
         (TIMEOUT, "walltime exceeded")),
        ({"job_state": "F", "Exit_status": 271, "resources_used": {"walltime": "00:01:59"}},
         (FAILED, "stopped by SIGTERM (qdel, preemption or the node)")),
        ({"job_state": "F", "substate": 91, "Exit_status": 265}, (FAILED, "ended by SIGKILL")),
        ({"job_state": "F", "Exit_status": 256 + 99}, (FAILED, "ended by signal 99")),
        ({"job_state": "F", "Exit_status": -1}, (FAILED, "PBS could not run it (exit value -1)")),
        ({"job_state": "F", "substate": 91, "comment": "Not Running: too few nodes and terminated"},
         (FAILED, "deleted before it ran: Not Running: too few nodes and terminated")),
    ],
)  # fmt: skip
def test_each_state_and_end(attributes, status, stand_in):
    qstat = stand_in("qstat").answers((0, answer(_7=attributes), ""))
    if isinstance(status, tuple):
        status = JobStatus(state=ENDED, outcome=status[0], reason=status[1])
    assert PbsExecutor().poll(["7.pbs"]) == {"7.pbs": status}
    assert qstat.calls() == [["-x", "-f", "-F", "json", "7.pbs"]]


def test_a_forgotten_job_is_unknown_and_the_others_are_read(stand_in):
    some = (153, answer(_8={"job_state": "R"}), "qstat: Unknown Job Id 9.pbs\n")
    stand_in("qstat").answers(some, (153, answer(), "qstat: Unknown Job Id 9.pbs\n"))
    found = PbsExecutor().poll(["8.pbs", "9.pbs"])
    assert (found["8.pbs"].state, found["9.pbs"]) == (RUNNING, JobStatus(state=UNKNOWN))
    assert PbsExecutor().poll(["9.pbs"]) == {"9.pbs": JobStatus(state=UNKNOWN)}
    assert PbsExecutor().poll([]) == {}


def test_a_server_whose_name_is_written_in_full_is_the_same_server(stand_in):
    stand_in("qstat").answers((0, answer(_7={"job_state": "R"}), ""))
    assert PbsExecutor().poll(["7.pbs.cluster.example"])["7.pbs.cluster.example"].state == RUNNING


def test_a_server_without_history_is_asked_again_without_it(stand_in):
    qstat = stand_in("qstat").answers(NO_HISTORY, (153, "", "qstat: Unknown Job Id 9.pbs\n"))
    assert PbsExecutor().poll(["9.pbs"]) == {"9.pbs": JobStatus(state=UNKNOWN)}
    assert [call[0] for call in qstat.calls()] == ["-x", "-f"]


@pytest.mark.parametrize("silence", [NO_SERVER, (0, '{"Jobs": {', ""), (1, "", "qstat: something else\n")])
def test_silence_says_nothing_about_a_job(silence, stand_in):
    stand_in("qstat").answers(silence)
    with pytest.raises(SchedulerSilentError):
        PbsExecutor().poll(["7.pbs"])


def test_a_server_that_hangs_is_silent(stand_in, monkeypatch):
    monkeypatch.setattr("scaling_studies.executors.commands.ANSWER_S", 0.05)
    program = stand_in("qstat").bin_folder / "qstat"
    program.write_text("#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(SchedulerSilentError, match=r"qstat gave no answer within 0.05 s"):
        PbsExecutor().poll(["7.pbs"])


def test_submission(stand_in, make_attempt):
    one, two = make_attempt("a-1"), make_attempt("a-2")
    qsub = stand_in("qsub").answers((0, "157.pbs\n", ""), (38, "", "qsub: would exceed queue's per-user limit\n"))
    assert PbsExecutor().submit([one, two]) == {"a-1": "157.pbs"}, "the first was taken, the second is tried later"
    assert qsub.calls() == [[str(one.script)], [str(two.script)]]
    qsub.answers((188, "", "qsub: Unknown queue\n"), (255, "", "qsub: cannot connect to server pbs (errno=15010)\n"))
    with pytest.raises(SubmitError, match="Unknown queue"):
        PbsExecutor().submit([one])
    with pytest.raises(SchedulerSilentError, match="cannot connect"):
        PbsExecutor().submit([one])


def test_jobs_are_found_by_name(stand_in):
    qselect = stand_in("qselect").answers((0, "157.pbs\n158.pbs\n", ""), (0, "", ""), NO_SERVER)
    assert PbsExecutor().find(["a-1", "a-2"]) == {"a-1": "157.pbs"}
    assert qselect.calls() == [["-x", "-N", "a-1"], ["-x", "-N", "a-2"]]
    with pytest.raises(SchedulerSilentError):
        PbsExecutor().find(["a-3"])


def test_cancelling_leaves_ended_jobs_alone(stand_in):
    over = (35, "", "qdel: Job has finished 157.pbs\nqdel: Unknown Job Id 158.pbs\n")
    qdel = stand_in("qdel").answers((0, "", ""), over, (255, "", "qdel: cannot connect to server pbs (errno=15010)\n"))
    PbsExecutor().cancel(["156.pbs"])
    PbsExecutor().cancel(["157.pbs", "158.pbs"])
    with pytest.raises(SchedulerSilentError):
        PbsExecutor().cancel(["156.pbs"])
    PbsExecutor().cancel([])
    assert len(qdel.calls()) == 3


def test_a_script_is_not_rerunnable_and_a_host_without_pbs_is_told_so(make_attempt, monkeypatch):
    assert "#PBS -r n\n" in PbsExecutor().render(make_attempt())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="qstat is not on the path"):
        PbsExecutor().poll(["7.pbs"])
