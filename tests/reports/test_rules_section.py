"""The section of the rules, and what the rest of a report withholds where a rule is broken."""

import pytest

from reports.build import build_document
from reports.points import arrange
from reports.sections import peak, rules, variability
from tests.record_sets import continuation
from tests.reports import rule_breaking_sets as sets
from tests.reports.blocks import column, table_of, texts, words


@pytest.mark.parametrize(
    ("number", "make"), [(rule, make) for rule, make, state, _ in sets.BREAKING if state == "broken"]
)
def test_broken_rules_come_first_with_a_warning(number, make):
    (section,) = rules.sections(make())
    rows = texts(table_of([section], "rules"))
    assert rows[0][2] == "broken"
    assert str(number) in [row[0] for row in rows if row[2] == "broken"]
    assert section.blocks[0].style == "warning"


def test_broken_rules_are_said_at_the_head_of_the_report():
    document = build_document(sets.no_clock(), title="A report", written_at="now")
    assert any("1 broken (rule 10), 11 kept" in text for text in document.lead)


def test_a_clean_report_says_so_without_a_warning():
    (section,) = rules.sections(sets.clean())
    assert words([section]).startswith("Of the twelve rules: 12 kept.")
    assert section.blocks[0].style == "plain"
    assert column(table_of([section], "rules"), "rule") == [str(number) for number in range(1, 13)]


def test_rates_are_withheld_where_jobs_did_different_work():
    rows = texts(table_of(peak.sections(sets.mixed_work()), "peak-weak"))
    assert [row[0] for row in rows if row[1] == "measured" and set(row[2:]) == {"n/a"}] == ["2"]


def test_percentages_are_withheld_where_jobs_have_different_peaks():
    sections = peak.sections(sets.mixed_peaks())
    (row,) = [row for row in texts(table_of(sections, "peak-weak")) if row[:2] == ["2", "measured"]]
    assert row[3] != "n/a"
    assert row[4:] == ["n/a"] * 5
    assert "2 ranks, measured: withheld: jobs of this point have different peaks" in words(sections)


def test_percentages_above_the_peak_are_withheld():
    sections = peak.sections(sets.above_the_peak())
    (row,) = [row for row in texts(table_of(sections, "peak-weak")) if row[:2] == ["4", "measured"]]
    assert row[4:8] == ["n/a"] * 4
    assert "withheld: a rate above the peak" in words(sections)


def test_percentages_of_the_peak_of_another_dtype_are_withheld():
    sections = peak.sections(sets.peak_of_another_dtype())
    (row,) = [row for row in texts(table_of(sections, "peak-weak")) if row[:2] == ["4", "measured"]]
    assert row[4:] == ["n/a"] * 5
    assert "4 ranks, measured: withheld: peak in float64, run in float32" in words(sections)


def test_the_variation_is_withheld_where_jobs_are_not_normally_distributed():
    table = table_of(variability.sections(sets.two_humps()), "variability-jobs-weak")
    assert [text == "n/a" for text in column(table, "variation")] == [False, False, True]


def test_efficiencies_are_withheld_without_a_base_and_between_clocks():
    for make, unknown in ((sets.failed_base, [1, 2, 4]), (sets.two_clocks, [4]), (sets.shrinking_work, [4])):
        (view,) = arrange(make().records)
        assert [point.ranks for point in view.points if view.efficiency_measured(point) is None] == unknown
        assert all(view.efficiency_interval(point) is None for point in view.points if point.ranks in unknown)


def test_a_predicted_campaign_names_what_does_not_apply():
    table = table_of(rules.sections(sets.campaign_of(continuation())), "rules")
    assert column(table, "verdict").count("not applicable") == 5
