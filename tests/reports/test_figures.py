"""Figures: what is drawn, read back from matplotlib's own artists and from the SVG."""

import xml.etree.ElementTree as ElementTree

import pytest

from reports import figures
from reports.points import arrange
from reports.published import published_run
from tests.record_sets import campaign, continuation, record


@pytest.fixture(scope="module")
def views():
    return arrange([*campaign(), *continuation()])


def markers(figure, marker="o"):
    """(hollow, values) of every drawn line with this marker."""
    lines = [line for line in figure.axes[0].lines if line.get_marker() == marker]
    return [(line.get_markerfacecolor() == "white", list(line.get_ydata())) for line in lines]


def test_every_job_is_a_point_and_oversubscribed_ones_are_hollow(views):
    found = markers(figures.step_time_figure(views[0]))
    assert found == [
        (False, pytest.approx([0.1, 0.104])),
        (False, pytest.approx([0.11, 0.113])),
        (True, pytest.approx([0.23, 0.25])),
    ]


def test_efficiency_is_drawn_against_the_base_and_the_prediction_dashed(views):
    figure = figures.efficiency_figure(views[1])
    found = markers(figure)
    assert found[1] == (False, pytest.approx([100 * 0.405 / 0.44, 100 * 0.405 / 0.42]))
    (prediction,) = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert list(prediction.get_ydata()) == pytest.approx([100, 95, 100 * 0.38 / 4 / 0.22])
    assert prediction.get_linestyle() == "--"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["measured, each job", "measured, oversubscribed", "predicted", "ideal"]


@pytest.mark.parametrize(("num_jobs", "num_bars"), [(2, 0), (5, 0), (6, 1)])
def test_an_interval_is_drawn_from_six_jobs_on(num_jobs, num_bars):
    jobs = [record(step_s=(0.1 + 0.01 * number,) * 3, attempt=number + 1, repeat=number) for number in range(num_jobs)]
    (view,) = arrange(jobs)
    lines = figures.step_time_figure(view).axes[0].lines
    bars = [line for line in lines if line.get_color() == figures.MEASURED_COLOUR and line.get_marker() == "None"]
    assert len(bars) == num_bars


def test_the_breakdown_hatches_the_prediction_and_adds_up(views):
    figure = figures.breakdown_figure(views[0])
    bars = figure.axes[0].patches
    widths = {True: 0.0, False: 0.0}
    for bar in bars:
        widths[bool(bar.get_hatch())] += bar.get_width()
    assert widths[False] == pytest.approx(0.102 + 0.1115 + 0.24, rel=0.02)
    assert widths[True] == pytest.approx(0.095 + 0.105 + 0.21, rel=1e-6)


def test_the_published_value_is_a_star_at_the_full_machine(views):
    published = published_run("lineshine", "matris-moe-l")
    figure = figures.continuation_figure(views[2], published)
    assert markers(figure, "*") == [(False, [90.3])]
    assert markers(figures.continuation_figure(views[2], None), "*") == []
    assert published_run("lineshine", "matris-tiny") is None
    assert published_run("cnis", "matris-moe-l").efficiency_percent("strong") == 53.93


def test_labels_of_a_long_axis_stay_apart():
    counts = [8 * 4**power for power in range(8)] + [327_680]
    ticks = figures._spread(counts)
    assert ticks[-1] == 327_680
    assert len(ticks) <= 6
    assert 131_072 not in ticks


def test_the_svg_is_one_element_with_text_as_text_and_nothing_from_outside(views):
    svg = figures.to_svg(figures.scatter_figure(views), "scatter")
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "predicted time of one step, s" in svg
    assert "<metadata" not in svg
    assert all(entry.startswith("scatter-") for entry in (element.get("id") for element in root.iter()) if entry)


def test_the_same_records_give_the_same_picture(views):
    first, second = (figures.to_svg(figures.efficiency_figure(views[0]), "weak") for _ in range(2))
    assert first == second
