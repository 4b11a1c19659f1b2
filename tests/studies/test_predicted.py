"""Predicted records: the same schema and counts as the measured ones, failures said and not hidden."""

import dataclasses

import pytest

from perfmodel.machine import load_machine
from scaling_studies.cells import resolve_cells
from scaling_studies.predicted import predicted_records
from scaling_studies.records import DONE, FAILED, PREDICTED, from_json, to_json
from tests.host_machine import write_host
from tests.study_cases import data, strong, weak


@pytest.fixture
def machine(tmp_path):
    return load_machine(write_host(tmp_path / "host.toml"))


def test_every_cell_gets_a_record_that_reads_back_equal(machine):
    cells = resolve_cells(weak(ranks=(1, 2, 4)), data()) + resolve_cells(strong(ranks=(1, 2)), data())
    records = predicted_records(cells, machine)
    assert [record.cell_id for record in records] == [cell.id for cell in cells]
    for cell, record in zip(cells, records, strict=True):
        assert (record.source, record.state, record.attempt) == (PREDICTED, DONE, 0)
        assert record.counts_per_rank == cell.counts_per_rank
        assert sum(values[0] for values in record.phase_s.values()) == pytest.approx(record.step_s[0])
        assert from_json(to_json(record)) == record


def test_the_peak_counts_the_cores_in_use_and_oversubscription_is_marked(machine):
    records = predicted_records(resolve_cells(weak(ranks=(1, 2, 4)), data()), machine)
    assert [record.peak.flops_per_s for record in records] == [6e10, 12e10, 12e10]
    assert [record.peak.name[:4] for record in records] == ["matr", "2 x ", "2 x "]
    assert [record.oversubscribed for record in records] == [False, False, True]


def test_a_machine_without_a_peak_gives_none(machine):
    (record,) = predicted_records(resolve_cells(weak(ranks=(1,)), data()), dataclasses.replace(machine, peaks={}))
    assert record.peak is None


def test_what_cannot_be_predicted_is_a_failed_record_with_the_reason(machine):
    alone = dataclasses.replace(machine, rates=machine.rates[:1])
    (record,) = predicted_records(resolve_cells(weak(ranks=(2,)), data()), alone)
    assert record.state == FAILED
    assert "all-reduce" in record.reason
