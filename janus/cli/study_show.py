"""``janus study show``: the points of a study, measured beside predicted, in the terminal. It owns this printing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from reports.points import Point, StudyView
    from scaling_studies.records import Record

SHOW_EXAMPLES = """examples:
  janus study show studies/first
  janus study show studies/first --json
"""


def main(arguments: list[str]) -> int:
    """Print the points. Returns 0. Raises UserError when there is none."""
    show = argparse.ArgumentParser(
        prog="janus study show", description="Print every point, measured beside predicted.", epilog=SHOW_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    show.add_argument("folder", type=Path, help="folder that 'janus study run' wrote")
    show.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = show.parse_args(arguments)
    return print_study(options.folder, options.json)


def print_study(folder: Path, as_json: bool) -> int:
    """Print every point of the folder's studies. Raises UserError when there is none."""
    from reports.points import arrange
    from scaling_studies.records import RECORD_FOLDER
    from scaling_studies.study import study_records

    found = study_records(folder)
    if not found.records:
        refused = f" ({len(found.refused)} files were refused)" if found.refused else ""
        raise UserError(
            f"no record in {folder / RECORD_FOLDER}{refused}: run 'janus study run' first, or check the path"
        )
    views = arrange(found.records)
    if as_json:
        points = [_point_values(view, point) for view in views for point in view.points]
        refused = [{"file": name, "reason": reason} for name, reason in found.refused]
        gone = [{"study": entry.study, "x": entry.x, "tag": entry.tag, "state": entry.state, "reason": entry.reason}
                for entry in found.undeclared]  # fmt: skip
        print(json.dumps({"schema": "janus.study/1", "folder": str(folder), "points": points, "refused": refused,
                          "no_longer_declared": gone}))  # fmt: skip
    else:
        _print_tables(views, [*found.undeclared_lines, *found.refused_lines])
    return 0


SHOWN_LEFT_OUT = 10  # attempts that did not count, before the earlier ones are only counted


def _point_values(view: StudyView, point: Point) -> dict[str, Any]:
    return {
        "study": view.name, "mode": view.mode, "ranks": point.ranks, "scaled": point.scaled, "x": point.x,
        "cell_id": point.cell_id, "model": point.model,
        "oversubscribed": point.oversubscribed, "jobs": len(point.jobs), "jobs_planned": point.repeats_planned,
        "excluded": [_left_out_values(entry) for entry in point.excluded],
        "measured_step_s": point.measured.median if point.measured else None,
        "measured_job_step_s": list(point.job_values_s), "predicted_step_s": point.predicted_s,
        "prediction_error": point.error, "efficiency_measured": view.efficiency_measured(point),
        "efficiency_predicted": view.efficiency_predicted(point),
    }  # fmt: skip


def _left_out_values(record: Record) -> dict[str, Any]:
    from scaling_studies.provenance import hosts

    return {
        "attempt": record.attempt, "tag": record.tag, "state": record.state, "reason": record.reason,
        "hosts": hosts(record.provenance) or None, "executor": record.executor, "job_id": record.job_id,
        "started_at": record.started_at, "ended_at": record.ended_at,
        **{name: record.provenance.get(name) for name in ("code_version", "code_revision", "launch_command")},
    }  # fmt: skip


def _left_out_lines(views: Sequence[StudyView]) -> list[str]:
    """The latest attempts that do not count, two lines each: where each ran, and what became of it."""
    from scaling_studies.provenance import hosts

    found = [record for view in views for point in view.points for record in point.excluded]
    found.sort(key=lambda record: record.ended_at or record.started_at or record.submitted_at or "")
    lines = []
    if more := found[:-SHOWN_LEFT_OUT]:
        lines.append(f"{len(more)} earlier attempts did not count: --json lists them")
    for record in found[-SHOWN_LEFT_OUT:]:
        job = f", job {record.job_id}" if record.job_id else ""
        lines += [f"{record.tag}: {record.state} on {hosts(record.provenance) or 'hosts not known'}{job}",
                  f"  {record.reason}"]  # fmt: skip
    return lines


def _print_tables(views: Sequence[StudyView], notes: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from reports import wording

    console = Console()
    for view in views:
        is_to_be_measured = any(point.repeats_planned for point in view.points)
        title = (view.name if view.name == view.mode else f"{view.name} ({view.mode})") + (
            "" if view.is_measured else ", nothing measured yet" if is_to_be_measured else ", predicted only"
        )
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in (
            "ranks" if view.scaled == "ranks" else "per rank",
            "jobs",
            "measured",
            "predicted",
            "error",
            "eff.",
            "pred. eff.",
            "left out",
        ):
            table.add_column(heading, justify="right", no_wrap=True)
        for point in view.points:
            efficiencies = (view.efficiency_measured(point), view.efficiency_predicted(point))
            table.add_row(
                f"{point.x:,.0f}{' *' if point.oversubscribed else ''}",
                f"{len(point.jobs)} of {point.repeats_planned}" if is_to_be_measured else "-",
                wording.seconds(point.measured.median) if point.measured else "n/a",
                wording.seconds(point.predicted_s) if point.predicted_s is not None else "n/a",
                wording.signed_percent(point.error) if point.error is not None else "n/a",
                *("n/a" if value is None else f"{100 * value:.1f} %" for value in efficiencies),
                str(len(point.excluded)),
            )
        console.print(table)
    if any(point.oversubscribed for view in views for point in view.points):
        console.print("* oversubscribed: more ranks than cores")
    for line in (*_left_out_lines(views), *notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
