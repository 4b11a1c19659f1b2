"""The self-contained HTML page: wording, tables and data of a report. It does not own drawing nor the numbers.

The page needs no network, no JavaScript and no other file. What is predicted says so at every place.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from reports import figures, wording
from reports.points import PHASE_NAMES, PHASE_ORDER, Point, Share, StudyView, arrange, paired
from reports.published import published_run
from reports.training import TrainingRun
from scaling_studies.records import MEASURED, Record, RecordFolder

TEMPLATE_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class FigureBlock:
    """One figure of the page: svg element, caption, and what a reader who cannot see it should know."""

    svg: str
    caption: str
    description: str


def render_page(
    folder: RecordFolder, *, title: str = "Scaling report", written_at: str, training: TrainingRun | None = None
) -> str:
    """The page for a folder of records, and for one training run where one is given. Raises UserError.

    written_at: date and time shown at its foot.
    """
    views = arrange(folder.records)
    run_views = [view for view in views if view.is_measured]
    predicted_views = [view for view in views if not view.is_measured]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["tied"] = wording.tied
    return environment.get_template("page.html.j2").render(
        title=title,
        css=(TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8"),
        written_at=written_at,
        summary=wording.summary(views),
        headline=wording.headline(views),
        points=[_point_row(view, point) for view in run_views for point in view.points],
        studies=[_study_block(view) for view in run_views],
        scatter=_scatter_block(views),
        error_rows=_error_rows(views),
        continuations=[_continuation_block(view) for view in predicted_views],
        training=_training_block(training),
        exclusions=_exclusions(views, folder.refused),
        num_attempts=sum(record.source == MEASURED for record in folder.records),
        assumptions=_assumptions(folder.records),
        method=wording.METHOD,
        provenance=_provenance([record for record in folder.records if record.source == MEASURED]),
        csv_link=_data_link("text/csv", points_csv(views)),
        json_link=_data_link("application/json", json.dumps([dataclasses.asdict(entry) for entry in folder.records])),
        num_records=len(folder.records),
    )


def _figure(name: str, figure: Any, caption: str, description: str) -> FigureBlock:
    return FigureBlock(svg=figures.to_svg(figure, name), caption=caption, description=description)


def _share_text(share: Share) -> str:
    return "n/a" if share.percent is None else f"{share.percent:.1f} %"


def _point_row(view: StudyView, point: Point) -> dict[str, Any]:
    """One line of the table of every point."""
    measured, efficiency = point.measured, view.efficiency_measured(point)
    predicted_efficiency = view.efficiency_predicted(point)
    return {
        "study": view.name, "mode": view.mode, "ranks": point.ranks, "oversubscribed": point.oversubscribed,
        "jobs": f"{len(point.jobs)} of {point.repeats_planned}",
        "measured": wording.seconds(measured.median) if measured else "n/a",
        "raw": ", ".join(wording.seconds(value, unit=False) for value in sorted(point.job_values_s)) or "n/a",
        "interval": measured.interval_text if measured else "no job counted",
        "predicted": wording.seconds(point.predicted_s) if point.predicted_s is not None else "n/a",
        "error": wording.signed_percent(point.error) if point.error is not None else "n/a",
        "efficiency": f"{100 * efficiency:.0f} %" if efficiency is not None else "n/a",
        "efficiency_predicted": f"{100 * predicted_efficiency:.0f} %" if predicted_efficiency is not None else "n/a",
        "memory": wording.mebibytes(max((job.memory_bytes or 0 for job in point.jobs), default=0)),
        "memory_predicted": wording.mebibytes((point.prediction.memory_bytes or 0) if point.prediction else 0),
    }  # fmt: skip


def _peak_rows(view: StudyView) -> list[dict[str, str]]:
    """Percent of peak of each point, with the peak's name, dtype and source beside it."""
    rows = []
    for point in view.points:
        for kind, share in (("measured", point.share_measured()), ("predicted", point.share_predicted())):
            record = (point.jobs[0] if point.jobs else None) if kind == "measured" else point.prediction
            step_s = (point.measured.median if point.measured else None) if kind == "measured" else point.predicted_s
            known = record is not None and record.model_flops is not None and step_s is not None
            rows.append(
                {
                    "ranks": f"{point.ranks:,}", "kind": kind, "percent": _share_text(share),
                    "rate": wording.flops_rate(record.model_flops / step_s) if known else "n/a",  # type: ignore[union-attr, operator]
                    "peak": f"{wording.flops_rate(share.peak.flops_per_s)}, {share.peak.name}" if share.peak else "n/a",
                    "dtype": share.peak.dtype if share.peak else "n/a",
                    "source": share.peak.source if share.peak else share.note,
                }
            )  # fmt: skip
    return rows


