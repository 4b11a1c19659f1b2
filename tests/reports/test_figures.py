"""Figures: what is drawn, read back from matplotlib's own artists, and that their data holds all of it."""

import dataclasses

import pytest

from perfmodel import step_time
from reports import drawing, figures
from reports.document import Value
from reports.drawing import MEASURED_COLOUR, spread_labels
from reports.points import arrange
from tests.record_sets import campaign, continuation, jobs, prediction, record, six_jobs, throughput


@pytest.fixture(scope="module")
def views():
    return arrange([*campaign(), *continuation()])


@pytest.fixture(scope="module")
def full_views():
    return arrange([*six_jobs(), *throughput()])


def markers(figure, marker="o"):
    """(hollow, values) of every drawn line with this marker."""
    lines = [line for line in figure.axes[0].lines if line.get_marker() == marker]
    return [(line.get_markerfacecolor() == "white", list(line.get_ydata())) for line in lines]


def numbers(picture, series):
    """The numbers of one series of a picture's data."""
    return [row[3].number for row in picture.data.rows if row[0] == series]


def test_every_job_is_a_point_and_oversubscribed_ones_are_hollow(views):
    assert markers(figures.step_time(views[0]).figure) == [
        (False, pytest.approx([0.1, 0.104])),
        (False, pytest.approx([0.11, 0.113])),
        (True, pytest.approx([0.23, 0.25])),
    ]


def test_efficiency_is_drawn_against_the_base_and_the_prediction_dashed(views):
    picture = figures.efficiency(views[1])
    assert markers(picture.figure)[1] == (False, pytest.approx([100 * 0.405 / 0.44, 100 * 0.405 / 0.42]))
    (predicted,) = [line for line in picture.figure.axes[0].lines if line.get_marker() == "D"]
    assert list(predicted.get_ydata()) == pytest.approx([100, 95, 100 * 0.38 / 4 / 0.22])
    assert predicted.get_linestyle() == "--"
    labels = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert labels == [
        "measured, each job", "measured, oversubscribed", "predicted", "bound: no communication", "ideal",
    ]  # fmt: skip


def test_the_bound_leaves_out_communication_and_waiting(views):
    picture = figures.efficiency(views[0])
    bound = numbers(picture, "bound without communication (predicted)")
    assert bound == pytest.approx([100 * 0.095 / (0.9 * time) for time in (0.095, 0.105, 0.21)])


@pytest.mark.parametrize(("num_jobs", "num_bars"), [(2, 0), (5, 0), (6, 1)])
def test_an_interval_is_drawn_from_six_jobs_on(num_jobs, num_bars):
    (view,) = arrange(jobs(0.1, num_jobs))
    lines = figures.step_time(view).figure.axes[0].lines
    bars = [line for line in lines if line.get_color() == MEASURED_COLOUR and line.get_marker() == "_"]
    assert len(bars) == num_bars


def test_an_interval_that_ends_far_above_the_ideal_is_drawn_whole():
    base = [dataclasses.replace(job, step_s=(factor * job.step_s[0],) * 3)
            for job, factor in zip(jobs(0.1, 6), (1, 1, 1, 3, 4, 5), strict=True)]  # fmt: skip
    (view,) = arrange([*base, *jobs(0.1, 6, ranks=2)])
    interval = view.efficiency_interval(view.points[1])
    assert interval.high > 2
    assert figures.efficiency(view).figure.axes[0].get_ylim()[1] > 100 * interval.high


def drawn_values(figure):
    """Every number drawn as a mark or a line, but for helper lines over the whole width."""
    found = []
    for line in figure.axes[0].lines:
        if line.get_xdata()[0] != 0:  # which a line over the whole width has
            found += [float(value) for value in line.get_ydata()]
    return found


def data_values(picture):
    return [cell.number for row in picture.data.rows for cell in row[3:] if isinstance(cell, Value)]


@pytest.mark.parametrize("draw", [figures.step_time, figures.efficiency, figures.rate])
def test_the_data_of_a_figure_holds_every_number_drawn(views, full_views, draw):
    for view in (*views[:2], *full_views):
        picture = draw(view)
        known = data_values(picture)
        for value in drawn_values(picture.figure):
            assert any(value == pytest.approx(number) for number in known), (view.name, value)


def test_phases_and_causes_are_bars_that_add_up_and_predictions_are_hatched(views):
    widths = {True: 0.0, False: 0.0}
    for bar in figures.phases(views[0]).figure.axes[0].patches:
        widths[bool(bar.get_hatch())] += bar.get_width()
    assert widths[False] == pytest.approx(0.102 + 0.1115 + 0.24, rel=0.02)
    assert widths[True] == pytest.approx(0.095 + 0.105 + 0.21, rel=1e-6)
    bars = figures.causes(views[0]).figure.axes[0].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(0.095 + 0.105 + 0.21)
    assert all(bar.get_hatch() for bar in bars)


