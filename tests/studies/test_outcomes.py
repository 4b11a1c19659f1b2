"""What became of a job: the right state and words a person understands."""

import json
import platform
from pathlib import Path

import pytest

from scaling_studies import provenance
from scaling_studies.cells import resolve_cells
from scaling_studies.executors.base import ENDED, UNKNOWN, VERDICT_FILE, AttemptJob, JobStatus
from scaling_studies.executors.scripts import attempt_script
from scaling_studies.launch_scripts import Job
from scaling_studies.measured import Host, UnreadableRun, measured_record
from scaling_studies.outcomes import final_record, has_begun, is_settled
from scaling_studies.records import DONE, FAILED, INVALID, OOM, TIMEOUT, from_json, to_json
from tests.host_machine import write_host
from tests.studies.attempt_folders import CODE_VERSION, change_json, running_record, write_attempt
from tests.study_cases import data, weak

CELL = resolve_cells(weak(ranks=(1,)), data(), code_version=CODE_VERSION)[0]
ENDED_SOMEHOW, LOST = JobStatus(state=ENDED), JobStatus(state=UNKNOWN)


def unreadable(record, folder):
    raise UnreadableRun("the run left no run.json")


def ended(folder: Path, *, code: int | None, log: str = "", status: JobStatus = ENDED_SOMEHOW, verdict=None):
    """Final record of an attempt whose folder holds this."""
    folder.mkdir(exist_ok=True)
    begin = {"schema": "janus.job/1", "event": "begin", "utc": "2026-11-20T10:00:00+00:00"}
    (folder / "begin.json").write_text(json.dumps(begin))
    if code is not None:
        end = begin | {"event": "end", "utc": "2026-11-20T10:01:00+00:00", "exit_code": code}
        (folder / "end.json").write_text(json.dumps(end))
    if verdict:
        (folder / VERDICT_FILE).write_text(json.dumps({"outcome": verdict[0], "reason": verdict[1]}))
    (folder / "log.txt").write_text(log)
    return final_record(running_record(CELL), folder, status, unreadable)


def test_a_setup_line_that_fails_is_told_from_the_program(tmp_path):
    end = {"schema": "janus.job/1", "event": "end", "utc": "2026-11-20T10:01:00+00:00", "exit_code": 1}
    (tmp_path / "end.json").write_text(json.dumps(end))
    (tmp_path / "log.txt").write_text("module: command not found\n")
    record = final_record(running_record(CELL), tmp_path, ENDED_SOMEHOW, unreadable)
    assert record.state == FAILED
    told = "exit code 1, before the program began (the setup lines of job.sh): module: command not found"
    assert record.reason == told


def slurm(outcome, reason):
    return JobStatus(state=ENDED, outcome=outcome, reason=reason)


AGAIN = "job_facts: w-ranks00001-attempt01 has begun already (2026-11-20T10:00:00+00:00, slurm 7 start 0): ...\n"
BANNER = "rank 1: the graph of structure 3 does not fit\n" + "=" * 40 + "\n= BAD TERMINATION\n"


@pytest.mark.parametrize(
    ("found", "state", "words"),
    [
        ({"code": 0}, FAILED, "the program ended well, but the run left no run.json"),
        ({"code": 3, "log": BANNER}, FAILED, "exit code 3: rank 1: the graph of structure 3 does not fit"),
        ({"code": 9}, FAILED, "exit code 9: it printed nothing"),
        ({"code": 137, "log": "Killed\n"}, OOM, "exit code 137, killed as the memory killer does it: Killed"),
        ({"code": 1, "log": "torch.OutOfMemoryError: CUDA out of memory. Tried\n"}, OOM, "exit code 1: torch.OutOf"),
        ({"code": 1, "status": slurm(OOM, "out of memory")}, OOM, "out of memory; see"),
        ({"code": 143, "status": slurm(TIMEOUT, "time limit of the job")}, TIMEOUT, "time limit of the job; see"),
        ({"code": 143, "verdict": (TIMEOUT, "no end within 9 s, stopped")}, TIMEOUT, "no end within 9 s, stopped; see"),
        ({"code": 143, "status": slurm(FAILED, "preempted"), "log": "step 3\n"}, FAILED, "preempted: step 3"),
        ({"code": 3, "status": slurm(FAILED, "exit code 3"), "log": "no data\n"}, FAILED, "exit code 3: no data"),
        ({"code": None, "status": slurm(FAILED, "a node failed"), "log": "step 3\n"}, FAILED, "a node failed: step 3"),
        ({"code": None}, FAILED, "job lost: it was killed, it had begun and left no end (job id here:1): it printed"),
        ({"code": None, "status": LOST}, FAILED, "job lost: local does not know it any more, it had begun"),
        ({"code": None, "status": slurm(DONE, "")}, FAILED, "left no end (local says it ended, it had begun)"),
        ({"code": None, "status": slurm(FAILED, "exit code 3"), "log": AGAIN}, FAILED,
         "requeued: local started job here:1 a second time, and an attempt is started once only"),
    ],
)  # fmt: skip
def test_each_end_has_its_state_and_reason(tmp_path, found, state, words):
    record = ended(tmp_path / "attempt", **found)
    assert record.state == state
    assert words in record.reason
    assert record.started_at == "2026-11-20T10:00:00+00:00"
    assert record.ended_at == (None if found["code"] is None else "2026-11-20T10:01:00+00:00")


