"""Predicted records: perfmodel's own numbers, the same schema and counts as measured ones, failures said."""

import dataclasses

import pytest

from perfmodel.machine import load_machine
from perfmodel.memory import fullest_memory
from perfmodel.step_time import predict
from perfmodel.step_work import RunSettings, step_work
from perfmodel.workload import step_flops
from scaling_studies.cells import resolve_cells
from scaling_studies.predicted import cell_settings, cell_work, predicted_records
from scaling_studies.records import DONE, FAILED, PREDICTED, from_json, to_json
from scaling_studies.study import ExecutorSettings
from tests.host_machine import write_host
from tests.study_cases import data, strong, throughput, weak

SHARDED = {"unit": 2, "shard_degree": 2, "graph_degree": 2}
STUDIES = {
    "weak": weak(ranks=(1, 2, 4)),
    "strong": strong(ranks=(1, 2)),
    "throughput": throughput(),
    "sharded": strong(ranks=(2, 4), **SHARDED),
    "experts": weak(ranks=(2, 4), model="matris-moe-tiny", unit=2, expert_degree=2, recompute=True),
}


@pytest.fixture
def machine(tmp_path):
    return load_machine(write_host(tmp_path / "host.toml"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_gets_a_record_of_perfmodels_own_prediction(name, machine):
    cells = resolve_cells(STUDIES[name], data())
    for cell, record in zip(cells, predicted_records(cells, machine), strict=True):
        study = cell.study
        settings = RunSettings(dtype="float32", max_work=study.max_work, recompute=study.recompute, transport="gloo")
        work = step_work(study.model_config, data(), cell.indices, cell.layout, settings)
        step, memory = predict(work, machine), fullest_memory(work, machine)
        assert (record.source, record.state, record.cell_id) == (PREDICTED, DONE, cell.id)
        assert record.step_s == (step.step_s,)
        assert {phase: values[0] for phase, values in record.phase_s.items()} == step.phase_s
        assert record.memory_bytes == int(memory.resident_bytes)
        assert (record.model_flops, record.executed_flops) == (work.flops_model, work.flops_executed)
        assert record.counts_per_rank == cell.counts_per_rank
        assert from_json(to_json(record)) == record


@pytest.mark.parametrize("name", STUDIES)
def test_seconds_bytes_and_flops_add_up(name, machine):
    for record in predicted_records(resolve_cells(STUDIES[name], data()), machine):
        for phase, causes in record.phase_cause_s.items():
            assert sum(causes.values()) == pytest.approx(record.phase_s[phase][0], abs=1e-9)
        assert sum(values[0] for values in record.phase_s.values()) == pytest.approx(record.step_s[0])
        assert sum(record.memory_parts.values()) == pytest.approx(record.memory_bytes, rel=1e-6)
        assert sum(part.flops for part in record.workload.values()) == pytest.approx(record.executed_flops)
        assert all(part.bytes > 0 for part in record.workload.values())


def test_executed_flops_by_phase_are_the_formulas(machine):
    (cell,) = resolve_cells(weak(ranks=(1,)), data())
    (record,) = predicted_records([cell], machine)
    work = cell_work(cell)
    flops = step_flops(cell.study.model_config, work.ranks[0].micro_batches[0].counts, recompute=False)
    assert record.workload["FE"].flops == pytest.approx(flops.executed["FE"])
    assert record.workload["BF_BE"].flops == pytest.approx(flops.executed["BF"] + flops.executed["BE"])


def test_of_large_jobs_some_units_stand_for_all(machine):
    whole, part = predicted_records(resolve_cells(weak(ranks=(64, 128), structures_per_rank=1), data()), machine)
    assert len(cell_work(resolve_cells(weak(ranks=(128,)), data())[0]).ranks) == 2
    for phase, work in whole.workload.items():
        assert part.workload[phase].flops == pytest.approx(2 * work.flops)
        assert part.workload[phase].bytes == pytest.approx(2 * work.bytes)
    assert part.model_flops == pytest.approx(2 * whole.model_flops)


def test_settings_are_those_the_trainer_would_run_with():
    (cell,) = resolve_cells(weak(ranks=(2,), max_work=5000, recompute=True, transport="mpi"), data())
    settings = cell_settings(cell)
    assert (settings.max_work, settings.recompute, settings.transport) == (5000, True, "mpi")
    assert settings.clips
    assert settings.averages


def test_rows_of_experts_are_known_per_rank_and_add_up_to_those_of_one_rank(machine):
    study = strong(ranks=(1, 2), model="matris-moe-tiny")
    spread = strong(ranks=(2,), model="matris-moe-tiny", unit=2, expert_degree=2)
    (alone, data_parallel), (experts,) = (
        predicted_records(resolve_cells(one, data()), machine) for one in (study, spread)
    )
    (rows,) = alone.expert_rows_per_rank
    counts = alone.counts_per_rank[0]
    assert rows == 2 * 2 * (counts.edges + counts.atoms)  # blocks x top k x tokens of both layers
    assert sum(data_parallel.expert_rows_per_rank) == rows
    assert len(experts.expert_rows_per_rank) == 2
    assert 0 < sum(experts.expert_rows_per_rank) <= rows  # tokens with both experts on one rank go there once
    assert predicted_records(resolve_cells(weak(), data()), machine)[0].expert_rows_per_rank == ()


def test_peaks_and_ceilings_count_the_cores_in_use_and_oversubscription_is_marked(machine):
    records = predicted_records(resolve_cells(weak(ranks=(1, 2, 4)), data()), machine)
    assert [record.peak.flops_per_s for record in records] == [6e10, 12e10, 12e10]
    assert [record.peak.name[:4] for record in records] == ["matr", "2 x ", "2 x "]
    assert [record.oversubscribed for record in records] == [False, False, True]
    for record, cores in zip(records, (1, 2, 2), strict=True):
        assert [(one.unit, one.dtype, one.value) for one in record.ceilings] == [
            ("FLOP/s", "float32", 6e10 * cores), ("byte/s", "any", 1e10 * cores),
        ]  # fmt: skip
        assert all(one.source for one in record.ceilings)


def test_a_machine_without_a_peak_or_start_up_leaves_them_unknown(machine):
    (record,) = predicted_records(resolve_cells(weak(ranks=(1,)), data()), dataclasses.replace(machine, peaks={}))
    assert record.peak is None
    assert [one.unit for one in record.ceilings] == ["byte/s"]
    assert (record.start_up_s, record.wall_s) == (None, None)


def test_the_whole_process_is_start_up_and_all_steps(machine):
    known = dataclasses.replace(machine, start_up_s={1: 3.0})
    (record,) = predicted_records(resolve_cells(weak(ranks=(1,), warm_up_steps=2, steps=5), data()), known)
    assert record.start_up_s == 3.0
    assert record.loop_s == pytest.approx(7 * record.step_s[0])
    assert record.wall_s == pytest.approx(3.0 + 7 * record.step_s[0])


def test_a_machine_of_the_catalogue_has_a_device_per_rank():
    executor = ExecutorSettings(kind="slurm", ranks_per_node=16)
    machine = load_machine("lineshine")
    cells = resolve_cells(weak(ranks=(8, 32), model="matris-moe-tiny"), data(), executor=executor)
    for record in predicted_records(cells, machine):
        assert record.peak.flops_per_s == record.ranks * machine.peaks["float32"].flops_per_s
        assert record.nodes == (1 if record.ranks == 8 else 2)
        assert not record.oversubscribed
        assert record.facts["assumptions"]


def test_what_cannot_be_predicted_is_a_failed_record_with_the_reason(machine):
    alone = dataclasses.replace(machine, rates=machine.rates[:1])
    (record,) = predicted_records(resolve_cells(weak(ranks=(2,)), data()), alone)
    assert record.state == FAILED
    assert "all-reduce" in record.reason
