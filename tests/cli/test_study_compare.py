"""janus study compare: what it prints, its JSON and its exit codes, from folders of records."""

import json

import pytest
from record_sets import jobs

from janus.cli.main import main
from scaling_studies.records import RECORD_FOLDER, write_record


@pytest.fixture
def folder(tmp_path):
    """name, records -> the folder of a campaign with these records."""

    def write(name, records):
        for record in records:
            write_record(tmp_path / name / RECORD_FOLDER, record)
        return str(tmp_path / name)

    return write


def run(*words):
    return main(["study", "compare", *words])


def slower_sync(records):
    from dataclasses import replace

    return [
        replace(job, step_s=tuple(time + 0.05 for time in job.step_s),
                phase_s={**job.phase_s, "sync": tuple(time + 0.05 for time in job.phase_s["sync"])})
        for job in records
    ]  # fmt: skip


def test_a_regression_is_printed_with_its_phase_and_fails_only_when_asked(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    old, new = folder("old", jobs(0.1, 6)), folder("new", slower_sync(jobs(0.1, 6)))
    assert run(old, new) == 0
    printed = capsys.readouterr().out
    for words in ("took more time", "+49.4 %", "sync: +50.00 ms, 100 % of the change", "1 point: 1 took more time",
                  "Confirm a change with fresh jobs"):  # fmt: skip
        assert words in printed
    assert run(old, new, "--fail-on-regression") == 3
    assert run(new, old, "--fail-on-regression") == 0
    assert run(old, old, "--fail-on-regression") == 0
    assert run(old, new, "--fail-on-regression", "--threshold", "60") == 0


def test_json_holds_the_same(folder, capsys):
    old, new = folder("old", jobs(0.1, 6)), folder("new", slower_sync(jobs(0.1, 6)))
    assert run(old, new, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    point = document["points"][0]
    assert (point["words"], point["causes"], document["regressions"]) == ("took more time", ["sync"], 1)
    assert len(point["old_s"]) == len(point["new_s"]) == 6
    assert point["comparison"]["change_interval"]["low"] > 0.4


def test_campaigns_without_a_common_point_say_so(folder, capsys):
    old, new = folder("old", jobs(0.1, 6)), folder("new", jobs(0.1, 6, ranks=2))
    assert run(old, new) == 0
    printed = capsys.readouterr().out
    assert "no point is in both campaigns" in printed
    assert "only in the earlier campaign: weak, matris-tiny, 1 rank\n" in printed
    assert "only in the new campaign: weak, matris-tiny, 2 ranks" in printed


@pytest.mark.parametrize("new", [jobs(0.1, 6, ranks=2), jobs(0.2, 5)], ids=["no point", "too few jobs"])
def test_where_nothing_can_be_judged_a_check_for_regressions_does_not_pass(folder, new, capsys):
    old, new = folder("old [/x]", jobs(0.1, 6)), folder("new", new)
    assert run(old, new) == 0
    assert "[/x]" in capsys.readouterr().out
    assert run(old, new, "--fail-on-regression") == 2
    assert "no point can be judged" in capsys.readouterr().err


def test_mistakes_are_one_sentence(folder, tmp_path, capsys):
    good = folder("good", jobs(0.1, 1))
    assert run(good, str(tmp_path / "nowhere")) == 2
    assert "no good job is on record" in capsys.readouterr().err
    assert run(good, good, "--threshold", "-1") == 2
    assert "use 0 or more" in capsys.readouterr().err