def test_bars_of_a_strong_study_are_in_percent_of_the_ideal_step(views):
    picture = figures.phases(views[1])
    total = sum(bar.get_width() for bar in picture.figure.axes[0].patches if not bar.get_hatch())
    assert total == pytest.approx(100 + 100 * 2 * 0.215 / 0.405 + 100 * 4 * 0.25 / 0.405, rel=0.02)


def test_a_missing_prediction_leaves_a_gap_in_the_line():
    failed = prediction(0.1, ranks=2, state="FAILED", reason="no rates for 2 ranks")
    (view,) = arrange([prediction(0.1), failed, prediction(0.12, ranks=4)])
    (line,) = [line for line in figures.step_time(view).figure.axes[0].lines if line.get_marker() == "D"]
    assert list(line.get_ydata())[1] != list(line.get_ydata())[1]  # not a number: matplotlib does not connect it


def test_the_description_tells_first_and_last_time_to_who_cannot_see(full_views):
    said = figures.step_time(full_views[0]).description
    assert (
        said == "time of one step against ranks: measured 101 ms at 1 rank and 132 ms at 4 ranks; "
        "predicted 95 ms at 1 rank and 124 ms at 4 ranks"
    )


def test_a_throughput_study_is_drawn_over_structures_per_rank(full_views):
    picture = figures.rate(full_views[2])
    assert [column.csv_name for column in picture.data.columns][1] == "structures_per_rank"
    assert markers(picture.figure)[3][1][0] == pytest.approx(16 / 0.28)  # 2 ranks of 8 structures in 0.28 s
    assert picture.figure.axes[0].get_xlabel() == "structures per rank"


@pytest.mark.parametrize(
    "records",
    [
        [record()],
        [record(phase_s={}, rank_times=None, counts_per_rank=())],
        [prediction(0.1)],
        [record(ranks=2), prediction(0.1, ranks=2)],
        [record(state="FAILED", reason="no", step_s=(), phase_s={}), prediction(0.1)],
    ],
    ids=["measured alone", "nothing but times", "predicted alone", "no base point", "all failed"],
)
def test_thin_studies_can_be_drawn(records):
    (view,) = arrange(records)
    for draw in (figures.step_time, figures.efficiency, figures.rate, figures.phases, figures.causes):
        picture = draw(view)
        assert picture is None or picture.data.columns


def test_many_jobs_of_a_point_stay_between_its_neighbours():
    made = [record(step_s=(0.1,), phase_s={}, attempt=number + 1) for number in range(60)]
    (view,) = arrange(made)
    (line,) = [line for line in figures.step_time(view).figure.axes[0].lines if line.get_marker() == "o"]
    assert 0.75 < min(line.get_xdata()) < max(line.get_xdata()) < 1.35


def test_the_scatter_holds_each_paired_job_and_no_other(views):
    picture = figures.scatter(views)
    assert len(picture.data.rows) == 12
    assert figures.scatter(arrange([record()])) is None
    hollow = [
        line.get_markerfacecolor() == "white" for line in picture.figure.axes[0].lines if line.get_marker() in "os"
    ]
    assert sum(hollow) == 2


def test_labels_of_a_long_axis_stay_apart_and_both_ends_have_one():
    counts = [8.0 * 4**power for power in range(8)] + [327_680.0]
    ticks = spread_labels(counts)
    assert (ticks[0], ticks[-1]) == (8, 327_680)
    assert len(ticks) <= 6
    assert 131_072 not in ticks
    assert spread_labels([1.0, 2.0, 4.0]) == [1.0, 2.0, 4.0]


def test_phases_and_every_cause_of_the_predictor_have_a_colour_of_their_own():
    for colours in (drawing.PHASE_COLOURS, drawing.CAUSE_COLOURS):
        assert len(set(colours.values())) == len(colours)
    assert set(drawing.CAUSE_COLOURS) == set(step_time.CAUSES)


def test_more_causes_than_colours_are_drawn_as_others():
    many = {"FE": {f"cause {number}": 0.001 * (20 - number) for number in range(20)}}
    (view,) = arrange([dataclasses.replace(prediction(0.1), phase_cause_s=many)])
    picture = figures.causes(view)
    labels = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert len(labels) == figures.MOST_CAUSES + 1
    bars = picture.figure.axes[0].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(sum(many["FE"].values()))
    assert labels[-1] == "others"
    assert len(picture.data.rows) == 20
