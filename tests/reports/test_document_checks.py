"""What a finished document says is read back: bare ratios, unlisted attempts, words and figures that mislead."""

import dataclasses
import functools

import matplotlib.figure
import pytest

from reports import rules
from reports.build import build_document
from reports.document import Column, Document, Picture, Section, Table, Text, Value
from tests.record_sets import campaign, six_jobs, throughput
from tests.reports import rule_breaking_sets as sets

DATA = Table(name="own-data", columns=(Column(name="y", numeric=True),), rows=((Value(text="1", number=1.0),),))


def document_of(found) -> Document:
    return build_document(found, title="A report", written_at="now")


@functools.cache
def clean_report() -> Document:
    return document_of(sets.clean())


def with_blocks(document: Document, *blocks) -> Document:
    """The document with one more section."""
    section = Section(id="added", title="Added", short="Added", blocks=blocks)
    return dataclasses.replace(document, sections=(*document.sections, section))


def without_table(document: Document, name: str) -> Document:
    sections = tuple(
        dataclasses.replace(
            section, blocks=tuple(block for block in section.blocks if getattr(block, "name", "") != name)
        )
        for section in document.sections
    )
    return dataclasses.replace(document, sections=sections)


def verdict(number: int, found, document: Document) -> rules.Verdict:
    return rules.verdicts(found, document)[number - 1]


def drawn(**fields) -> Picture:
    """A picture of one line."""
    figure = matplotlib.figure.Figure()
    figure.add_subplot().plot(fields.pop("x", [1, 2, 3]), fields.pop("y", [1, 2, 1]), **fields.pop("style", {}))
    values = {"name": "own", "figure": figure, "caption": "", "description": "", "data": DATA}
    return Picture(**{**values, **fields})


def test_the_report_itself_keeps_all_twelve_rules_on_a_clean_campaign():
    found = sets.clean()
    judged = rules.verdicts(found, clean_report())
    assert {entry.number: entry.evidence for entry in judged if entry.state != rules.KEPT} == {}


@pytest.mark.parametrize("records", [campaign(), six_jobs(), throughput()], ids=["two jobs", "six jobs", "throughput"])
def test_reading_the_report_back_finds_nothing_that_its_records_do_not_say(records):
    found = sets.campaign_of(records)
    assert rules.verdicts(found, document_of(found)) == rules.verdicts(found)


def test_efficiencies_without_the_time_of_their_base_break_rule_1():
    found = sets.clean()
    bare = without_table(clean_report(), "base-points")
    assert verdict(1, found, bare).state == rules.BROKEN
    assert "the report gives no absolute time of the base: weak" in verdict(1, found, bare).evidence


def test_an_attempt_that_the_report_does_not_list_breaks_rule_2():
    found = sets.campaign_of(campaign())
    whole = document_of(found)
    assert verdict(2, found, whole).state == rules.KEPT
    silent = verdict(2, found, without_table(whole, "exclusions"))
    assert silent.state == rules.BROKEN
    assert silent.evidence[0].startswith("the report does not list what it leaves out: weak-ranks00002")


@pytest.mark.parametrize(
    ("number", "text"),
    [(6, "A step takes 0.1 ± 0.01 s."), (7, "Two ranks are significantly faster."), (7, "It outperforms the old one.")],
)
def test_words_that_need_another_test_break_a_rule(number, text):
    found = sets.clean()
    said = with_blocks(clean_report(), Text(text=text))
    assert verdict(number, found, said).state == rules.BROKEN
    assert "'Added'" in verdict(number, found, said).evidence[0]


def test_words_of_the_user_are_not_the_words_of_the_report():
    found = sets.campaign_of([dataclasses.replace(entry, question="Is it faster?") for entry in sets.clean_records()])
    assert verdict(7, found, document_of(found)).state == rules.KEPT


def test_a_spread_in_a_table_breaks_rule_6():
    found = sets.clean()
    table = Table(name="added", columns=(Column(name="time"),), rows=(("0.1 ± 0.01 s",),))
    assert verdict(6, found, with_blocks(clean_report(), table)).evidence[0].endswith("table added")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (drawn(x=["a", "b", "c"]), "a line connects categories, which have no order"),
        (drawn(x=[1, 3, 2], y=[1, 3, 2]), "a line runs back and forth along its axis"),
        (drawn(data=Table(name="own-data", columns=(Column(name="y"),), rows=())), "comes without its numbers"),
    ],
    ids=["categories", "back and forth", "no numbers"],
)
def test_lines_without_meaning_break_rule_12(picture, words):
    found = sets.clean()
    judged = verdict(12, found, with_blocks(clean_report(), picture))
    assert judged.state == rules.BROKEN
    assert words in judged.evidence[0]


def test_marks_over_categories_and_upright_intervals_are_no_lines_without_meaning():
    found = sets.clean()
    pictures = [drawn(x=["a", "b", "c"], style={"linestyle": "none", "marker": "o"}), drawn(x=[2, 2], y=[1, 3])]
    for picture in pictures:
        assert verdict(12, found, with_blocks(clean_report(), picture)).state == rules.KEPT
