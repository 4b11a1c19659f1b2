"""Measured records from attempts' folders: every field, and every reason why a finished run does not count."""

from __future__ import annotations

import dataclasses
import datetime
import json
import statistics
from pathlib import Path

import pytest

from perfmodel.machine import load_machine
from scaling_studies.attempt_files import CLOCK_SLACK_S
from scaling_studies.cells import Cell, resolve_cells
from scaling_studies.measured import Host, UnreadableRun, measured_record
from scaling_studies.predicted import predicted_record
from scaling_studies.records import DONE, INVALID, Record, from_json, to_json
from tests.host_machine import write_host
from tests.studies.attempt_folders import CODE_VERSION, PHASES, STEP_S, change_json, running_record, write_attempt
from tests.study_cases import data, weak


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Host:
    return Host(machine=load_machine(write_host(tmp_path_factory.mktemp("machine") / "host.toml")))


def cell_of(ranks: int = 2, **changes) -> Cell:
    return resolve_cells(weak(ranks=(ranks,), **changes), data(), code_version=CODE_VERSION)[0]


def measure(study: Path, cell: Cell, host: Host, change=lambda folder: None) -> Record:
    folder = write_attempt(study, cell)
    change(folder)
    return measured_record(cell, running_record(cell), folder, host)


def change_run(**changes):
    return lambda folder: change_json(folder / "run" / "run.json", **changes)


def change_steps(change):
    """Change the last line of steps.jsonl."""

    def apply(folder: Path) -> None:
        path = folder / "run" / "steps.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return apply


def test_a_good_attempt_fills_every_field(tmp_path, host):
    cell = cell_of()
    record = measure(tmp_path, cell, host)
    assert (record.state, record.reason) == (DONE, "")
    assert (record.job_id, record.submitted_at, record.nodes) == ("here:1", "2026-11-20T10:00:00+00:00", 1)
    assert record.started_at is not None
    assert record.started_at <= record.ended_at
    assert record.warm_up_step_s == (STEP_S,) * 2
    assert record.step_s == (STEP_S,) * 8
    assert record.phase_s["BF_BE"] == (PHASES["BF_BE"],) * 8
    assert record.counts_per_rank == cell.counts_per_rank
    assert (record.start_up_s, record.loop_s, record.wall_s, record.memory_bytes) == (1.0, 0.5, 1.75, 1001)
    assert record.rank_times.step_s == pytest.approx((0.07, 0.069))
    assert record.rank_times.wait_s == pytest.approx((0.001, 0.0))
    assert record.rank_times.busy_s == pytest.approx((0.069, 0.069))
    assert record.peak.flops_per_s == 2 * host.machine.peaks["float32"].flops_per_s
    assert {ceiling.unit for ceiling in record.ceilings} == {"FLOP/s", "byte/s"}
    assert record.clock
    assert not record.oversubscribed
    assert from_json(to_json(record)) == record


def test_measured_work_is_that_of_the_prediction(tmp_path, host):
    cell = cell_of()
    record, predicted = measure(tmp_path, cell, host), predicted_record(cell, host.machine)
    assert predicted.state == DONE
    for name in ("model_flops", "executed_flops", "workload", "peak", "ceilings", "expert_rows_per_rank", "cell_id"):
        assert getattr(record, name) == getattr(predicted, name), name


def test_work_that_the_data_does_not_tell_is_not_known(tmp_path, host):
    study = weak(ranks=(2,), model="matris-moe-tiny", unit=2, expert_degree=2)
    bare = dataclasses.replace(data(), elements=None)  # which experts compute follows from the elements
    cell = resolve_cells(study, bare, code_version=CODE_VERSION)[0]
    folder = write_attempt(tmp_path, cell)
    record = measured_record(cell, running_record(cell), folder, host)
    assert (record.state, record.reason) == (DONE, "")
    assert (record.model_flops, record.workload) == (None, {})