def test_of_a_failure_is_kept_where_it_ran_as_job_run_and_script_tell_it(tmp_path):
    folder = write_attempt(tmp_path / "study", CELL)
    change_json(folder / "run" / "run.json", status="failed")
    change_json(folder / "begin.json", node_list="n[1-2]", job_id="17", host="n1")
    change_json(folder / "end.json", exit_code=1)
    job = Job(name="a", command=("janus", "train"), ranks=2, nodes=2, ranks_per_node=1, threads=1, time_limit_s=60.0)
    (folder / "job.sh").write_text(attempt_script("slurm", AttemptJob(tag="a", folder=folder, job=job)))
    submitted = running_record(CELL, provenance={"code_version": CODE_VERSION, "seeds": {"order": 4}})
    known = final_record(submitted, folder, ENDED_SOMEHOW, unreadable).provenance
    assert (known["node_list"], known["job_id"], known["host"]) == ("n[1-2]", "17", "n1")
    assert known["launch_command"].startswith("srun --cpus-per-task=1 ")
    assert known["launch_command"].endswith("janus train")
    assert (known["code_revision"], known["code_version"]) == ("abc1234", CODE_VERSION)
    assert known["placement"] == ["here cores 0-1 cpu"]
    assert known["seeds"]["order"] == 4
    assert provenance.missing(known) == []  # the run had begun: nothing is unknown


def test_of_a_job_that_never_began_what_is_not_known_is_named(tmp_path):
    submitted = running_record(CELL, job_id="17", provenance={"code_version": "0.1.0+abc"})
    status = JobStatus(state=ENDED, outcome=FAILED, reason="a node failed", nodes="n[1-2]")
    failed = final_record(submitted, tmp_path, status, unreadable)
    assert failed.reason == "a node failed: it printed nothing"
    known = failed.provenance
    assert (known["node_list"], known["job_id"], known["code_version"]) == ("n[1-2]", "17", "0.1.0+abc")
    assert {known[name] for name in ("host", "code_revision", "clocks", "launch_command", "start")} == {"unknown"}
    assert set(provenance.missing(known)) == set(provenance.REQUIRED) - {"node_list", "job_id", "code_version"}
    assert from_json(to_json(failed)) == failed


@pytest.mark.parametrize("torn", ['{"provenance": 7}', '{"provenance": {"host_facts": [1]}}', "{", "[]"])
def test_a_run_that_was_cut_off_leaves_the_facts_of_its_job(tmp_path, torn):
    folder = write_attempt(tmp_path / "study", CELL)
    (folder / "run" / "run.json").write_text(torn)
    (folder / "run" / "config.toml").write_text("[run]\nvalue = nan\n")
    (folder / "end.json").unlink()
    failed = final_record(running_record(CELL), folder, slurm(FAILED, "a node failed"), unreadable)
    assert failed.provenance["host"] == platform.node()
    assert failed.provenance["code_revision"] == "abc1234"
    assert failed.provenance["placement"] == "unknown"
    assert from_json(to_json(failed)).provenance == failed.provenance


def test_a_long_log_is_read_from_its_end(tmp_path):
    record = ended(tmp_path / "attempt", code=1, log="out of memory\n" + "step\n" * 50_000 + "disk broke\n")
    assert record.reason == "exit code 1: disk broke"
    assert record.state == FAILED


def test_an_end_is_waited_for_unless_somebody_tells_it(tmp_path):
    assert not is_settled(tmp_path, LOST)
    assert not is_settled(tmp_path, ENDED_SOMEHOW)
    assert not is_settled(tmp_path, slurm(DONE, ""))  # its files may still be on their way
    assert is_settled(tmp_path, slurm(FAILED, "a node failed"))
    assert not has_begun(tmp_path)
    (tmp_path / "end.json").write_text("{}")
    assert is_settled(tmp_path, LOST)
    assert has_begun(tmp_path)


@pytest.fixture
def host(tmp_path):
    from perfmodel.machine import load_machine

    return Host(machine=load_machine(str(write_host(tmp_path / "machine.toml"))))


def measured(study: Path, host: Host):
    folder = study / "attempts" / running_record(CELL).tag
    return final_record(
        running_record(CELL), folder, ENDED_SOMEHOW, lambda record, place: measured_record(CELL, record, place, host)
    )


def test_a_good_run_is_measured(tmp_path, host):
    write_attempt(tmp_path / "study", CELL)
    record = measured(tmp_path / "study", host)
    assert (record.state, record.reason) == (DONE, "")
    assert len(record.step_s) == CELL.study.steps


def test_a_clock_that_went_backwards_makes_the_attempt_invalid_by_name(tmp_path, host):
    folder = write_attempt(tmp_path / "study", CELL)
    change_json(folder / "begin.json", utc="2026-11-20T10:00:00+00:00")
    change_json(folder / "end.json", utc="2026-11-20T09:00:00+00:00")
    record = measured(tmp_path / "study", host)
    assert record.state == INVALID
    assert "clock" in record.reason
    assert "went backwards" in record.reason
    assert record.wall_s is None


def test_a_torn_run_is_a_failure_with_its_reason(tmp_path, host):
    folder = write_attempt(tmp_path / "study", CELL)
    text = (folder / "run" / "run.json").read_text()
    (folder / "run" / "run.json").write_text(text[: len(text) // 2])
    record = measured(tmp_path / "study", host)
    assert record.state == FAILED
    assert "the program ended well, but run.json cannot be read" in record.reason
