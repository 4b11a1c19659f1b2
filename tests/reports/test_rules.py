"""The twelve rules: each is broken by record sets of its own, and all hold on a clean one."""

import dataclasses

import pytest

from janus.errors import UserError
from reports import rules
from reports.points import arrange
from scaling_studies.statistics import summarize
from tests.record_sets import campaign, continuation
from tests.reports import rule_breaking_sets as sets

NAMES = [f"{number}-{make.__name__}" for number, make, *_ in sets.BREAKING]
ALSO_TOUCHED = {  # a record set made for one rule that cannot but touch another one
    sets.failed_base: {2}, sets.vanished_jobs: {5, 7}, sets.unfinished: {5, 7}, sets.too_few_jobs: {5, 7},
    sets.gap_in_the_line: {2}, sets.factor_changed: {12},
}  # fmt: skip


def test_all_twelve_hold_on_a_clean_campaign():
    found = rules.verdicts(sets.clean())
    assert [verdict.number for verdict in found] == list(range(1, 13))
    assert {verdict.number: verdict.evidence for verdict in found if verdict.state != rules.KEPT} == {}
    assert all(verdict.evidence for verdict in found)


def test_there_is_a_set_for_each_rule():
    assert {number for number, *_ in sets.BREAKING} == set(range(1, 13))


@pytest.mark.parametrize(("number", "make", "state", "words"), sets.BREAKING, ids=NAMES)
def test_each_rule_is_broken_by_its_record_sets_and_no_other_rule_is(number, make, state, words):
    found = rules.verdicts(make())
    assert found[number - 1].state == state
    assert words in found[number - 1].evidence[0]
    assert {verdict.number for verdict in found if verdict.state != rules.KEPT} == {number} | ALSO_TOUCHED.get(
        make, set()
    )


def test_what_makes_ratios_meaningless_is_refused_outright():
    with pytest.raises(UserError, match="ratios are not summarised"):
        summarize([0.9, 0.8], kind="ratio")
    other_base = [dataclasses.replace(entry, base_ranks=entry.ranks) for entry in sets.clean_records()]
    with pytest.raises(UserError, match="disagree on base_ranks"):
        arrange(other_base)


def test_a_predicted_campaign_is_not_judged_by_rules_about_measurements():
    predicted = [dataclasses.replace(entry, peak=None) for entry in continuation()]
    states = {verdict.number: verdict.state for verdict in rules.verdicts(sets.campaign_of(predicted))}
    assert {number for number, state in states.items() if state == rules.NOT_APPLICABLE} == {2, 6, 7, 8, 10}
    assert {state for number, state in states.items() if number not in (2, 6, 7, 8, 10)} == {rules.KEPT}


def test_evidence_about_many_places_names_the_first_and_counts_the_rest():
    evidence = rules.verdicts(sets.campaign_of(campaign()))[4].evidence[0]
    assert evidence.endswith(
        "weak at 1 rank (2); weak at 2 ranks (2); weak at 4 ranks (2); strong at 1 rank (2); and 2 more"
    )
