"""The full-machine study as records: predicted throughout, the same numbers as perfmodel's, read back equal."""

import pytest

from perfmodel.full_machine import predict_weak_scaling
from reports.points import arrange
from scaling_studies.full_machine import all_full_machine_records, full_machine_records
from scaling_studies.records import PREDICTED, from_json, to_json


def test_records_say_what_perfmodel_predicts():
    study = predict_weak_scaling()
    records = full_machine_records(study)
    assert {record.source for record in records} == {PREDICTED}
    assert [from_json(to_json(record)) for record in records] == records
    (view,) = arrange(records)
    assert not view.is_measured
    for point, given in zip(view.points, study.points, strict=True):
        assert view.efficiency_predicted(point) == pytest.approx(given.efficiency)
        assert point.share_predicted().percent == pytest.approx(given.percent_of_peak)
        assert sum(point.phases_predicted().values()) == pytest.approx(given.step_s)


def test_weak_and_strong_lines_end_at_the_full_machines():
    records = all_full_machine_records()
    views = {view.name: view for view in arrange(records)}
    assert set(views) == {
        "full-machine", "full-machine-strong", "full-machine-cnis", "full-machine-cnis-strong",
    }  # fmt: skip
    for name, view in views.items():
        last = view.points[-1].any_record
        assert last.ranks == (5_632 * 8 if "cnis" in name else 20_480 * 16)
        assert last.facts["nodes"] == (5_632 if "cnis" in name else 20_480)
        assert last.facts["assumptions"]
        assert last.mode == view.mode == ("strong" if "strong" in name else "weak")
        assert last.start_up_s > 100
    assert len({record.cell_id for record in records}) == len(records)
