"""Attempts: claimed by one, moved on legally, never written again once they have ended."""

import dataclasses
import multiprocessing
import resource
from pathlib import Path

import pytest

from janus.errors import UserError
from scaling_studies.attempts import AttemptMovedError, Attempts
from scaling_studies.cells import resolve_cells
from scaling_studies.records import DONE, FAILED, FINAL_STATES, PLANNED, RUNNING, SUBMITTED, Record
from tests.studies.file_scheduler import work_for
from tests.study_cases import data, weak

(CELL,) = resolve_cells(weak(ranks=(2,)), data())


def wanted(repeat: int = 0) -> Record:
    return work_for([CELL]).planned(CELL, repeat)


@pytest.fixture
def attempts(tmp_path) -> Attempts:
    found = Attempts(tmp_path)
    found.read()
    return found


def test_a_claim_is_on_disk_with_its_folder(attempts):
    record = attempts.claim(wanted())
    assert (record.state, record.attempt) == (PLANNED, 1)
    assert attempts.folder_of(record).is_dir()
    assert Attempts(attempts.folder).read() == (record,)
    assert attempts.claim(wanted(1)).attempt == 2


def test_a_claim_on_a_stale_view_gets_nothing(attempts):
    other = Attempts(attempts.folder)
    other.read()
    assert attempts.claim(wanted()).attempt == 1
    assert other.claim(wanted()) is None
    other.read()
    assert other.claim(wanted()).attempt == 2


def claim_together(folder: Path, barrier, results) -> None:
    own = Attempts(folder)
    own.read()
    barrier.wait()
    results.put(own.claim(wanted()) is not None)


def test_of_many_processes_that_claim_at_once_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    claimers = [context.Process(target=claim_together, args=(tmp_path, barrier, results)) for _ in range(4)]
    for claimer in claimers:
        claimer.start()
    won = [results.get(timeout=30) for _ in claimers]
    for claimer in claimers:
        claimer.join()
    assert sorted(won) == [False, False, False, True]
    assert len(Attempts(tmp_path).read()) == 1


def test_the_life_of_an_attempt_is_one_file(attempts):
    record = attempts.advance(attempts.claim(wanted()), SUBMITTED, job_id="17")
    record = attempts.advance(record, RUNNING, started_at="2026-11-20T10:00:00+00:00")
    assert attempts.open() == (record,)
    done = attempts.advance(record, DONE, step_s=(0.1,))
    assert attempts.open() == ()
    assert attempts.read() == (done,)
    assert [path.name for path in attempts.record_folder.glob("*.json")] == [done.file_name]


@pytest.mark.parametrize("state", FINAL_STATES)
def test_a_final_state_is_never_written_again(attempts, state):
    record = attempts.advance(attempts.claim(wanted()), SUBMITTED)
    final = attempts.advance(record, state, reason="so it was", step_s=(0.1,))
    with pytest.raises(AttemptMovedError, match=f"is {state} by now"):
        attempts.advance(record, RUNNING)
    with pytest.raises(AttemptMovedError):
        attempts.advance(final, DONE, step_s=(0.2,))
    assert attempts.read() == (final,)


def test_an_attempt_does_not_go_back(attempts):
    record = attempts.advance(attempts.claim(wanted()), SUBMITTED)
    with pytest.raises(AttemptMovedError, match="cannot become PLANNED"):
        attempts.advance(record, PLANNED)


def test_a_truncated_record_is_named_and_its_number_not_used_again(attempts):
    record = attempts.claim(wanted())
    path = attempts.record_folder / record.file_name
    path.write_text(path.read_text()[:200])
    assert attempts.read() == ()
    ((name, reason),) = attempts.refused()
    assert name == record.file_name
    assert "not a complete JSON document" in reason
    assert attempts.claim(wanted()).attempt == 2
    with pytest.raises(UserError, match=record.file_name):
        attempts.advance(record, SUBMITTED)


def test_the_number_of_a_folder_without_a_record_is_not_used_again(attempts):
    record = attempts.claim(wanted())
    (attempts.record_folder / record.file_name).unlink()
    attempts.read()
    assert attempts.claim(wanted()).attempt == 2


def test_a_full_disk_leaves_the_old_state_and_says_so(attempts):
    record = attempts.claim(wanted())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # the system refuses to write more: a real refusal
    try:
        with pytest.raises(UserError, match=r"cannot write .*free space"):
            attempts.advance(record, SUBMITTED, job_id="17")
        with pytest.raises(UserError, match=r"cannot write .*free space"):
            attempts.claim(wanted(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Attempts(attempts.folder).read() == (record,)
    assert [path.name for path in attempts.record_folder.iterdir() if path.suffix in (".json", ".tmp")] == [
        record.file_name
    ]
    attempts.read()
    assert attempts.advance(record, SUBMITTED, job_id="17").job_id == "17"


def test_only_changed_files_are_read_again(attempts):
    record = attempts.claim(wanted())
    first = attempts.read()
    assert attempts.read()[0] is first[0]
    attempts.advance(record, FAILED, reason="so it was")
    assert attempts.read()[0].state == FAILED
    assert dataclasses.replace(attempts.read()[0], state=PLANNED, reason="") == record
