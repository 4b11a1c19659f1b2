"""Begin and end of a job as its script writes them: complete, once, and by the job that began."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from scaling_studies.job_facts import BEGUN_ALREADY, OTHER_JOB, SECOND_START, read_facts


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "study" / "attempts" / "weak-1"
    path.mkdir(parents=True)
    return path


def call(*words: object, limit_bytes: int | None = None, **variables: str) -> subprocess.CompletedProcess:
    """The command as a job script calls it. limit_bytes: largest file it may write, as on a full disk."""

    def set_limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PBS", "LSB"))}
    return subprocess.run(
        [sys.executable, "-m", "scaling_studies.job_facts", *map(str, words)], capture_output=True, text=True,
        env=environment | variables, preexec_fn=set_limit,
    )  # fmt: skip


def test_begin_and_end_say_when_where_and_how(folder):
    assert call("begin", folder, OMP_NUM_THREADS="3").returncode == 0
    assert call("end", folder, 7).returncode == 0
    begin, end = read_facts(folder / "begin.json"), read_facts(folder / "end.json")
    assert begin is not None
    assert end is not None
    assert begin["utc"] <= end["utc"]
    assert begin["monotonic_s"] < end["monotonic_s"]
    assert begin["boot_id"] == end["boot_id"]
    assert begin["environment"]["OMP_NUM_THREADS"] == "3"
    assert "exit_code" not in begin
    assert end["exit_code"] == 7
    assert set(begin["code"]) == {"version", "revision", "diff", "distributions"}


def test_the_libraries_and_changes_are_kept_once_in_the_study(folder):
    second = folder.parent / "weak-2"
    second.mkdir()
    for path in (folder, second):
        assert call("begin", path).returncode == 0
    code = read_facts(folder / "begin.json")["code"]
    assert code == read_facts(second / "begin.json")["code"]
    kept = {path.name: path.read_text() for path in (folder.parents[1] / "code").iterdir()}
    assert "numpy==" in kept[f"{code['distributions']}.txt"]
    assert len(kept) == 1 + (f"{code['diff']}.patch" in kept)


def test_an_attempt_is_not_started_twice(folder):
    call("begin", folder)
    before = (folder / "begin.json").read_text()
    again = call("begin", folder)
    assert again.returncode == BEGUN_ALREADY
    assert SECOND_START in again.stderr
    assert "never started twice" in again.stderr
    assert (folder / "begin.json").read_text() == before


def test_a_job_that_was_refused_cannot_end_the_attempt_of_the_job_at_work(folder):
    call("begin", folder, SLURM_JOB_ID="1", SLURM_JOB_NODELIST="n1")
    other = call("end", folder, BEGUN_ALREADY, SLURM_JOB_ID="2", SLURM_JOB_NODELIST="n1")
    assert other.returncode == OTHER_JOB
    assert "begun by slurm 1" in other.stderr
    assert not (folder / "end.json").exists()
    requeued = call("end", folder, 1, SLURM_JOB_ID="1", SLURM_RESTART_COUNT="1", SLURM_JOB_NODELIST="n1")
    assert requeued.returncode == OTHER_JOB
    assert call("end", folder, 0, SLURM_JOB_ID="1", SLURM_JOB_NODELIST="n1").returncode == 0
    assert read_facts(folder / "end.json")["exit_code"] == 0


def test_an_end_is_kept_as_it_is(folder):
    call("begin", folder)
    call("end", folder, 0)
    assert call("end", folder, 1).returncode == 0
    assert read_facts(folder / "end.json")["exit_code"] == 0


def test_an_end_without_a_begin_is_written(folder):
    assert call("end", folder, 143).returncode == 0
    assert read_facts(folder / "end.json")["exit_code"] == 143


def test_no_room_leaves_no_half_file_and_says_so(folder):
    call("begin", folder)
    full = call("end", folder, 0, limit_bytes=64)
    assert full.returncode == 2
    assert "cannot write" in full.stderr
    assert [path.name for path in folder.iterdir()] == ["begin.json"]


@pytest.mark.parametrize("words", [(), ("begin",), ("start", "x"), ("end", "x", "well")])
def test_mistakes_are_told_in_a_line(words, tmp_path):
    done = call(*words)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_facts_file_is_none(tmp_path):
    path = tmp_path / "begin.json"
    assert read_facts(path) is None
    for text in ("{", "[]", json.dumps({"schema": "janus.job/9"})):
        path.write_text(text)
        assert read_facts(path) is None
