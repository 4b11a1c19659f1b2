"""``janus validate collectives``: tables of either layout, errors apart, mistakes in one sentence."""

import json

import pytest

from janus.cli.main import main

CRAB = "system,benchmark,victim_nodes,msgsize_bytes,baseline_median_max_us\n"
ROWS = CRAB + (
    "leonardo,a2a_comm_only,4,2097152,275\nleonardo,a2a_comm_only,64,2097152,6000\n"
    "nowhere,agtr_comm_only,64,16777216,1300\nnowhere,mystery,64,16777216,1300\n"
)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


def test_rows_of_known_and_unknown_systems_are_judged_apart_from_the_fitted(table, capsys):
    assert main(["validate", "collectives", "--data", str(table), "--json", "--rows"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["judged_rows"], report["fitted_rows"], report["left_out_rows"]) == (2, 1, 1)
    by_nodes = {(row["system"], row["nodes"]): row for row in report["rows"]}
    assert by_nodes["leonardo", 4]["fitted"]
    assert by_nodes["leonardo", 64]["constants"] == "stack"
    assert by_nodes["nowhere", 64]["constants"] == "others"
    (unknown,) = report["not_judged"]
    assert (unknown["name"], unknown["rows"]) == ("mystery", 1)
    for row in report["rows"]:
        assert row["error"] == pytest.approx(row["predicted_s"] / row["measured_s"] - 1)


def test_tables_are_printed_with_the_origin_of_the_constants(table, capsys):
    assert main(["validate", "collectives", "--data", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "2 rows judged, 1 rows of the fit set" in shown
    assert "mean of other machines: this one was never fitted" in shown
    assert "mystery: 1 rows, the schedule of this name is not known" in shown


def test_a_table_of_unknown_names_and_one_of_fitted_rows_judge_nothing(tmp_path, capsys):
    unknown, fitted = tmp_path / "unknown.csv", tmp_path / "fitted.csv"
    unknown.write_text(CRAB + "nowhere,mystery,64,16777216,1300\n")
    fitted.write_text(CRAB + "leonardo,a2a_comm_only,4,2097152,275\n")
    for path, numbers in ((unknown, "0 rows judged, 0 rows"), (fitted, "0 rows judged, 1 rows")):
        assert main(["validate", "collectives", "--data", str(path), "--rows"]) == 0
        assert numbers in capsys.readouterr().out


def test_constants_can_be_fitted_again_and_written(table, tmp_path, capsys):
    out = tmp_path / "fitted.py"
    assert main(["validate", "collectives", "--data", str(table), "--fit", "--write", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judged_rows"] >= 1
    written = {}
    exec(compile(out.read_text(), str(out), "exec"), written)
    assert ("leonardo", "crab") in written["FITTED"]


def test_mistakes_are_one_sentence_and_exit_code_2(table, tmp_path, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_text(CRAB + "leonardo,a2a_comm_only,4,2097152,soon\n")
    for words, sentence in (
        (["--data", str(bad)], "bad.csv, line 2, column 'baseline_median_max_us' is 'soon': a number is needed"),
        (["--data", str(tmp_path / "none.csv")], "none.csv does not exist"),
        (["--data", str(table), "--write", "x.py"], "--write needs --fit"),
    ):
        assert main(["validate", "collectives", *words]) == 2
        shown = capsys.readouterr()
        assert sentence in shown.err
        assert "Traceback" not in shown.err
        assert not shown.out


def test_without_tables_the_place_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JANUS_SHARED_DATA", str(tmp_path))
    assert main(["validate", "collectives"]) == 2
    assert f"no tables at {tmp_path / 'collectives'}" in capsys.readouterr().err