def test_the_studys_clock_decides_what_a_step_takes(tmp_path, host):
    mean = measure(tmp_path, cell_of(clock="mean_rank"), host)
    assert mean.step_s == pytest.approx((STEP_S - 0.0005,) * 8)
    assert "mean over the ranks" in mean.clock


def test_more_ranks_than_cores_are_oversubscribed(tmp_path, host):
    record = measure(tmp_path, cell_of(4), host)
    assert record.oversubscribed
    assert record.peak.flops_per_s == 2 * host.machine.peaks["float32"].flops_per_s  # of the cores there are


def _slow_down(lines):
    for number, line in enumerate(lines):
        for entry in line["ranks"]:
            entry["step_s"] *= 1 + 0.05 * number


def test_a_trend_after_warm_up_is_flagged_and_counts(tmp_path, host):
    record = measure(tmp_path, cell_of(), host, change_steps(_slow_down))
    assert record.state == DONE
    assert record.facts["steps after warm-up"].startswith("rising by")
    assert measure(tmp_path / "other", cell_of(), host).facts["steps after warm-up"].startswith("no trend")


def _break_loss(lines):
    lines[-1]["loss"] = float("nan")


def _more_work(lines):
    lines[-1]["ranks"][0]["angles"] *= 2


def _no_work(lines):
    lines[-1]["ranks"][0]["edges"] = float("nan")


def _no_time(lines):
    for entry in lines[-1]["ranks"]:
        entry["step_s"] = 0.0


def _no_number(lines):
    lines[0]["ranks"][1]["step_s"] = float("nan")


def _other_setting(folder: Path) -> None:
    path = folder / "run" / "config.toml"
    path.write_text(path.read_text().replace("recompute = false", "recompute = true"))


def _other_model(folder: Path) -> None:
    path = folder / "run" / "config.toml"
    path.write_text(path.read_text().replace("width = 32", "width = 64", 1))


def _other_code(folder: Path) -> None:
    provenance = json.loads((folder / "run" / "run.json").read_text())["provenance"]
    change_json(folder / "run" / "run.json", provenance={**provenance, "code_version": "0.1.0+00000000"})


def _clock_set_back(folder: Path) -> None:
    begin = json.loads((folder / "begin.json").read_text())
    before = datetime.datetime.fromisoformat(begin["utc"]) - datetime.timedelta(hours=1)
    change_json(folder / "end.json", utc=before.isoformat())


