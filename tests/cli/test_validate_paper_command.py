"""``janus validate paper``: tables, JSON, exit codes."""

import json

import pytest

from janus.cli.main import main


def test_json_has_rows_identities_unknowns_and_the_found_assignment(capsys):
    code = main(["validate", "paper", "--machine", "cnis", "--json", "--search-seconds", "3"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "janus.paper/1"
    (report,) = document["machines"]
    assert code == (0 if report["search"]["exists"] else 1)
    rows = {row["key"]: row for row in report["rows"]}
    assert rows["peak_percent"]["published"] == 35.52
    for row in report["rows"]:
        assert row["low"] <= row["found"] <= row["high"] * 1.5
        assert row["error_of_found"] == pytest.approx(row["found"] / row["published"] - 1)
        if report["search"]["exists"]:
            assert abs(row["error_of_found"]) <= 0.10
    values = report["search"]["values"]
    for one in report["unknowns"]:
        assert one["low"] * 0.999999 <= values[one["key"]]["value"] <= one["high"] * 1.000001
        assert one["reason"]


def test_tables_without_a_search(capsys):
    assert main(["validate", "paper", "--machine", "cnis", "--search-seconds", "0"]) == 0
    shown = capsys.readouterr().out
    for words in ("published beside predicted", "second-hand", "contradiction: edges per second", "35.52",
                  "unknowns", "deciding unknowns", "optimised over baseline", "across the machines"):  # fmt: skip
        assert words in shown
    assert "lineshine: published" not in shown


def test_mistakes_are_refused(capsys):
    assert main(["validate", "paper", "--search-seconds", "-1"]) == 2
    assert "it must be 0 (no search) or more" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["validate", "paper", "--machine", "frontier"])
