"""The Slurm executor against answers that Slurm 22.05 gave on a real cluster (tests/slurm runs one), and how it asks.

The programs on the path are stand-ins that print a recorded answer and write down the words they were called with.
Answers marked "manual" could not be provoked there; they have the form that the manual pages and slurm_errno.c give.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from janus.errors import UserError
from scaling_studies.executors.base import (
    ENDED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    AttemptJob,
    JobStatus,
    SchedulerSilentError,
    SubmitError,
)
from scaling_studies.executors.slurm import SlurmExecutor
from scaling_studies.launch_scripts import Job
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT

NO_CONTROLLER = "{}: error: Unable to contact slurm controller (connect failure)\n"
SQUEUE_SILENT = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
SQUEUE_UNKNOWN = "slurm_load_jobs error: Invalid job id specified\n"
NO_ACCOUNTING = "Slurm accounting storage is disabled\n"
NO_DATA_BASE = """\
sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:127.0.0.1:21950: \
Connection refused
sacct: error: Sending PersistInit msg: Connection refused
sacct: error: Problem talking to the database: Connection refused
"""
STAND_IN = """#!/bin/bash
here=$(dirname "$0")
printf '%s\\n' "$(basename "$0")" "$@" > "$(mktemp "$here/call.XXXXXX")"
answer="$here/$(basename "$0")"
cat "$answer.out"; cat "$answer.err" >&2; exit "$(cat "$answer.rc")"
"""


class Slurm:
    """Stand-ins for Slurm's programs on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for program in ("sbatch", "squeue", "scontrol", "sacct", "scancel"):
            self.answers(program)
            (folder / program).write_text(STAND_IN)
            (folder / program).chmod(0o755)

    def answers(self, program: str, out: str = "", err: str = "", code: int = 0) -> None:
        for ending, text in (("out", out), ("err", err), ("rc", str(code))):
            (self.folder / f"{program}.{ending}").write_text(text)

    def calls(self, program: str) -> list[list[str]]:
        """Words of every call of a program, without its name."""
        calls = [path.read_text().splitlines() for path in sorted(self.folder.glob("call.*"))]
        return [words for name, *words in calls if name == program]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    made = Slurm(folder)
    made.answers("sacct", err=NO_ACCOUNTING, code=1)
    return made


def attempt(study: Path, tag: str, executor: SlurmExecutor, **changes: Any) -> AttemptJob:
    folder = study / "attempts" / tag
    folder.mkdir(parents=True)
    shape: dict[str, Any] = {"ranks": 8, "nodes": 2, "ranks_per_node": 4, "threads": 2, "time_limit_s": 900, **changes}
    made = AttemptJob(tag=tag, folder=folder, job=Job(name=tag, command=["train"], **shape))
    made.script.write_text(executor.render(made))
    return made


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ("12_4|PENDING|Resources|", JobStatus(state=QUEUED, reason="Resources")),
        ("12_4|PENDING|None|", JobStatus(state=QUEUED)),
        ("12_4|PENDING|JobHeldUser|", JobStatus(state=QUEUED, reason="JobHeldUser")),
        ("12_4|PENDING|PartitionConfig|", JobStatus(state=QUEUED, reason="PartitionConfig")),
        ("12_4|CONFIGURING|None|n[1-2]", JobStatus(state=QUEUED)),  # manual: nodes are booted
        ("12_4|RUNNING|None|n[1-2]", JobStatus(state=RUNNING, nodes="n[1-2]")),
        ("12_4|COMPLETING|None|n1", JobStatus(state=RUNNING, reason="COMPLETING", nodes="n1")),
        ("12_4|SUSPENDED|None|n1", JobStatus(state=RUNNING, reason="SUSPENDED", nodes="n1")),
        ("12_4|COMPLETED|None|n3", JobStatus(state=ENDED, outcome=DONE, nodes="n3")),
        ("12_4|PREEMPTED|None|n1", JobStatus(state=ENDED, outcome=FAILED, reason="preempted", nodes="n1")),
        ("12_4|NODE_FAIL|NodeDown|n4", JobStatus(state=ENDED, outcome=FAILED, reason="a node failed", nodes="n4")),
        ("12_4|CANCELLED|Resources|", JobStatus(state=ENDED, outcome=FAILED, reason="cancelled")),
        (
            "12_4|TIMEOUT|TimeLimit|n1",
            JobStatus(state=ENDED, outcome=TIMEOUT, reason="time limit of the job", nodes="n1"),
        ),
        (
            "12_4|OUT_OF_MEMORY|OutOfMemory|n1",
            JobStatus(state=ENDED, outcome=OOM, reason="out of memory", nodes="n1"),
        ),  # manual
        ("12_4|DEADLINE|DeadLine|", JobStatus(state=ENDED, outcome=TIMEOUT, reason="deadline of the job")),
        (
            "12_4|BOOT_FAIL|None|n1",
            JobStatus(state=ENDED, outcome=FAILED, reason="a node did not boot", nodes="n1"),
        ),  # manual
    ],
)
def test_every_state_of_the_queue(slurm, row, status):
    slurm.answers("squeue", row + "\n")
    assert SlurmExecutor().poll(["12_4"]) == {"12_4": status}
    (words,) = slurm.calls("squeue")
    assert {"--array", "--states=all", "--jobs", "12_4"} <= set(words)


