"""A campaign against an earlier one: words of the test, the phase that caused it, and what cannot be compared."""

import dataclasses

import pytest

from reports.sections import regression
from scaling_studies.records import RecordFolder
from tests.record_sets import campaign, longer_sync, record, six_jobs
from tests.reports.blocks import campaign_of, column, numbers, picture_of, table_of, texts, words


def sections_of(new, old):
    return regression.sections(campaign_of(new, earlier=RecordFolder(records=tuple(old), refused=())))


def test_a_longer_phase_is_found_and_named_and_nothing_else():
    made = sections_of(longer_sync(), six_jobs())
    table = table_of(made, "regression-points")
    verdicts = dict(zip(column(table, "point"), column(table, "verdict"), strict=True))
    assert verdicts.pop("weak at 4 ranks") == "took more time"
    assert set(verdicts.values()) == {"no difference shown"}
    assert column(table, "cause")[-1] == "gradient sync, waiting"
    phases = texts(table_of(made, "regression-phases"))
    assert phases[0][:5] == ["weak at 4 ranks", "gradient sync, waiting", "13.2 ms", "33.2 ms", "+20 ms"]
    assert [row[-1] for row in phases] == ["yes"] + ["no"] * (len(phases) - 1)
    assert "no difference shown: 5; took more time: 1. The largest change is weak at 4 ranks, +15.2 %" in words(made)


def test_the_other_way_round_it_took_less_time():
    made = sections_of(six_jobs(), longer_sync())
    assert column(table_of(made, "regression-points"), "verdict")[-1] == "took less time"


def test_with_too_few_jobs_nothing_is_said():
    made = sections_of(campaign(), six_jobs())
    assert set(column(table_of(made, "regression-points"), "verdict")) == {"too few jobs to say"}
    assert set(column(table_of(made, "regression-points"), "95 % interval")) == {"none"}


def test_points_that_did_other_work_are_not_compared_and_say_why():
    other = [dataclasses.replace(one, dtype="float64") for one in six_jobs()]
    made = sections_of(six_jobs(), other)
    assert column(table_of(made, "regression-points"), "verdict")[0].startswith("not comparable: dtype was 'float64'")


def test_what_else_differs_and_what_only_one_campaign_has_is_told():
    moved = [dataclasses.replace(one, machine="otherhost") for one in six_jobs() if one.study == "weak"]
    said = words(sections_of(six_jobs(), moved))
    assert "machine: otherhost, now testhost" in said
    assert "Only in this campaign: strong at 1 rank, strong at 2 ranks and strong at 4 ranks." in said


def test_the_figure_holds_every_job_of_both_campaigns():
    picture = picture_of(sections_of(longer_sync(), six_jobs()), "regression-changes")
    drawn = sum(len(line.get_xdata()) for line in picture.figure.axes[0].lines if line.get_marker() == "o")
    assert drawn == 2 * 36
    series = column(picture.data, "series")
    assert (series.count("job"), series.count("earlier job")) == (36, 36)
    assert numbers(picture.data, "against the earlier median")[0] == pytest.approx(100 * (0.4 / 0.405 - 1))


def test_without_an_earlier_campaign_or_a_common_point_there_is_nothing_to_compare():
    assert regression.sections(campaign_of(six_jobs())) == ()
    said = words(sections_of(six_jobs(), [record(study="other")]))
    assert "nothing can be compared" in said