def _study_block(view: StudyView) -> dict[str, Any]:
    """Everything the page shows of one measured study."""
    blocks = [
        _figure(
            f"{view.name}-efficiency", figures.efficiency_figure(view),
            wording.efficiency_caption(view), f"{view.mode} efficiency against ranks; numbers: table of points",
        ),
        _figure(
            f"{view.name}-time", figures.step_time_figure(view),
            wording.step_time_caption(view), "step time against ranks; the numbers are in the table of points",
        ),
    ]  # fmt: skip
    breakdown = None
    if any(point.phases_measured() or point.phases_predicted() for point in view.points):
        breakdown = _figure(
            f"{view.name}-phases", figures.breakdown_figure(view),
            wording.BREAKDOWN_CAPTION, "time of each phase, measured beside predicted; numbers: table below",
        )  # fmt: skip
    return {
        "name": view.name, "mode": view.mode, "question": view.question, "constant": wording.constant(view),
        "figures": blocks, "breakdown": breakdown, "phases": _phase_table(view), "peaks": _peak_rows(view),
    }  # fmt: skip


def _phase_table(view: StudyView) -> dict[str, Any]:
    """Phase times of each point, measured and predicted, in milliseconds."""
    columns = []
    for point in view.points:
        columns.append((f"{point.ranks} measured", point.phases_measured()))
        columns.append((f"{point.ranks} predicted", point.phases_predicted()))
    rows = [
        (PHASE_NAMES[phase], [f"{1e3 * phases[phase]:.1f}" if phase in phases else "n/a" for _, phases in columns])
        for phase in PHASE_ORDER
        if any(phase in phases for _, phases in columns)
    ]
    return {"columns": [name for name, _ in columns], "rows": rows}


def _training_block(training: TrainingRun | None) -> dict[str, Any] | None:
    if training is None or not training.losses:
        return None
    block = _figure("training-loss", training.figure(), training.caption, "loss against optimizer step")
    return {"figure": block, "rows": training.rows()}


def _scatter_block(views: Sequence[StudyView]) -> FigureBlock | None:
    if not paired(views):
        return None
    return _figure(
        "prediction", figures.scatter_figure(views), wording.SCATTER_CAPTION,
        "predicted against measured step time; the numbers are in the table of points",
    )  # fmt: skip


def _error_rows(views: Sequence[StudyView]) -> list[dict[str, str]]:
    """Prediction error summarised apart for points with a core per rank and for oversubscribed ones."""
    rows = []
    for label, hollow in (("a core for every rank", False), ("oversubscribed: ranks share cores", True)):
        errors = [point.error or 0.0 for point in paired(views, lambda point: point.oversubscribed == hollow)]  # noqa: B023
        if errors:
            worst = max(errors, key=abs)
            rows.append(
                {
                    "label": label, "points": str(len(errors)),
                    "median": f"{100 * statistics.median(abs(error) for error in errors):.1f} %",
                    "mean": f"{100 * statistics.fmean(abs(error) for error in errors):.1f} %",
                    "worst": wording.signed_percent(worst),
                }
            )  # fmt: skip
    return rows


