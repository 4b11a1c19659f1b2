"""How good the predictions of step times were, point by point and over all, apart where ranks share cores.

It owns these summaries; it does not own the error of a point (``points``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from reports import figures, values
from reports.campaign import Campaign
from reports.document import Block, Column, Section, Table, Text, Value
from reports.points import PHASE_NAMES, PHASE_ORDER, Point, paired
from reports.samples import percentile
from reports.scaling_section import OVERSUBSCRIBED_NOTE
from reports.wording import place, seconds

GROUPS = (("a core for every rank", False), ("oversubscribed: ranks share cores", True))
LEAST_PHASE_SHARE = 0.02  # of a measured step: relative errors of smaller phases say nothing


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section where any point is both measured and predicted."""
    points = paired(campaign.views)
    picture = figures.scatter(campaign.views)
    if not points or picture is None:
        return ()
    blocks: list[Block] = [Text(text=quality_sentence(points)), picture, _summary(points), _every_point(points)]
    phases = _phases(points)
    return (
        Section(
            id="prediction", title="How good the prediction was", short="Prediction error",
            blocks=(*blocks, *([phases] if phases.rows else [])),
        ),
    )  # fmt: skip


def _groups(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Points that have a core for every rank, and those that do not; only groups that occur."""
    groups = [(label, [point for point in points if point.oversubscribed == shared]) for label, shared in GROUPS]
    return [(label, own) for label, own in groups if own]


def quality_sentence(points: Sequence[Point]) -> str:
    """Median error and the largest one, of the points with a core for every rank where there are such."""
    fair = [point for point in points if not point.oversubscribed] or list(points)
    worst = max(fair, key=lambda point: abs(point.error or 0))
    median = statistics.median(abs(point.error or 0) for point in fair)
    measured_s = worst.measured.median if worst.measured is not None else 0.0
    where = "with a core for every rank" if not worst.oversubscribed else "though all share cores"
    of = f"{len(fair)} points" if len(fair) > 1 else "one point"
    return (
        f"Over {of} {where} the predicted step time was off by {100 * median:.1f} % in the median and by "
        f"{100 * abs(worst.error or 0):.1f} % at most ({worst.study}, {place(worst)}: predicted "
        f"{seconds(worst.predicted_s or 0)}, measured {seconds(measured_s)})."
    )


def _error_cells(errors: Sequence[float]) -> tuple[Value, ...]:
    """Number, median and 90th percentile of the sizes, bias (median with its sign), largest with its sign."""
    sizes = [abs(error) for error in errors]
    return (
        values.count(len(errors)), values.percent(statistics.median(sizes)), values.percent(percentile(sizes, 0.9)),
        values.signed_percent(statistics.median(errors)), values.signed_percent(max(errors, key=abs)),
    )  # fmt: skip


def _error_columns(first: str) -> tuple[Column, ...]:
    return (
        Column(name=first), Column(name="number", numeric=True),
        Column(name="median", numeric=True, csv_name="median_percent"),
        Column(name="p90", numeric=True, csv_name="p90_percent"),
        Column(name="bias", numeric=True, csv_name="bias_percent"),
        Column(name="largest", numeric=True, csv_name="largest_percent"),
    )  # fmt: skip


def _summary(points: Sequence[Point]) -> Table:
    rows: list[tuple[Value | str, ...]] = [
        (label, *_error_cells([point.error or 0.0 for point in own])) for label, own in _groups(points)
    ]
    return Table(
        name="prediction-errors", columns=_error_columns("points"), rows=tuple(rows),
        caption="Error of the predicted step time over points.",
        note="Error is (predicted - measured) / measured. Median and p90 (the error that nine of ten points do not "
        "exceed) are of its size; bias, its median, and the largest keep the sign: plus where the prediction was too "
        "long. Nothing of these runs was used for the prediction.",
    )  # fmt: skip


def _every_point(points: Sequence[Point]) -> Table:
    columns = (
        Column(name="study"), Column(name="point"),
        Column(name="measured", numeric=True, tone="measured", csv_name="measured_s"),
        Column(name="predicted", numeric=True, tone="predicted", csv_name="predicted_s"),
        Column(name="error", numeric=True, csv_name="error_percent"), Column(name="within the jobs' 95 % interval"),
    )  # fmt: skip
    rows = [
        (point.study, f"{place(point)}{' *' if point.oversubscribed else ''}",
         values.time(point.measured.median if point.measured else None), values.time(point.predicted_s),
         values.signed_percent(point.error), _inside(point))
        for point in points
    ]  # fmt: skip
    groups = [index for index in range(1, len(points)) if points[index].study != points[index - 1].study]
    return Table(
        name="prediction-points", columns=columns, rows=tuple(rows), groups=tuple(groups),
        caption="Predicted and measured step time of every point.",
        note=OVERSUBSCRIBED_NOTE if any(point.oversubscribed for point in points) else "",
    )  # fmt: skip


def _inside(point: Point) -> str:
    """Whether the predicted value lies in the interval of the measured median."""
    if point.measured is None or point.measured.low is None or point.measured.high is None:
        return f"no interval (n = {len(point.jobs)})"
    inside = point.measured.low <= (point.predicted_s or 0) <= point.measured.high
    return "yes" if inside else "no"


def _phases(points: Sequence[Point]) -> Table:
    """Errors of each phase, over the points with a core for every rank where it takes part of the step worth naming."""
    rows: list[tuple[Value | str, ...]] = []
    for phase in PHASE_ORDER:
        errors = []
        for point in points:
            measured, predicted = point.phases_measured(), point.phases_predicted()
            large = point.measured is not None and measured.get(phase, 0) > LEAST_PHASE_SHARE * point.measured.median
            if large and phase in predicted and not point.oversubscribed:
                errors.append(predicted[phase] / measured[phase] - 1)
        if errors:
            rows.append((PHASE_NAMES[phase], *_error_cells(errors)))
    return Table(
        name="prediction-phases", columns=_error_columns("phase"), rows=tuple(rows), folded=True,
        caption="Error of the predicted phases over points with a core for every rank.",
        note=f"Points where the phase takes more than {100 * LEAST_PHASE_SHARE:.0f} % of the measured step.",
    )  # fmt: skip