@pytest.mark.parametrize(
    ("code", "reason"), [("3:0", "exit code 3"), ("0:9", "the job's script was ended by signal 9"), ("0:0", "failed")]
)
def test_a_failed_job_tells_its_exit_code(slurm, code, reason):
    slurm.answers("squeue", "9|FAILED|NonZeroExitCode|n1\n")
    slurm.answers("scontrol", f"JobId=9 JobName=x.sh Requeue=1 BatchFlag=1 ExitCode={code} RunTime=00:00:00\n")
    assert SlurmExecutor().poll(["9"])["9"].reason == reason
    slurm.answers("scontrol", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert SlurmExecutor().poll(["9"])["9"].reason == "failed"


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (
            "2|CANCELLED by 1000|0:0|n[1-2]",
            JobStatus(state=ENDED, outcome=FAILED, reason="cancelled by user 1000", nodes="n[1-2]"),
        ),
        ("2|CANCELLED by 0|0:0|None assigned", JobStatus(state=ENDED, outcome=FAILED, reason="cancelled by user 0")),
        ("2|COMPLETED|0:0|n1", JobStatus(state=ENDED, outcome=DONE, nodes="n1")),
        ("2|FAILED|1:0|n2", JobStatus(state=ENDED, outcome=FAILED, reason="exit code 1", nodes="n2")),
        ("2|OUT_OF_MEMORY|0:125|n2", JobStatus(state=ENDED, outcome=OOM, reason="out of memory", nodes="n2")),  # manual
        ("2|RUNNING|0:0|n2", JobStatus(state=UNKNOWN)),  # a runaway: the controller, which runs it, does not know it
    ],
)  # fmt: skip
def test_accounting_is_asked_for_what_the_queue_has_forgotten(slurm, row, status):
    slurm.answers("squeue", err=SQUEUE_UNKNOWN, code=1)
    slurm.answers("sacct", row + "\n")
    assert SlurmExecutor().poll(["2"]) == {"2": status}


def test_elements_that_were_cancelled_while_they_waited_share_a_row_of_their_array(slurm):
    slurm.answers("squeue")
    slurm.answers("sacct", "2_[0-1,3%2]|CANCELLED by 0|0:0|None assigned\n2_2|COMPLETED|0:0|n1\n7|TIMEOUT|0:0|n2\n")
    cancelled = JobStatus(state=ENDED, outcome=FAILED, reason="cancelled by user 0")
    found = SlurmExecutor().poll(["2_0", "2_1", "2_2", "2_3", "2_4", "7"])
    assert [found[f"2_{element}"] for element in (0, 1, 3)] == [cancelled] * 3
    assert [found[job_id].outcome for job_id in ("2_2", "2_4", "7")] == [DONE, "", TIMEOUT]
    (words,) = slurm.calls("sacct")
    assert words[-2:] == ["--jobs", "2,7"]


@pytest.mark.parametrize("error", [NO_ACCOUNTING, NO_DATA_BASE])
def test_without_accounting_a_forgotten_job_is_unknown(slurm, error):
    slurm.answers("squeue", "5|RUNNING|None|n1\n")
    slurm.answers("sacct", err=error, code=1)
    polled = SlurmExecutor().poll(["5", "4"])
    assert (polled["5"].state, polled["4"].state) == (RUNNING, UNKNOWN)
    assert SlurmExecutor().poll([]) == {}


@pytest.mark.parametrize(
    "error",
    [
        SQUEUE_SILENT,
        "slurm_load_jobs error: Socket timed out on send/recv operation\n",  # manual
        "slurm_load_jobs error: Zero Bytes were transmitted or received\n",  # manual
        "slurm_load_jobs error: a fault that nobody has seen yet\n",
    ],
)
def test_a_queue_that_cannot_be_read_tells_nothing(slurm, error):
    slurm.answers("squeue", err=error, code=1)
    for ask in (lambda: SlurmExecutor().poll(["1"]), lambda: SlurmExecutor().find(["tag"])):
        with pytest.raises(SchedulerSilentError, match="error"):
            ask()


