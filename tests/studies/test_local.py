"""The local executor: outcomes, resuming, time-outs. A small executable stands for the trainer, which is too slow."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest

from janus.errors import UserError
from scaling_studies.cells import resolve_cells
from scaling_studies.local import ATTEMPT_FOLDER, LocalExecutor, launch_command, only_runner
from scaling_studies.measured import Host
from scaling_studies.records import DONE, FAILED, INVALID, TIMEOUT, Peak, read_folder
from tests.study_cases import data, strong, weak

CORE = Peak(flops_per_s=1e15, name="matrix product, one core", dtype="float32", source="measured")
TRAINER = (sys.executable, str(Path(__file__).parent / "standin_trainer.py"))


def executor_for(folder: Path, cells, behaviour: str = "good") -> LocalExecutor:
    """An executor whose stand-in trainer behaves as told, on one rank each."""
    for cell in cells:
        place = folder / "data" / cell.id
        place.mkdir(parents=True, exist_ok=True)
        (place / "counts.json").write_text(json.dumps([dataclasses.asdict(entry) for entry in cell.counts_per_rank]))
        (place / "behaviour").write_text(behaviour)
    return LocalExecutor(
        folder=folder, host=Host(name="here", num_cores=2, core_peaks={"float32": CORE}), trainer=TRAINER,
        data_of=lambda cell: folder / "data" / cell.id,
    )  # fmt: skip


@pytest.fixture
def cells():
    study = weak(ranks=(1,), repeats=3, steps=4, warm_up_steps=2, time_out_s=30.0)
    return resolve_cells(study, data()) + resolve_cells(strong(ranks=(1,), repeats=2), data())


def run_all(executor, cells, seed=0):
    return [executor.run(task) for task in executor.wanted(cells, seed)]


def test_a_good_attempt_becomes_a_whole_record(tmp_path, cells):
    executor = executor_for(tmp_path, cells)
    record = next(record for record in run_all(executor, cells) if record.study == "w")
    assert record.state == DONE
    assert len(record.warm_up_step_s) == 2
    assert record.step_s == (0.07,) * 4
    assert record.phase_s["BF_BE"] == (0.03,) * 4
    assert record.counts_per_rank == cells[0].counts_per_rank
    assert record.model_flops > 0
    assert record.executed_flops >= record.model_flops
    assert record.peak == CORE
    assert record.memory_bytes == 1000
    assert record in read_folder(executor.record_folder).records


def test_a_second_run_does_only_what_is_missing(tmp_path, cells):
    executor = executor_for(tmp_path, cells)
    tasks = executor.wanted(cells, 0)
    assert len(tasks) == 5
    for task in tasks[:2]:
        executor.run(task)
    assert len(executor.wanted(cells, 0)) == 3
    run_all(executor, cells)
    assert executor.wanted(cells, 0) == []
    records = read_folder(executor.record_folder).records
    assert len(records) == 5
    assert all(record.state == DONE for record in records)
    assert len({(record.cell_id, record.repeat) for record in records}) == 5


def test_the_order_is_random_by_seed_and_repeatable(tmp_path, cells):
    executor = executor_for(tmp_path, cells)
    orders = [[(task.cell.study.name, task.repeat) for task in executor.wanted(cells, seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_crash_is_a_failed_record_with_the_last_words_and_is_tried_again(tmp_path, cells):
    failures = run_all(executor_for(tmp_path, cells, "crash"), cells)
    assert {record.state for record in failures} == {FAILED}
    assert all("does not fit" in record.reason and "exit code 3" in record.reason for record in failures)
    executor = executor_for(tmp_path, cells, "good")
    again = run_all(executor, cells)
    assert len(again) == 5
    assert {record.state for record in again} == {DONE}
    assert len(read_folder(executor.record_folder).records) == 10


def test_a_hanging_attempt_is_stopped_and_named(tmp_path):
    cells = resolve_cells(weak(ranks=(1,), repeats=1, time_out_s=1.0), data())
    start = time.monotonic()
    (record,) = run_all(executor_for(tmp_path, cells, "hang"), cells)
    assert record.state == TIMEOUT
    assert "no end within 1 s" in record.reason
    assert time.monotonic() - start < 60  # the stand-in sleeps ten minutes


def test_a_torn_run_file_is_a_failure_with_its_reason(tmp_path, cells):
    record = run_all(executor_for(tmp_path, cells, "torn"), cells)[0]
    assert record.state == FAILED
    assert "run.json cannot be read" in record.reason


def test_work_other_than_planned_is_invalid_and_does_not_count(tmp_path, cells):
    executor = executor_for(tmp_path, cells, "wrong_work")
    record = run_all(executor, cells)[0]
    assert record.state == INVALID
    assert "not constant within 1 %" in record.reason
    assert len(executor.wanted(cells, 0)) == 5


def test_a_trainer_that_does_not_start_is_a_failure(tmp_path, cells):
    executor = dataclasses.replace(executor_for(tmp_path, cells), trainer=(sys.executable, "-c", "raise SystemExit(9)"))
    record = executor.run(executor.wanted(cells, 0)[0])
    assert record.state == FAILED
    assert "exit code 9" in record.reason


def test_the_reason_is_what_the_program_said_and_not_the_launchers_banner(tmp_path, cells):
    program = "print('rank 1: out of memory'); print('=' * 40); print('= BAD TERMINATION'); raise SystemExit(9)"
    executor = dataclasses.replace(executor_for(tmp_path, cells), trainer=(sys.executable, "-c", program))
    assert executor.run(executor.wanted(cells, 0)[0]).reason == "exit code 9: rank 1: out of memory"


def test_an_attempt_whose_runner_was_killed_is_listed_and_its_number_not_used_again(tmp_path, cells):
    executor = executor_for(tmp_path, cells)
    task = executor.wanted(cells, 0)[0]
    cell = task.cell
    (tmp_path / ATTEMPT_FOLDER / f"{cell.study.name}-ranks{cell.ranks:05d}-{cell.id}-01").mkdir(parents=True)
    record = executor.run(task)
    assert record.attempt == 2
    lost = next(entry for entry in read_folder(executor.record_folder).records if entry.attempt == 1)
    assert lost.state == FAILED
    assert "stopped before" in lost.reason
    assert executor.record_abandoned(cells) == []


def test_more_ranks_than_cores_are_oversubscribed_and_share_the_host_peak():
    host = Host(name="here", num_cores=2, core_peaks={"float32": CORE})
    assert host.peak_of(4, "float32") == CORE.times(2)
    assert host.peak_of(1, "float32") == CORE
    assert host.peak_of(1, "float64") is None


def test_the_command_starts_ranks_with_mpiexec_and_says_every_setting(tmp_path):
    (cell,) = resolve_cells(weak(ranks=(2,), recompute=True), data())
    words = executor_for(tmp_path, [cell]).command(cell, tmp_path / "run")
    assert Path(words[0]).name == "mpiexec"
    assert words[1:3] == ["-n", "2"]
    assert "--batch.structures=4" in words
    assert "--run.recompute=true" in words
    assert "--run.threads=1" in words


def test_any_command_can_be_started_on_ranks():
    command, environment = launch_command(3, ["train", "--help"])
    assert command[1:] == ["-n", "3", sys.executable, "-m", "janus", "train", "--help"]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert launch_command(1, ["train"])[0] == [sys.executable, "-m", "janus", "train"]


def test_two_runners_on_one_folder_are_refused(tmp_path):
    with only_runner(tmp_path):
        with pytest.raises(UserError, match="another runner"):
            with only_runner(tmp_path):
                pass
    with only_runner(tmp_path):
        pass