BROKEN = [
    (change_run(world_size=1), "ran on 1 ranks, the cell has 2"),
    (change_steps(lambda lines: lines.pop()), "recorded 9 steps, the study asks for 10"),
    (change_steps(_more_work), "not constant within 1 %"),
    (change_steps(_no_work), "work of a rank in step 9 is nan"),
    (change_steps(lambda lines: lines[-1]["ranks"].pop()), "step 9 reports 1 ranks, the cell has 2"),
    (change_steps(_break_loss), "loss of step 9 is not finite"),
    (change_steps(_no_time), "step 9 took 0, 0 s"),
    (change_steps(_no_number), "step 0 took 0.07, nan s"),
    (change_run(sent_last_step=[[], []]), "no collective on record"),
    (_other_setting, "setting run.recompute of the run is True, the cell has False"),
    (_other_model, "the run trained another model than matris-tiny"),
    (_other_code, "ran code version 0.1.0+00000000, the cell has"),
    (_clock_set_back, "went backwards"),
    (lambda folder: (folder / "begin.json").unlink(), "provenance is missing: code_revision"),
    (lambda folder: (folder / "end.json").write_text("{"), "provenance is missing: end"),
    (lambda folder: change_json(folder / "end.json", utc=17), "provenance is missing: end"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_finished_run_that_may_not_count_is_invalid_and_says_why(tmp_path, host, change, reason):
    record = measure(tmp_path, cell_of(), host, change)
    assert record.state == INVALID
    assert reason in record.reason
    assert from_json(to_json(record)) == record


def test_every_reason_is_told_not_only_the_first(tmp_path, host):
    def change(folder: Path) -> None:
        change_steps(_break_loss)(folder)
        change_run(sent_last_step=[])(folder)

    reason = measure(tmp_path, cell_of(), host, change).reason
    assert "not finite" in reason
    assert "no collective" in reason


def test_after_a_clock_went_backwards_no_duration_is_told(tmp_path, host):
    record = measure(tmp_path, cell_of(), host, _clock_set_back)
    assert record.ended_at < record.started_at
    assert record.wall_s is None
    assert "job_s" not in record.facts


def test_a_clock_set_forward_changes_no_duration(tmp_path, host):
    def set_forward(folder: Path) -> None:
        end = json.loads((folder / "end.json").read_text())
        later = datetime.datetime.fromisoformat(end["utc"]) + datetime.timedelta(seconds=100 * CLOCK_SLACK_S)
        change_json(folder / "end.json", utc=later.isoformat())

    record = measure(tmp_path, cell_of(), host, set_forward)
    assert record.state == DONE
    assert "was set by +200.0 s" in record.facts["clock"]
    assert record.facts["job_s"] < 100 * CLOCK_SLACK_S


def test_ranks_that_divide_a_batch_may_share_its_work_unevenly(tmp_path, host):
    cell = cell_of(2, unit=2, graph_degree=2)
    first, second = cell.counts_per_rank
    shift = first.angles // 3
    uneven = [dataclasses.replace(first, angles=first.angles - shift),
              dataclasses.replace(second, angles=second.angles + shift)]  # fmt: skip
    folder = write_attempt(tmp_path, cell, counts=uneven)
    record = measured_record(cell, running_record(cell), folder, host)
    assert (record.state, record.reason) == (DONE, "")
    assert record.counts_per_rank == tuple(uneven)
    lost = [uneven[0], dataclasses.replace(second, angles=second.angles // 2)]
    folder = write_attempt(tmp_path / "lost", cell, counts=lost)
    assert "not constant" in measured_record(cell, running_record(cell), folder, host).reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "run" / "run.json").unlink(), "the run left no run.json"),
        (lambda folder: (folder / "run" / "run.json").write_text('{"schema": "janus'), "run.json cannot be read"),
        (change_run(schema="janus.run/9"), "this program reads"),
        (change_run(status="interrupted"), "status 'interrupted'"),
        (lambda folder: (folder / "run" / "steps.jsonl").write_text('{"step": 0}\n{"st'), "steps.jsonl cannot be read"),
        (lambda folder: (folder / "run" / "config.toml").unlink(), "config.toml"),
        (change_steps(lambda lines: lines[3].pop("ranks")), "lack what a record needs"),
        (change_steps(lambda lines: lines[3]["ranks"][0]["phase_s"].update(FE=float("nan"))), "not JSON compliant"),
        (change_run(peak_memory_bytes=[float("inf")]), "cannot convert float infinity"),
        (change_run(layout={"unit": float("nan")}), "not JSON compliant"),
        (lambda folder: change_json(folder / "begin.json", job_id=float("nan")), "not JSON compliant"),
    ],
)
def test_a_folder_that_gives_no_record_is_refused_by_reason(tmp_path, host, change, reason):
    with pytest.raises(UnreadableRun, match=reason):
        measure(tmp_path, cell_of(), host, change)


def test_medians_of_ranks_are_over_steps_after_warm_up(tmp_path, host):
    times = [9.0, 9.0, 0.3, 0.1, 0.2, 0.5, 0.4, 0.2, 0.1, 0.6]

    def change(lines):
        for line, step_s in zip(lines, times, strict=True):
            for entry in line["ranks"]:
                entry["step_s"] = step_s

    record = measure(tmp_path, cell_of(), host, change_steps(change))
    assert record.rank_times.step_s == pytest.approx((statistics.median(times[2:]),) * 2)