def _continuation_block(view: StudyView) -> dict[str, Any]:
    """A study that was only predicted, with what was published beside it where something was."""
    record = view.points[-1].any_record
    published = published_run(record.machine, record.model)
    rows = []
    for point in view.points:
        efficiency = view.efficiency_predicted(point)
        share = point.share_predicted()
        flops = point.prediction.model_flops if point.prediction is not None else None
        step_s = point.predicted_s
        rows.append(
            {
                "ranks": f"{point.ranks:,}",
                "facts": _sizes(point.any_record) or "n/a",
                "step": wording.seconds(step_s) if step_s is not None else "n/a",
                "efficiency": f"{100 * efficiency:.1f} %" if efficiency is not None else "n/a",
                "rate": wording.flops_rate(flops / step_s) if flops is not None and step_s is not None else "n/a",
                "percent": _share_text(share),
            }
        )  # fmt: skip
    last_share = view.points[-1].share_predicted()
    peak = last_share.peak
    return {
        "name": view.name, "question": view.question, "model": record.model, "machine": record.machine,
        "mode": view.mode, "rows": rows, "published": published, "peak": peak,
        "peak_text": f"{wording.flops_rate(peak.flops_per_s)} ({peak.name}, {peak.dtype}; source: {peak.source})"
        if peak else "n/a",
        "published_rate": wording.flops_rate(published.flops_per_s) if published else "",
        "published_efficiency": f"{published.efficiency_percent(view.mode):g} %" if published else "n/a",
        "figure": _figure(
            f"{view.name}-continuation", figures.continuation_figure(view, published),
            wording.continuation_caption(published is not None), f"predicted {view.mode} efficiency; numbers: table",
        ),
        "method": record.method, "note": last_share.note,
    }  # fmt: skip


def _sizes(record: Record) -> str:
    """The counts among a record's facts, like "4 units, 2 nodes"."""
    counts = [(name.removesuffix("s"), value) for name, value in record.facts.items() if isinstance(value, int)]
    return ", ".join(wording.count_of(value, name) for name, value in counts)


def _exclusions(views: Sequence[StudyView], refused: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Every attempt, prediction, point or file that the figures leave out, with its reason."""
    rows = []
    for view in views:
        for point in view.points:
            place = f"{view.name}, {wording.count_of(point.ranks, 'rank')}"
            rows += [
                {"what": f"{place}, attempt {entry.attempt}", "state": entry.state, "reason": entry.reason}
                for entry in point.excluded
            ]
            if point.prediction is not None and point.predicted_s is None:
                rows.append({"what": f"{place}, prediction", "state": point.prediction.state,
                             "reason": point.prediction.reason})  # fmt: skip
            if view.is_measured and len(point.jobs) < point.repeats_planned:
                reason = f"{len(point.jobs)} of {point.repeats_planned} planned jobs counted"
                rows.append({"what": place, "state": "incomplete", "reason": reason})
    return rows + [{"what": f"file {name}", "state": "refused", "reason": reason} for name, reason in refused]


def _assumptions(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Assumptions that predictions name, each once, with the machine they are about."""
    found: dict[tuple[str, str], None] = {}
    for record in records:
        for text in record.facts.get("assumptions", []):
            found[(record.machine, str(text))] = None
    return list(found)


def _provenance(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Provenance of the measured records: each key once, all its different values."""
    keys = dict.fromkeys(key for record in records for key in record.provenance if key != "command of the study")
    rows = []
    for key in keys:
        values = dict.fromkeys(wording.plain(record.provenance.get(key)) for record in records if record.provenance)
        shown = [value for value in values if value != "n/a"] or ["n/a"]
        rows.append((key.replace("_", " "), " | ".join(shown[:4]) + (" | ..." if len(shown) > 4 else "")))
    commands = [str(record.provenance.get("command of the study", "")) for record in records]
    if any(commands):
        rows.append(("command of one attempt", max(commands, key=len)))
    return rows


def _data_link(mime: str, text: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(text.encode()).decode()}"


def points_csv(views: Sequence[StudyView]) -> str:
    """Every job and every prediction of every point as CSV, times in seconds."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["study", "mode", "ranks", "cell_id", "source", "attempt", "state", "oversubscribed", "model",
                     "machine", "step_s_median", "num_steps", "model_flops_per_step", "peak_flops_per_s",
                     "peak_name", "memory_bytes", "reason"])  # fmt: skip
    for view in views:
        for point in view.points:
            for record in (*point.jobs, *point.excluded, *([point.prediction] if point.prediction else [])):
                writer.writerow([
                    record.study, record.mode, record.ranks, record.cell_id, record.source, record.attempt,
                    record.state, record.oversubscribed, record.model, record.machine,
                    statistics.median(record.step_s) if record.step_s else "", len(record.step_s),
                    record.model_flops if record.model_flops is not None else "n/a",
                    record.peak.flops_per_s if record.peak else "n/a", record.peak.name if record.peak else "n/a",
                    record.memory_bytes if record.memory_bytes is not None else "n/a", record.reason,
                ])  # fmt: skip
    return stream.getvalue()
