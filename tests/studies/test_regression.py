"""A campaign against an earlier one: points matched, changes in words, the phase that caused them named."""

from dataclasses import replace

import pytest
from record_sets import counts, jobs, six_jobs

from scaling_studies.records import FAILED, PREDICTED
from scaling_studies.regression import NOT_COMPARABLE, OUTSIDE, compare_campaigns
from scaling_studies.statistics import LESS_TIME, MORE_TIME, NO_DIFFERENCE, TOO_FEW


def slower(records, phase, seconds):
    """The same jobs with so many seconds more in one phase of each step; OUTSIDE: in none."""
    changed = []
    for record in records:
        phases = {name: tuple(time + seconds * (name == phase) for time in times)
                  for name, times in record.phase_s.items()}  # fmt: skip
        changed.append(replace(record, step_s=tuple(time + seconds for time in record.step_s), phase_s=phases))
    return changed


def one(change):
    assert len(change.points) == 1
    return change.points[0]


def test_nothing_changed():
    change = compare_campaigns(six_jobs(), six_jobs())
    assert [(point.study, point.x) for point in change.points] == [
        ("strong", 1), ("strong", 2), ("strong", 4), ("weak", 1), ("weak", 2), ("weak", 4)
    ]  # fmt: skip
    for point in change.points:
        assert point.words == NO_DIFFERENCE
        assert point.causes == ()
        assert point.differences == ()
    assert change.regressions == ()
    assert change.only_old == change.only_new == ()


@pytest.mark.parametrize("phase", ["FE", "sync", "optimizer", OUTSIDE])
def test_the_phase_that_caused_a_change_is_named(phase):
    old = jobs(0.1, 6)
    point = one(compare_campaigns(old, slower(old, phase, 0.02)))
    assert point.words == MORE_TIME
    assert point.is_regression
    assert point.comparison.change == pytest.approx(0.02 / 0.10125, rel=1e-6)
    assert point.phases[0].phase == phase, "the largest change comes first"
    assert [cause.phase for cause in point.causes] == [phase]
    assert point.causes[0].change_s == pytest.approx(0.02)
    assert point.causes[0].share == pytest.approx(1.0)
    back = one(compare_campaigns(slower(old, phase, 0.02), old))
    assert (back.words, [cause.phase for cause in back.causes]) == (LESS_TIME, [phase])


def test_a_phase_that_got_shorter_does_not_cause_a_longer_step():
    old = jobs(0.1, 6)
    point = one(compare_campaigns(old, slower(slower(old, "BF_BE", 0.03), "FE", -0.01)))
    assert [cause.phase for cause in point.causes] == ["BF_BE"]
    shares = {phase.phase: phase.share for phase in point.phases}
    assert shares["BF_BE"] == pytest.approx(1.5)
    assert shares["FE"] == pytest.approx(-0.5)
    assert sum(shares.values()) == pytest.approx(1.0), "shares of all phases make up the whole change"


def test_a_phase_that_only_scatters_is_no_cause():
    """The phase gets longer in the median, but not in every job: the rank test of its own does not show it."""
    old = jobs(0.1, 6)
    scattered = [slower([job], "sync", extra)[0]
                 for job, extra in zip(old, (-0.02, 0.05, -0.01, 0.04, 0.03, 0.02), strict=True)]  # fmt: skip
    point = one(compare_campaigns(old, slower(scattered, "FE", 0.1)))
    assert point.words == MORE_TIME
    assert [cause.phase for cause in point.causes] == ["FE"]
    assert next(phase for phase in point.phases if phase.phase == "sync").p_value > 0.01


def test_jobs_without_phases_on_record_name_no_cause():
    bare = [replace(job, phase_s={}) for job in jobs(0.1, 6)]
    for old, new in ((bare, jobs(0.2, 6)), (jobs(0.2, 6), bare)):
        point = one(compare_campaigns(old, new))
        assert point.words in (MORE_TIME, LESS_TIME)
        assert point.phases == point.causes == ()


def test_few_jobs_say_nothing():
    old = jobs(0.1, 5)
    point = one(compare_campaigns(old, slower(old, "FE", 0.1)))
    assert (point.words, point.is_regression, point.causes) == (TOO_FEW, False, ())
    assert point.phases[0].p_value is None


def test_only_good_measured_jobs_count_and_points_of_one_campaign_are_listed():
    old = six_jobs()
    broken = [replace(record, state=FAILED, reason="exit code 1") if record.ranks == 4 else record for record in old]
    assert any(record.source == PREDICTED for record in old)
    change = compare_campaigns(old, broken)
    assert len(change.points) == 4
    assert [key[-1] for key in change.only_old] == [4, 4]
    assert compare_campaigns(broken, old).only_new == change.only_old


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"dtype": "float64"}, "dtype was 'float32'"), ({"clock": "mean over ranks"}, "clock was"),
     ({"counts_per_rank": counts(1, edges=2000)}, "work of the ranks differs: 4,000")],
)  # fmt: skip
def test_points_that_measure_something_else_are_not_compared(changes, words):
    old = jobs(0.1, 6)
    point = one(compare_campaigns(old, [replace(job, **changes) for job in jobs(0.2, 6)]))
    assert words in point.obstacle
    assert point.words == NOT_COMPARABLE
    assert not point.is_regression
    mixed = [*old, *[replace(job, cell_id="another", attempt=job.attempt + 6) for job in old]]
    assert "two cells" in one(compare_campaigns(mixed, old)).obstacle


def test_what_else_is_not_as_it_was_is_told():
    old = jobs(0.1, 6)
    now = {"library_versions": {"python": "3.11.2", "torch": "2.14.0"}, "resolved_config": {"run": {"steps": 6}}}
    new = [replace(job, machine="elsewhere", layout={**job.layout, "unit": 2}, provenance={**job.provenance, **now})
           for job in old]  # fmt: skip
    change = compare_campaigns(old, new)
    assert change.shared_differences == (
        "machine: testhost, now elsewhere", "layout.unit: 1, now 2", "library_versions.torch: 2.13.0, now 2.14.0",
        "resolved_config.run.steps: 5, now 6"
    )  # fmt: skip
