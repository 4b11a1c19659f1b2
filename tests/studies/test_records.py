"""The record schema: reading back equal, refusing what is damaged, never overwriting."""

import json
from pathlib import Path

import pytest

from janus.errors import UserError
from scaling_studies import atomic
from scaling_studies.records import (
    FAILED,
    SCHEMA,
    Peak,
    RecordFolder,
    cell_hash,
    from_json,
    read_folder,
    to_json,
    write_record,
)
from tests.record_sets import campaign, prediction, record


@pytest.mark.parametrize(
    "original",
    [record(), prediction(0.095), record(state=FAILED, reason="exit code 1", step_s=(), phase_s={}), record(peak=None)],
    ids=["measured", "predicted", "failed", "no peak"],
)
def test_a_record_reads_back_equal(original, tmp_path):
    write_record(tmp_path, original)
    assert read_folder(tmp_path).records == (original,)


def test_measured_and_predicted_share_every_field():
    assert json.loads(to_json(record())).keys() == json.loads(to_json(prediction(0.1))).keys()


def test_a_truncated_file_is_refused_by_name_and_the_others_stay(tmp_path):
    for entry in campaign():
        write_record(tmp_path, entry)
    victim = sorted(tmp_path.glob("*.json"))[2]
    victim.write_text(victim.read_text()[:200])
    found = read_folder(tmp_path)
    assert len(found.records) == len(campaign()) - 1
    ((name, reason),) = found.refused
    assert name == victim.name
    assert "complete JSON" in reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "janus.record/0"}, SCHEMA),
        ({"schema": None}, SCHEMA),
        ({"surprise": 1}, "surprise"),
        ({"ranks": 0}, "ranks 0"),
        ({"step_s": [0.1, 0.0, 0.1]}, "above 0 s"),
        ({"phase_s": {"FE": [0.1]}}, "FE"),
        ({"counts_per_rank": [{"structures": 1}]}, "missing"),
        ({"state": "UNKNOWN"}, "UNKNOWN"),
        ({"state": "FAILED"}, "without a reason"),
        ({"step_s": [], "phase_s": {}}, "without a step time"),
        ({"facts": None}, "field facts is 'None'"),
        ({"attempt": "1"}, "field attempt is '1': it must be of type int"),
        ({"ranks": 2.0}, "of type int"),
        ({"oversubscribed": 1}, "of type bool"),
        ({"step_s": "0.1"}, "of type tuple"),
        ({"peak": 5e10}, "of type Peak | None"),
        ({"nodes": True}, "of type int | None"),
        ({"counts_per_rank": [{"structures": 1, "atoms": 2, "edges": None, "bonds": 0, "angles": 0}]}, "field edges"),
        ({"workload": {"FE": {"flops": "1", "bytes": 1.0}}}, "field flops is '1'"),
        ({"model_flops": float("inf")}, "Infinity is no number"),
    ],
)
def test_a_foreign_or_wrong_record_is_refused_with_the_reason(change, words, tmp_path):
    values = {**json.loads(to_json(record())), **change}
    (tmp_path / "other.json").write_text(json.dumps(values))
    write_record(tmp_path, record(ranks=2))
    found = read_folder(tmp_path)
    assert len(found.records) == 1
    assert found.refused[0][0] == "other.json"
    assert words in found.refused[0][1]


def test_a_copy_of_a_record_does_not_count_twice(tmp_path):
    path = write_record(tmp_path, record())
    (tmp_path / "copy of it.json").write_text(path.read_text())
    found = read_folder(tmp_path)
    assert found.records == (record(),)
    assert found.refused[0][0] == "copy of it.json"
    assert f"belongs into {path.name}" in found.refused[0][1]


def test_a_record_without_a_field_is_refused():
    values = json.loads(to_json(record()))
    del values["ranks"]
    with pytest.raises(UserError, match="ranks"):
        from_json(json.dumps(values))


def test_nan_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        to_json(record(model_flops=float("nan")))


def test_an_attempt_is_never_overwritten_but_a_prediction_may_be(tmp_path):
    write_record(tmp_path, record())
    with pytest.raises(UserError, match="never overwritten"):
        write_record(tmp_path, record(step_s=(0.2, 0.2, 0.2)))
    write_record(tmp_path, prediction(0.1))
    write_record(tmp_path, prediction(0.2))
    assert {entry.step_s[0] for entry in read_folder(tmp_path).records} == {0.1, 0.2}


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    atomic.write_atomically(path, "old")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", disk_full)
    with pytest.raises(UserError, match="No space left"):
        atomic.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_a_missing_folder_is_empty():
    assert read_folder(Path("nowhere")).records == ()


def test_cell_hash_depends_on_content_and_not_on_order():
    assert cell_hash({"a": 1, "b": [1, 2]}) == cell_hash({"b": [1, 2], "a": 1})
    assert cell_hash({"a": 1}) != cell_hash({"a": 2})
    assert len(cell_hash({})) == 12


def test_a_peak_of_several_devices_says_how_many():
    peak = Peak(flops_per_s=5e10, name="matrix product", dtype="float32", source="measured")
    assert peak.times(1) == peak
    assert peak.times(2).flops_per_s == 1e11
    assert peak.times(2).name == "2 x matrix product"
    with pytest.raises(ValueError, match="0 devices"):
        peak.times(0)


def test_files_refused_for_one_reason_are_told_in_one_line():
    folder = RecordFolder(records=(), refused=(("a.json", "too old"), ("b.json", "cut off"), ("c.json", "too old")))
    assert folder.refused_lines == ["refused a.json and 1 more: too old", "refused b.json: cut off"]
