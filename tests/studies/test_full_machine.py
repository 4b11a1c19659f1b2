"""The full-machine study as records: predicted throughout, the same numbers as perfmodel's, read back equal."""

import pytest

from perfmodel.full_machine import predict_weak_scaling
from reports.points import arrange
from scaling_studies.full_machine import full_machine_records
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


def test_the_last_point_is_the_full_machine():
    last = full_machine_records()[-1]
    assert last.machine == "lineshine"
    assert last.ranks == 20_480 * 16
    assert last.facts["nodes"] == 20_480
    assert last.facts["assumptions"]
