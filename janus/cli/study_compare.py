"""``janus study compare``: a campaign beside an earlier one, in the terminal. It owns this printing only."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from scaling_studies.records import Record
    from scaling_studies.regression import CampaignChange, PointChange, PointKey

EXAMPLES = """examples:
  janus study compare studies/last-month studies/today
  janus study compare studies/last-month studies/today --threshold 5 \\
      --fail-on-regression
  janus study compare studies/last-month studies/today --json

exit code: 0; 3 with --fail-on-regression when a point took more time; 2 for a
mistake, and with --fail-on-regression when no point can be judged
"""
EXIT_REGRESSION = 3


def main(arguments: list[str]) -> int:
    """Print what changed and return the exit code. Raises UserError when a folder has no good job, or nothing to
    judge where regressions shall fail.
    """
    options = _parser().parse_args(arguments)
    if not options.threshold >= 0:
        raise UserError(f"--threshold is {options.threshold:g} %: use 0 or more")
    from scaling_studies.regression import compare_campaigns

    old, new = _records(options.old), _records(options.new)
    change = compare_campaigns(old, new, threshold=options.threshold / 100)
    if options.json:
        print(json.dumps(_document(change, options)))
    else:
        _print_change(change, options)
    if not options.fail_on_regression:
        return 0
    if not any(_can_be_judged(point) for point in change.points):
        raise UserError(
            "no point can be judged, so --fail-on-regression says nothing: compare campaigns that have the same "
            "studies and six good jobs per point"
        )
    return EXIT_REGRESSION if change.regressions else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus study compare",
        description="Hold a campaign against an earlier one: which points changed, by how much, in\nwhich phase.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("old", type=Path, help="folder of the earlier campaign")
    parser.add_argument("new", type=Path, help="folder of the new campaign")
    parser.add_argument("--threshold", type=float, default=2.0, metavar="PERCENT",
                        help="smallest change of interest (default: %(default)s %%)")  # fmt: skip
    parser.add_argument("--fail-on-regression", action="store_true", help="exit code 3 when a point took more time")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def _records(folder: Path) -> list[Record]:
    """Records of a campaign with at least one good measured job; what is left out is named on standard error."""
    import sys

    from scaling_studies.records import DONE, MEASURED, RECORD_FOLDER
    from scaling_studies.study import study_records

    found = study_records(folder)
    for line in (*found.undeclared_lines, *found.refused_lines):
        print(f"{folder}: {line}", file=sys.stderr)
    if not any(record.source == MEASURED and record.state == DONE for record in found.records):
        raise UserError(f"no good job is on record in {folder / RECORD_FOLDER}: check the path, or run the study first")
    return list(found.records)


def _document(change: CampaignChange, options: argparse.Namespace) -> dict[str, Any]:
    """The same as JSON; times in seconds, changes as fractions."""
    return {
        "schema": "janus.compare/1", "old": str(options.old), "new": str(options.new),
        "threshold": options.threshold / 100, "points": [_point_values(point) for point in change.points],
        "only_old": [_name(key) for key in change.only_old], "only_new": [_name(key) for key in change.only_new],
        "regressions": len(change.regressions),
    }  # fmt: skip


def _point_values(point: PointChange) -> dict[str, Any]:
    return {**asdict(point), "words": point.words, "causes": [cause.phase for cause in point.causes]}


def _name(key: PointKey) -> str:
    """A point in words: weak, matris-tiny, 4 ranks."""
    study, _, model, scaled, x = key
    return f"{study}, {model}, {_place(scaled, x)}"


def _place(scaled: str, x: float) -> str:
    """Value of what the study scales, in words."""
    return "1 rank" if (scaled, x) == ("ranks", 1) else f"{x:,g} {scaled.replace('_', ' ')}"


def _print_change(change: CampaignChange, options: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from reports import wording

    console = Console()
    table = Table(title=escape(f"{options.new} against {options.old}"), title_justify="left", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0))  # fmt: skip
    for heading in ("study", "point", "jobs", "earlier", "new", "change"):
        table.add_column(heading, justify="left" if heading == "study" else "right")
    table.add_column("verdict")
    for point in change.points:
        table.add_row(
            point.study, f"{point.x:,g}", f"{point.comparison.num_a}, {point.comparison.num_b}",
            *(wording.seconds(_median(times)) for times in (point.old_s, point.new_s)), _change_text(point),
            point.words,
        )  # fmt: skip
    console.print(table)
    for point in change.points:
        for line in _remarks(point, change.shared_differences):
            console.print(line, markup=False, highlight=False)
    for where, keys in (("earlier", change.only_old), ("new", change.only_new)):
        for key in keys:
            console.print(f"only in the {where} campaign: {_name(key)}", markup=False, highlight=False)
    for difference in change.shared_differences:
        console.print(f"not as it was: {difference}", markup=False, highlight=False)
    console.print(_summary(change), markup=False, highlight=False)


def _can_be_judged(point: PointChange) -> bool:
    return point.comparison.p_value is not None and not point.obstacle


def _median(values: tuple[float, ...]) -> float:
    from statistics import median

    return median(values)


def _change_text(point: PointChange) -> str:
    """The change in percent with its interval, if there is one."""
    if point.obstacle:
        return "n/a"
    text, interval = f"{100 * point.comparison.change:+.1f} %", point.comparison.change_interval
    return text if interval is None else f"{text} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _remarks(point: PointChange, shared: tuple[str, ...]) -> list[str]:
    """Under the table: what a verdict rests on, the phases that caused it, and what is not as it was here alone."""
    head = f"{point.study}, {_place(point.scaled, point.x)}"
    if point.obstacle:
        return [f"{head}: {point.obstacle}"]
    if not (point.is_regression or point.is_improvement):
        return []
    lines = [f"{head}: {point.words} ({point.comparison.why})"]
    lines += [
        f"  {cause.phase}: {1e3 * cause.change_s:+.2f} ms, {100 * (cause.share or 0):.0f} % of the change "
        f"(rank test p = {cause.p_value:.2g})"
        for cause in point.causes
    ]
    lines += [] if point.causes else ["  no phase alone shows it"]
    return lines + [f"  not as it was: {text}" for text in point.differences if text not in shared]


def _summary(change: CampaignChange) -> str:
    num = len(change.points)
    if not num:
        return "no point is in both campaigns: compare campaigns with the same studies"
    longer, shorter = len(change.regressions), sum(point.is_improvement for point in change.points)
    undecided = sum(not _can_be_judged(point) for point in change.points)
    points = "1 point" if num == 1 else f"{num} points"
    text = f"{points}: {longer} took more time, {shorter} less, {undecided} cannot be judged"
    return text + (". Confirm a change with fresh jobs before acting on it" if longer or shorter else "")
