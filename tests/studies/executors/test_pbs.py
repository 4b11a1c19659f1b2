"""PBS by recorded answers: all states and ends, history switched off, a silent server.

Forms of the answers: jobs as PBS 13 to 22 print them (tests of AiiDA and qtoolkit, buildtest's documentation), a shell
function among the variables from AiiDA's tests (PBS of a site, 2026), a moved job from nextflow issue 1840, "cannot
connect" and its exit code 255 from the tests of baw-server (PBS 22.05 and 2025.2), "Unknown Job Id" from Balsam issue
323 (PBS 2022.1), "Job has finished" and exit code 35 from Parsl issues 3906 and 4016 (PBS 2022.1 and 2024.1), notices
before a job's id from nextflow issue 1582, passing faults of qsub and their exit codes from ert issue 7103, exit values
from OpenPBS's job.h and MetaCentrum's documentation.
"""

import pytest

from janus.errors import UserError
from scaling_studies.executors.base import ENDED, QUEUED, RUNNING, UNKNOWN, JobStatus, SchedulerSilentError, SubmitError
from scaling_studies.executors.pbs import PbsExecutor
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT

JOB = {
    "Job_Name": "weak-ranks00002-abc-attempt01", "Job_Owner": "jan@login1", "queue": "charon_2h", "server": "meta-pbs",
    "Join_Path": "oe", "Rerunable": "False", "Resource_List.nodect": 2, "Resource_List.walltime": "00:02:00",
    "project": "_pbs_project_default",
}  # fmt: skip
VARIABLES = """\
    Variable_List = PBS_O_HOME=/home/jan,PBS_O_LANG=C,
\tPBS_O_PATH=/path/to/scripts:/path/to/scripts/bin:/path/to/bin:/opt/pbs/def
\tault/bin,LESSOPEN=|/usr/bin/lesspipe.sh %s,MYVAR=\\'\\"as\\,ads\\"\\',foo=005,
\tmodule=() {  eval `/usr/bin/modulecmd bash $*`,},
\tBASH_FUNC_my_func_multiline%%=() {  if true; then
 echo foo; else
 ech
\to bar; fi
},_=/opt/pbs/default/bin/qsub,
\tPBS_O_QUEUE=charon_2h
"""
RAN = {
    "exec_host": "charon24/0*2+charon21/0*2", "exec_vnode": "(charon24:ncpus=2)+(charon21:ncpus=2)",
    "stime": "Tue Oct  4 21:23:23 2022", "comment": "Job run at Tue Oct 04 at 21:23 on (charon24:ncpus=2) and finished",
}  # fmt: skip
NO_SERVER = (255, "", "Connection refused\nqstat: cannot connect to server 6cfab3a0b8ac (errno=15010)\n")
# OpenPBS ends with 0 here (qstat.c; the words: az-hop, issue 14).
NO_HISTORY = (0, "", "qstat: PBS is not configured to maintain job history 9.pbs\n")


def answer(**jobs):
    """What qstat -f prints of jobs: number -> attributes."""

    def lines(attributes):
        return "".join(f"    {name} = {value}\n" for name, value in attributes.items())

    return "".join(
        f"Job Id: {number[1:]}.pbs\n{lines(JOB | attributes)}{VARIABLES}{lines(attributes)}\n"
        for number, attributes in jobs.items()
    )


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
        ({"job_state": "F", "Exit_status": 271, "resources_used.walltime": "00:02:11"},
         (TIMEOUT, "walltime exceeded")),
        ({"job_state": "F", "Exit_status": 271, "resources_used.walltime": "00:01:59"},
         (FAILED, "stopped by SIGTERM (qdel, preemption or the node)")),
        ({"job_state": "F", "substate": 91, "Exit_status": 265}, (FAILED, "ended by SIGKILL")),
        ({"job_state": "F", "Exit_status": 256 + 99}, (FAILED, "ended by signal 99")),
        ({"job_state": "F", "Exit_status": -1}, (FAILED, "PBS could not run it (exit value -1)")),
        ({"job_state": "F", "Exit_status": -25}, (FAILED, "more CPUs used than asked for")),
        ({"job_state": "F", "Exit_status": -31}, (OOM, "huge-page memory limit exceeded")),
        ({"job_state": "F", "Exit_status": -20}, (FAILED, "first node lost")),
        ({"job_state": "F", "substate": 91, "comment": "Not Running: too few nodes and terminated"},
         (FAILED, "deleted before it ran: Not Running: too few nodes and terminated")),
    ],
)  # fmt: skip
def test_each_state_and_end(attributes, status, stand_in):
    qstat = stand_in("qstat").answers((0, answer(_7=attributes), ""))
    if isinstance(status, tuple):
        status = JobStatus(state=ENDED, outcome=status[0], reason=status[1])
    assert PbsExecutor().poll(["7.pbs"]) == {"7.pbs": status}
    assert qstat.calls() == [["-x", "-f", "7.pbs"]]


