"""Full-machine lines as records: predicted throughout, perfmodel's numbers, memory respected, read back equal."""

import dataclasses

import pytest

from janus.errors import UserError
from janus.presets import preset
from perfmodel.full_machine import FullMachineAssumptions, predict_weak_scaling
from perfmodel.machine import load_machine
from reports.points import arrange
from scaling_studies.full_machine import fitting, full_machine_records, line_records, strong_units
from scaling_studies.records import DONE, OOM, PREDICTED, from_json, to_json

SIZES = {"lineshine": 8, "cnis": 16}  # nodes


def test_records_say_what_perfmodel_predicts():
    study = predict_weak_scaling(units=[1, 4, 64])
    records = full_machine_records(study)
    assert {record.source for record in records} == {PREDICTED}
    assert [from_json(to_json(record)) for record in records] == records
    (view,) = arrange(records)
    assert not view.is_measured
    for point, given in zip(view.points, study.points, strict=True):
        assert view.efficiency_predicted(point) == pytest.approx(given.efficiency)
        assert point.share_predicted().percent == pytest.approx(given.percent_of_peak)
        assert sum(point.phases_predicted().values()) == pytest.approx(given.step_s)
        assert sum(point.causes_predicted().values()) == pytest.approx(given.step_s)
        assert point.any_record.memory_bytes == pytest.approx(given.memory_bytes, abs=1)


@pytest.fixture(scope="module")
def lines():
    """Small parts of LineShine and of CNIS: the strong lines start with little per unit, which is quick."""
    machines = [dataclasses.replace(load_machine(name), nodes=nodes) for name, nodes in SIZES.items()]
    return {
        (machine.name, mode): line_records(machine, "matris-moe-l", mode)
        for machine in machines for mode in ("weak", "strong")
    }  # fmt: skip


def test_lines_go_from_one_unit_to_the_whole_machine(lines):
    for (name, mode), records in lines.items():
        assert [records[0].ranks, records[-1].ranks] == [8, SIZES[name] * (16 if name == "lineshine" else 8)]
        assert records[-1].nodes == SIZES[name]
        assert {record.mode for record in records} == {mode}
        assert records[-1].state == DONE
        assert len({record.cell_id for record in records}) == len(records)
        for record in records:
            assert record.source == PREDICTED
            assert record.base_ranks == next(one.ranks for one in records if one.state == DONE)
    assert len({records[0].study for records in lines.values()}) == len(lines)


def test_every_new_field_is_filled(lines):
    for records in lines.values():
        for record in records:
            if record.state == DONE:
                assert set(record.workload) == {"FE", "FF", "BF_BE", "optimizer"}
                assert {one.unit for one in record.ceilings} == {"FLOP/s", "byte/s"}
                assert sum(record.memory_parts.values()) == pytest.approx(record.memory_bytes, rel=1e-6)
                assert sum(work.flops for work in record.workload.values()) == pytest.approx(record.executed_flops)
                assert record.wall_s == pytest.approx(record.start_up_s + record.loop_s)
                assert record.facts["assumptions"]


def test_both_lines_meet_at_the_full_machine_up_to_their_settings(lines):
    for name in ("lineshine", "cnis"):
        weak, strong = (lines[name, mode][-1] for mode in ("weak", "strong"))
        assert strong.model_flops == pytest.approx(weak.model_flops)
        assert strong.step_s[0] == pytest.approx(weak.step_s[0])


def test_every_strong_point_does_the_same_science(lines):
    for name in ("lineshine", "cnis"):
        assert len({round(one.model_flops, -12) for one in lines[name, "strong"] if one.state == DONE}) == 1


def test_points_that_do_not_fit_are_kept_with_the_reason():
    machine = load_machine("lineshine")
    small = dataclasses.replace(machine, nodes=8, second_memory_bytes_per_node=16 * 30e9 - 64e9)
    *full, last = line_records(small, "matris-moe-l", "strong")
    assert [record.ranks for record in full] == [8, 32]
    assert (last.state, last.ranks, last.base_ranks) == (DONE, 128, 128)
    for record, each in zip(full, (16, 4), strict=True):
        assert (record.state, record.base_ranks) == (OOM, 128)
        assert f"will not fit: a unit would work on {each} configurations" in record.reason
        assert record.memory_bytes > 30e9
        assert from_json(to_json(record)) == record


def test_the_fastest_settings_with_which_most_points_fit_are_taken():
    model, given = preset("matris-moe-l"), FullMachineAssumptions()
    lineshine, cnis = load_machine("lineshine"), load_machine("cnis")

    def chosen(machine, configurations):
        found = fitting(machine, model, given, configurations)
        return found.recompute, found.configurations_per_micro_batch

    assert chosen(cnis, [1]) == (False, 4)
    assert chosen(cnis, [16, 4, 1]) == (False, 1)
    assert chosen(lineshine, [1]) == (True, 4)
    assert chosen(lineshine, [16, 4, 1]) == (True, 1)


@pytest.mark.parametrize(("most", "units"), [(40960, [1, 10, 40, 160, 640, 2560, 10240, 40960]), (6, [1, 6]), (1, [1])])
def test_strong_points_divide_the_machine(most, units):
    assert strong_units(most) == units


def test_what_cannot_be_predicted_is_refused():
    with pytest.raises(UserError, match="use a matris-moe model"):
        line_records(load_machine("lineshine"), "matris-tiny")
    with pytest.raises(UserError, match="compute rates are n/a"):
        line_records(load_machine("frontier"))
