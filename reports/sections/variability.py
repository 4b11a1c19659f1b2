"""How much jobs, steps and ranks of a point differ: spread, tails, drift in time."""

from __future__ import annotations

import statistics

from reports import figures_spread, samples, values
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Section, Table, Text, Value
from reports.points import Point, StudyView
from reports.scaling_section import x_value
from reports.wording import NOT_MEASURED, scaled_name, signed_percent, study_title
from scaling_studies.statistics import LEAST_P_OF_T, SIGNIFICANCE, THRESHOLD, Trend, order_effect

LEAD = (
    "The job is the sample; steps inside a job and ranks inside a step are correlated and say only how even the work "
    "is. The variation is standard deviation over mean, withheld where the jobs are not normally distributed (Shapiro-"
    "Wilk test) or are fewer than three."
)
LEAST_FOR_VARIATION = 3
SIGNIFICANT_DIGITS = 2


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section; a predicted campaign has none of it, which it says."""
    if campaign.is_predicted_only:
        words = "Predictions are deterministic: the same input gives the same value, so there is no spread to show."
        return (
            Section(id="variability", title="Variability", short="Variability", blocks=(Text(text=words),),
                    tag=NOT_MEASURED, tone="predicted"),
        )  # fmt: skip
    blocks: list[Block] = [Text(text=LEAD)]
    views = [view for view in campaign.measured_views if any(point.jobs for point in view.points)]
    order = figures_spread.order_of_jobs(views)
    if order is not None:
        blocks += [order, Text(text=_order_words(views), style="note")]
    for view in views:
        picture = figures_spread.spread_of_steps(view)
        blocks += [Heading(text=study_title(view)), *([picture] if picture else []), _jobs(view), _steps(view)]
    return (Section(id="variability", title="Variability", short="Variability", blocks=tuple(blocks)),)


def _order(jobs_values: list[tuple[float, str]]) -> Trend:
    return order_effect([value for value, _ in jobs_values], [began for _, began in jobs_values])


def _trend_words(found: Trend) -> str:
    """A trend in words; one that the rank test shows although it is too small to count is told with its size."""
    is_sure = found.p_value is not None and found.p_value < SIGNIFICANCE
    if found.shown or not is_sure or found.change is None or found.correlation is None:
        return found.words
    direction = "rising" if found.correlation > 0 else "falling"
    return f"{direction}, but by less than the {100 * THRESHOLD:g} % that count ({signed_percent(found.change)})"


def _order_words(views: list[StudyView]) -> str:
    """Whether all jobs together, each relative to its point, rise or fall with time."""
    found = samples.drift(views)
    p = ""
    if found.correlation is not None and found.p_value is not None:
        sign = "below" if found.p_value <= LEAST_P_OF_T else "="
        p = f" (Spearman {found.correlation:+.2f}, p {sign} {max(found.p_value, LEAST_P_OF_T):.2g})"
    return f"Drift over the whole campaign, {found.num} jobs relative to their points: {_trend_words(found)}{p}."


def percent_with_digits(fraction: float) -> str:
    """A small fraction as percent with two significant digits, so that it is not rounded to nothing."""
    return f"{100 * fraction:.{SIGNIFICANT_DIGITS}g} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def variation_value(point: Point) -> Value:
    """Standard deviation over mean of the jobs; n/a where it would describe nothing."""
    jobs = point.job_values_s
    share = samples.variation(jobs) if len(jobs) >= LEAST_FOR_VARIATION else None
    if share is None or samples.is_not_normal(jobs):
        return values.NOT_KNOWN
    return Value(text=percent_with_digits(share), number=100 * share)


def _jobs(view: StudyView) -> Table:
    """Spread of the jobs of each point."""
    columns = (
        Column(name=scaled_name(view), numeric=True, csv_name=view.scaled), Column(name="jobs", numeric=True),
        Column(name="shortest", numeric=True, csv_name="shortest_s"),
        Column(name="median", numeric=True, csv_name="median_s"),
        Column(name="longest", numeric=True, csv_name="longest_s"),
        Column(name="variation", numeric=True, csv_name="variation_percent"),
        Column(name="Shapiro-Wilk p", numeric=True, csv_name="shapiro_wilk_p"),
        Column(name="trend in time"),
    )  # fmt: skip
    rows: list[tuple[Value | str, ...]] = []
    for point in view.points:
        jobs = point.job_values_s
        if point.measured is None:
            continue
        ends = (min(jobs), point.measured.median, max(jobs))
        rows.append((x_value(point), values.count(len(jobs)), *(values.time(value, "measured") for value in ends),
                     variation_value(point), _p_value(samples.normality_p(jobs)), _drift(point)))  # fmt: skip
    return Table(name=f"variability-jobs-{view.name}", columns=columns, rows=tuple(rows),
                 caption=f"Jobs of {view.name}: median step time of each.")  # fmt: skip


def _p_value(p: float | None) -> Value:
    return values.NOT_KNOWN if p is None else Value(text=f"{p:.2g}", number=p)


def _drift(point: Point) -> str:
    """Whether later jobs of a point took longer or shorter, by a rank correlation and a threshold."""
    pairs = [(value, job.started_at) for value, job in zip(point.job_values_s, point.jobs, strict=True)]
    known = [(value, began) for value, began in pairs if began is not None]
    return _trend_words(_order(known)) if len(known) == len(pairs) else "start times not recorded"


def _steps(view: StudyView) -> Table:
    """Steps of all jobs of each point, and the ranks inside them."""
    columns = (
        Column(name=scaled_name(view), numeric=True, csv_name=view.scaled), Column(name="steps", numeric=True),
        Column(name="median", numeric=True, csv_name="median_s"), Column(name="mean", numeric=True, csv_name="mean_s"),
        Column(name="95th percentile", numeric=True, csv_name="p95_s"),
        Column(name="longest", numeric=True, csv_name="longest_s"),
        Column(name="slowest rank over mean rank", numeric=True, csv_name="slowest_over_mean"),
        Column(name="first warm-up step", numeric=True, csv_name="first_warm_up_s"),
    )  # fmt: skip
    rows: list[tuple[Value | str, ...]] = []
    for point in view.points:
        tail = samples.step_tail(point.jobs)
        if tail is None:
            continue
        rows.append((x_value(point), values.count(tail.num_steps),
                     *(values.time(value) for value in (tail.median_s, tail.mean_s, tail.p95_s, tail.longest_s)),
                     _ratio(slowest_over_mean(point)), values.time(_first_step(point))))  # fmt: skip
    return Table(
        name=f"variability-steps-{view.name}", columns=columns, rows=tuple(rows), folded=True,
        caption=f"Steps of {view.name} after warm-up, of all jobs together, and the ranks inside them.",
        note="The slowest rank is by the time it works, waiting left out; medians over steps, then over jobs.",
    )  # fmt: skip


def slowest_over_mean(point: Point) -> float | None:
    """Working time of the slowest rank over that of the mean rank, median over jobs; None where not recorded."""
    found = [
        max(job.rank_times.busy_s) / statistics.fmean(job.rank_times.busy_s)
        for job in point.jobs if job.rank_times is not None and any(job.rank_times.busy_s)
    ]  # fmt: skip
    return statistics.median(found) if found else None


def _ratio(number: float | None) -> Value:
    return values.NOT_KNOWN if number is None else Value(text=f"{number:.3f}", number=number)


def _first_step(point: Point) -> float | None:
    firsts = [job.warm_up_step_s[0] for job in point.jobs if job.warm_up_step_s]
    return statistics.median(firsts) if firsts else None
