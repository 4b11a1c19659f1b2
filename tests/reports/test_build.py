"""The whole report: sections in their order, marks of what is predicted, broken rules at the head."""

import re

import pytest

from reports.build import BANNER, build_document
from reports.campaign import Campaign
from reports.document import Picture, Table
from scaling_studies.records import RecordFolder
from tests.record_sets import campaign, continuation, prediction, record, six_jobs, throughput


def document_of(records, **changes):
    folder = RecordFolder(records=tuple(records), refused=())
    return build_document(Campaign(folder=folder, **changes), title="Ours", written_at="now")


@pytest.fixture(scope="module")
def full():
    return document_of([*campaign(), *throughput(2), *continuation()])


def test_sections_come_in_the_order_a_reader_needs_them(full):
    names = [section.id for section in full.sections]
    assert names[0] == "verdict"
    assert names[-3:] == ["rules", "provenance", "data"]
    order = ["verdict", "system", "study-weak", "study-strong", "efficiency", "breakdown", "peak", "roofline", "memory",
             "variability", "left-out", "method", "rules"]  # fmt: skip
    assert [name for name in names if name in order] == order


def test_every_figure_has_numbers_and_every_number_can_be_sorted(full):
    for picture in full.pictures():
        assert picture.data.rows, picture.name
    for table in full.tables():
        for column, cells in zip(table.columns, zip(*table.rows, strict=True), strict=False):
            if column.numeric:
                bare = [cell for cell in cells if isinstance(cell, str) and re.match(r"[−-]?[0-9]", cell)]
                assert not bare, f"{table.name}: {column.name}"


def test_the_last_section_lists_every_file(full):
    (listing,) = [block for block in full.sections[-1].blocks if isinstance(block, Table)]
    files = [row[0] for row in listing.rows]
    named = [table.name for section in full.sections[:-1] for table in tables_of(section)]
    assert files == [f"{name}.csv" for name in named]


def tables_of(section) -> list[Table]:
    blocks = [block.data if isinstance(block, Picture) else block for block in section.blocks]
    return [block for block in blocks if isinstance(block, Table)]


def test_a_predicted_report_says_so_everywhere():
    document = document_of(continuation()[:2])
    assert document.banner == BANNER
    assert "predicted, not measured" in document.kicker
    for section in document.sections:
        assert "predicted, not measured" in section.tag, section.id
        assert section.tone == "predicted", section.id


def test_a_measured_report_has_no_banner_and_marks_its_predicted_studies(full):
    assert full.banner == ""
    tags = {section.id: section.tag for section in full.sections}
    assert tags["study-weak"] == ""
    assert tags["study-full-machine"] == "predicted, not measured"


def test_broken_rules_are_said_at_the_head():
    sound = document_of(six_jobs())
    assert not any("broken" in text for text in sound.lead)
    broken = document_of([record(peak=None, model_flops=None, executed_flops=None, clock=""), prediction(0.1)])
    assert any("broken" in text for text in broken.lead)


@pytest.mark.parametrize(
    "records",
    [
        [record()],
        [prediction(0.1)],
        [record(phase_s={}), prediction(0.1, phase_s={}, phase_cause_s={})],
        [record(state="FAILED", reason="no", step_s=(), phase_s={}, rank_times=None), prediction(0.1)],
        [record(ranks=2), prediction(0.1, state="FAILED", reason="no rates", ranks=2)],
        [record(state="RUNNING", step_s=(), phase_s={}, rank_times=None), prediction(0.1)],
    ],
    ids=["only measured", "only predicted", "no phases", "all failed", "no base", "running"],
)
def test_thin_record_sets_still_make_a_report(records):
    document = document_of(records)
    assert document.sections[0].id == "verdict"


def test_an_earlier_campaign_adds_the_comparison():
    earlier = RecordFolder(records=(record(),), refused=())
    names = [section.id for section in document_of([record()], earlier=earlier).sections]
    assert "regression" in names