def test_a_program_that_hangs_is_a_silent_scheduler(slurm, monkeypatch):
    (slurm.folder / "squeue").write_text("#!/bin/bash\nexec sleep 30\n")
    monkeypatch.setattr("scaling_studies.executors.commands.ANSWER_S", 0.2)
    with pytest.raises(SchedulerSilentError, match="no answer within"):
        SlurmExecutor().poll(["1"])


def test_without_slurm_it_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="squeue is not on the path"):
        SlurmExecutor().poll(["1"])


def test_one_job_per_attempt(slurm, tmp_path):
    slurm.answers("sbatch", "12;cluster\n")
    executor = SlurmExecutor(setup=("module load site",), directives=("--constraint=gpu",))
    made = attempt(tmp_path, "weak-ranks00008-0123456789ab-attempt01", executor, queue="batch", account="chem")
    assert executor.submit([made]) == {made.tag: "12"}
    assert slurm.calls("sbatch") == [["--parsable", str(made.script)]]
    lines = made.script.read_text().splitlines()
    wanted = (f"job-name={made.tag}", "nodes=2", "ntasks=8", "ntasks-per-node=4", "cpus-per-task=2", "time=00:15:00",
              f"output={made.log}", "partition=batch", "account=chem", "no-requeue", "constraint=gpu")  # fmt: skip
    assert all(f"#SBATCH --{word}" in lines for word in wanted)
    assert "module load site" in lines
    assert any(f"{sys.executable} -m scaling_studies.job_facts begin" in line for line in lines)


@pytest.mark.parametrize(
    "printed",
    [
        "519605\n",
        "60060368;slaking\n",  # VSC clusters: clusterfutures pull request 24
        "\n---------------\n   Welcome to the Stampede3 Supercomputer\n---------------\n\nNo reservation for this job\n"
        "--> Verifying valid submit host (login4)...OK\n519605\n",  # maestrowf issue 441, nipype pull request 1330
        "Sun Jul  7 03:08:23 2019 [INFO4] [euid=5534,pid=5818] auks_api: auks cred added using default file\n"
        "132826\n",  # batchspawner issue 148
    ],
)
def test_a_job_id_is_found_among_the_words_of_a_site(slurm, tmp_path, printed):
    slurm.answers("sbatch", printed)
    executor = SlurmExecutor()
    assert executor.submit([attempt(tmp_path, "t", executor)]) == {"t": printed.split()[-1].partition(";")[0]}


def test_attempts_of_equal_shape_share_an_array_in_the_order_given(slurm, tmp_path):
    slurm.answers("sbatch", "40\n")
    executor = SlurmExecutor(arrays=True)
    shapes = {"b": 8, "c": 4, "a": 8, "d": 8}
    attempts = [attempt(tmp_path, tag, executor, ranks=ranks) for tag, ranks in shapes.items()]
    assert executor.submit(attempts) == {"b": "40_0", "a": "40_1", "d": "40_2", "c": "40"}
    (folder,) = (tmp_path / "arrays").iterdir()
    assert [(folder / str(element)).resolve().name for element in range(3)] == ["b", "a", "d"]
    script = (folder / "array.sh").read_text()
    for word in (
        "--array=0-2",
        "--ntasks=8",
        "--no-requeue",
        f"--job-name={folder.name}",
        f"--output={folder}/%a/log.txt",
    ):
        assert f"#SBATCH {word}\n" in script
    assert script.count("--job-name") == script.count("--output") == 1


def test_an_element_of_an_array_runs_its_own_attempt(slurm, tmp_path):
    slurm.answers("sbatch", "40\n")
    executor = SlurmExecutor(arrays=True)
    attempts = [attempt(tmp_path, tag, executor) for tag in ("a", "b")]
    for made in attempts:
        made.script.write_text(f"{made.script.read_text().splitlines()[0]}\necho {made.tag} > ran\nexit 7\n")
    executor.submit(attempts)
    (script,) = tmp_path.glob("arrays/*/array.sh")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    assert subprocess.run(["bash", script], env=environment, cwd=tmp_path, check=False).returncode == 7
    assert (tmp_path / "ran").read_text() == "b\n"


def test_an_array_is_never_longer_than_slurm_takes(slurm, tmp_path, monkeypatch):
    slurm.answers("sbatch", "40\n")
    monkeypatch.setattr("scaling_studies.executors.slurm.MOST_ELEMENTS", 2)
    executor = SlurmExecutor(arrays=True)
    executor.submit([attempt(tmp_path, f"t{number}", executor) for number in range(5)])
    ranges = [path.read_text().split("--array=")[1].split()[0] for path in tmp_path.glob("arrays/*/array.sh")]
    assert ranges == ["0-1", "0-1"]
    assert len(slurm.calls("sbatch")) == 3


