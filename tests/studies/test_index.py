"""The index: a row per record, made again from the JSON files at any time."""

import json

import pytest

from janus.cli.main import main
from janus.errors import UserError
from scaling_studies.index import index_rows, write_index
from scaling_studies.records import RECORD_FOLDER, write_record
from tests.record_sets import campaign

pytest.importorskip("pyarrow")


def test_every_record_is_a_row_with_its_numbers(tmp_path):
    import pandas

    records = campaign()
    table = pandas.read_parquet(write_index(tmp_path, records))
    assert len(table) == len(records)
    for record, (_, row) in zip(records, table.iterrows(), strict=True):
        assert (row["file"], row["state"], row["ranks"]) == (record.file_name, record.state, record.ranks)
        assert list(row["step_s"]) == list(record.step_s)
        assert json.loads(row["layout"]) == record.layout


def test_it_can_be_deleted_and_made_again(tmp_path, capsys):
    for record in campaign():
        write_record(tmp_path / RECORD_FOLDER, record)
    (tmp_path / RECORD_FOLDER / "torn.json").write_text("{")
    assert main(["study", "index", str(tmp_path)]) == 0
    first = (tmp_path / "index.parquet").read_bytes()
    (tmp_path / "index.parquet").unlink()
    assert main(["study", "index", str(tmp_path)]) == 0
    assert (tmp_path / "index.parquet").read_bytes() == first
    assert "refused torn.json" in capsys.readouterr().out


def test_phases_of_any_record_are_columns():
    rows = index_rows(campaign())
    names = {name for record in campaign() for name in record.phase_s}
    assert all(f"phase_{name}_s" in row for row in rows for name in names)


def test_an_empty_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no record to index"):
        write_index(tmp_path, [])


def test_a_folder_that_takes_no_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*index\.parquet"):
        write_index(tmp_path / "file", campaign())