def test_a_value_that_goes_on_over_several_lines_is_put_together(stand_in):
    wrapped = """\
Job Id: 69301
    Job_Name = Cu-dbp
    job_state = R
    queue = P_lsu
    exec_host = b141/0*16+b142/0*16+b143/0*16+b144/0*16+b145/0*16+b146/0*16+b14
\t7/0*16
    comment = Job run at Sat Apr 20 at 01:36 on (b141:ncpus=16)+(b142:ncpus=16)
\t+(b143:ncpus=16)
"""
    stand_in("qstat").answers((0, wrapped, ""))
    assert PbsExecutor().poll(["69301.mycluster"])["69301.mycluster"].nodes == "b141,b142,b143,b144,b145,b146,b147"


def test_a_moved_job_is_asked_for_where_it_is(stand_in):
    moved = (0, answer(_510838={"job_state": "M", "queue": "Short@flashmgr2"}), "")
    there = answer(_510838={"job_state": "F", "Exit_status": 0})
    gone = (153, "", "qstat: Unknown Job Id 510838.pbs\n")
    qstat = stand_in("qstat").answers(moved, (0, there, ""), moved, gone, moved, NO_SERVER)
    assert PbsExecutor().poll(["510838.pbs"]) == {"510838.pbs": JobStatus(state=ENDED, outcome=DONE)}
    assert qstat.calls()[1] == ["-x", "-f", "510838.pbs@flashmgr2"]
    assert PbsExecutor().poll(["510838.pbs"]) == {"510838.pbs": JobStatus(state=UNKNOWN)}
    with pytest.raises(SchedulerSilentError):
        PbsExecutor().poll(["510838.pbs"])


def test_a_forgotten_job_is_unknown_and_the_others_are_read(stand_in):
    some = (153, answer(_8={"job_state": "R"}), "qstat: Unknown Job Id 9.pbs\n")
    finished = "qstat: 9.pbs-01.hsn Job has finished, use -x or -H to obtain historical job information\n"
    stand_in("qstat").answers(some, (35, "", finished))
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


@pytest.mark.parametrize(
    "silence",
    [
        NO_SERVER, (1, "", "qstat: something else\n"), (171, "", "qstat: Invalid credential 7.pbs\n"),
        (0, "", ""),  # as qstat of OpenPBS ends when its server went away under it
        (0, "Job Id: 7.pbs\n", ""), (0, answer(_8={"job_state": "R"}), ""),
        (153, "", "qstat: Unknown Job Id 77.pbs\n"),
    ],
)  # fmt: skip
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
    for code, words in ((171, "Invalid credential"), (183, "Premature end of message"), (162, "Connection refused")):
        qsub.answers((code, "", f"qsub: {words}\n"))
        with pytest.raises(SchedulerSilentError, match=words):
            PbsExecutor().submit([one])
    qsub.answers((0, "Notice: Using default node access policy: shared\n158.pbs\n", ""), (0, "Job was routed\n", ""))
    assert PbsExecutor().submit([one]) == {"a-1": "158.pbs"}
    with pytest.raises(SchedulerSilentError, match="Job was routed"):
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