def test_a_refusal_carries_slurms_own_words(slurm, tmp_path):
    slurm.answers(
        "sbatch", err="sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n", code=1,
    )  # fmt: skip
    executor = SlurmExecutor()
    with pytest.raises(SubmitError, match="job submission failed: Invalid partition name specified"):
        executor.submit([attempt(tmp_path, "t", executor)])


def test_jobs_taken_before_a_limit_of_the_site_are_kept(slurm, tmp_path):
    executor = SlurmExecutor()
    limit = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"  # manual
    (slurm.folder / "sbatch").write_text(
        f'#!/bin/bash\nif [ "$2" = {tmp_path}/attempts/t0/job.sh ]; then echo 7; exit 0; fi\n'
        f'echo "sbatch: error: Batch job submission failed: {limit}" >&2; exit 1\n'
    )
    assert executor.submit([attempt(tmp_path, f"t{number}", executor) for number in range(3)]) == {"t0": "7"}


def test_a_submission_without_a_job_id_may_have_been_taken(slurm, tmp_path):
    slurm.answers("sbatch", "No reservation for this job\n")
    executor = SlurmExecutor()
    with pytest.raises(SchedulerSilentError, match="sbatch gave no job id: No reservation"):
        executor.submit([attempt(tmp_path, "t", executor)])


@pytest.mark.parametrize(
    "error",
    [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n",  # Toil issue 5459
        # snakemake-executor-plugin-slurm issue 313
        "sbatch: error: Batch job submission failed: Unexpected message received\n",
    ],
)
def test_a_submission_without_an_answer_may_have_been_taken(slurm, tmp_path, error):
    slurm.answers("sbatch", err=error, code=1)
    executor = SlurmExecutor()
    with pytest.raises(SchedulerSilentError):
        executor.submit([attempt(tmp_path, "t", executor)])


def test_jobs_are_found_by_name_and_elements_by_their_map(slurm, tmp_path):
    slurm.answers("sbatch", "40\n")
    executor = SlurmExecutor(arrays=True)
    executor.submit([attempt(tmp_path, tag, executor) for tag in ("a", "b")])
    (script,) = tmp_path.glob("arrays/*/array.sh")
    name = script.parent.name
    rows = [
        "12|c|/elsewhere/job.sh", "13|c|/elsewhere/job.sh", f"40_0|{name}|{script}", f"40_1|{name}|{script}",
        "50_0|janus-array-of-a-removed-folder|/gone/array.sh", "60|x|(null)",
    ]  # fmt: skip
    slurm.answers("squeue", "".join(f"{row}\n" for row in rows))
    assert executor.find(["a", "b", "c", "d"]) == {"a": "40_0", "b": "40_1", "c": "12"}
    assert executor.find([]) == {}
    slurm.answers("squeue")
    rows = [f"12|c|sbatch --parsable {tmp_path}/attempts/c/job.sh", f"40_1|{name}|sbatch --parsable {script}"]
    slurm.answers("sacct", "".join(f"{row}\n" for row in rows))
    assert executor.find(["a", "b", "c"]) == {"b": "40_1", "c": "12"}


def test_cancel(slurm):
    executor = SlurmExecutor()
    executor.cancel([])
    executor.cancel(["12", "40_1"])
    assert slurm.calls("scancel") == [["--quiet", "12", "40_1"]]
    slurm.answers("scancel", err="scancel: error: Kill job error on job id 999: Invalid job id specified\n", code=1)
    executor.cancel(["999"])
    slurm.answers("scancel", err=NO_CONTROLLER.format("scancel"), code=1)
    with pytest.raises(SchedulerSilentError):
        executor.cancel(["12"])


def test_variables_of_the_runners_own_job_and_those_that_hide_jobs_are_not_passed_on(slurm, monkeypatch):
    (slurm.folder / "squeue").write_text(
        f"#!{sys.executable}\nimport json, os\nopen({str(slurm.folder / 'environment')!r}, 'w').write("
        "json.dumps(dict(os.environ)))\n"
    )
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "4000")
    monkeypatch.setenv("SQUEUE_PARTITION", "debug")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    SlurmExecutor().poll(["1"])
    seen = json.loads((slurm.folder / "environment").read_text())
    assert not {"SLURM_MEM_PER_CPU", "SQUEUE_PARTITION"} & set(seen)
    assert seen["SLURM_CONF"] == "/etc/slurm/slurm.conf"
