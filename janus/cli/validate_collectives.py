"""``janus validate collectives``: the network model beside collectives measured on real machines."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from janus.errors import UserError

EXAMPLES = """examples:
  janus validate collectives                                  the sample tables: fitted and held-out errors
  janus validate collectives --data rows.csv --json           rows of other systems or scales, as one JSON document
  janus validate collectives --data rows.csv --rows           predicted beside measured, row by row
  janus validate collectives --fit --write fitted.py          fit the constants again, and keep them

tables: the columns of HLC-Lab/pico or HLC-Lab/CRAB (docs/validation_collectives.md)
"""
REPOSITORY = Path(__file__).resolve().parent.parent.parent
WORST_ROWS = 12


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus validate collectives",
        description="Hold the network model against measured times of collectives, by system, algorithm and size.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, nargs="+", action="extend", default=[], metavar="FILE.csv",
                        help="measured tables (default: the sample tables beside the repository)")  # fmt: skip
    parser.add_argument("--fit", action="store_true",
                        help="fit constants to the small scales of these tables, and use those")  # fmt: skip
    parser.add_argument("--write", type=Path, metavar="FILE.py", help="with --fit: write the constants as a module")
    parser.add_argument("--rows", action="store_true", help="every row, predicted beside measured")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _tables(given: Sequence[Path]) -> list[Path]:
    if given:
        return list(given)
    folder = Path(os.environ.get("JANUS_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "collectives"
    found = sorted(folder.glob("*.csv"))
    if not found:
        raise UserError(f"no tables at {folder}: give --data FILE.csv, or set JANUS_SHARED_DATA to the sample data")
    return found


@contextmanager
def _steps(text: str) -> Iterator[Callable[[int], None]]:
    """Progress on a terminal: called with a total first, then once per step with 0."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)

        def advance(total: int) -> None:
            progress.update(task, total=total) if total else progress.update(task, advance=1)

        yield advance


def _errors(verdicts: Sequence[Any]) -> dict[str, Any]:
    """Errors at 1 MiB and more and below, as plain numbers."""
    from perfmodel.network.validation import errors, is_large

    found = {}
    for name, large in (("from_1_mib", True), ("below_1_mib", False)):
        one = errors(verdict for verdict in verdicts if is_large(verdict) == large)
        found[name] = {"rows": 0} if one is None else {
            "rows": one.num_rows, "median_absolute_error": one.median_error, "bias": one.bias,
        }  # fmt: skip
    return found


def _by(verdicts: Sequence[Any], *names: str) -> list[dict[str, Any]]:
    from perfmodel.network.validation import grouped

    def key(one: Any) -> tuple[str, ...]:
        return tuple(getattr(one, name, None) or str(getattr(one.measurement, name)) for name in names)

    return [dict(zip(names, found, strict=True)) | _errors(ones) for found, ones in grouped(verdicts, key).items()]


def _row(one: Any) -> dict[str, Any]:
    what = one.measurement
    return {
        "file": what.file, "line": what.line, "system": what.system, "stack": what.stack,
        "collective": what.collective, "name": what.name, "algorithm": one.algorithm, "nodes": what.num_nodes,
        "ranks_per_node": what.ranks_per_node, "bytes": what.size_bytes, "measured_s": what.measured_s,
        "predicted_s": one.predicted_s, "error": one.error, "fitted": one.fitted, "constants": one.origin,
    }  # fmt: skip


def _choices(verdicts: Sequence[Any]) -> dict[str, Any]:
    from perfmodel.network.validation import choices

    found = choices(verdicts)
    share = found.num_close / found.num_calls if found.num_calls else None
    return {"calls": found.num_calls, "within_5_percent": share, "median_regret": found.median_regret}


def _report(
    verdicts: Sequence[Any], others: Sequence[Any], left_out: Mapping[Any, str], causes: Mapping[Any, dict[str, float]]
) -> dict[str, Any]:
    """Everything that is printed, as plain values. others: the same rows by constants of other machines."""
    from perfmodel.network.validation import left_out_counts

    held = [one for one in verdicts if not one.fitted]
    worst = sorted(held, key=lambda one: -abs(one.error) / (1 + max(0.0, one.error)))[:WORST_ROWS]
    return {
        "judged_rows": len(held), "fitted_rows": len(verdicts) - len(held), "left_out_rows": len(left_out),
        "held_out": _errors(held), "fitted": _errors([one for one in verdicts if one.fitted]),
        "machine_left_out": _errors(others), "best_algorithm": _choices(held),
        "by_system": [
            entry | {"best_algorithm": _choices([one for one in held if (one.measurement.system, one.measurement.stack,
                                                                         one.origin) == tuple(entry.values())[:3]])}
            for entry in _by(held, "system", "stack", "origin")
        ],
        "by_system_fitted": _by([one for one in verdicts if one.fitted], "system", "stack"),
        "by_system_left_out": _by(others, "system", "stack", "origin"),
        "by_algorithm": _by(held, "system", "stack", "collective", "name"),
        "worst": [_row(one) | {"shares": causes[one]} for one in worst if one in causes]
        or [_row(one) for one in worst],
        "not_judged": [
            dict(zip(("system", "collective", "name", "reason", "rows"), entry, strict=True))
            for entry in left_out_counts(left_out)
        ],
    }  # fmt: skip


def _judge(cases: Sequence[Any], known: Mapping[Any, Any]) -> tuple[list[Any], list[Any], dict[Any, dict[str, float]]]:
    """(verdicts, verdicts with the machine left out, causes of each verdict's time)."""
    from perfmodel.network.validation import bounds, judge, left_out_library, library_of, stack_of

    verdicts, others, causes = [], [], {}
    everywhere = {stack: one.all_scales for stack, one in known.items()}
    for case in cases:
        library, fitted = library_of(case, known)
        found = judge(case, library, fitted=fitted)
        verdicts += found
        others += judge(case, left_out_library(stack_of(case), everywhere), fitted=False)
        for one in found:
            if not fitted and abs(one.error) > 0.5:
                causes[one] = bounds(case, library.transport, one.measurement.size_bytes)
    return verdicts, others, causes


def _percent(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def _cells(entry: Mapping[str, Any]) -> list[str]:
    """Rows, median absolute error and bias, from 1 MiB on and below."""
    cells = []
    for name in ("from_1_mib", "below_1_mib"):
        one = entry[name]
        cells += [str(one["rows"]), _percent(one.get("median_absolute_error")), _percent(one.get("bias"), signed=True)]
    return cells


def _print_errors(title: str, names: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> None:
    """A plain table: two groups of rows, error and bias after the names."""
    rows = [[str(entry[name]) for name in names] + _cells(entry) for entry in entries]
    headings = [*names, "rows", "error", "bias", "rows", "error", "bias"]
    widths = [max(len(line[i]) for line in [headings, *rows]) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        count = len(names)
        left = [cell.ljust(width) for cell, width in zip(cells[:count], widths[:count], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[count:], widths[count:], strict=True)]
        return "  " + "  ".join([*left, *right]).rstrip()

    start = 2 + sum(widths[: len(names)]) + 2 * len(names)
    middle = sum(widths[len(names) : len(names) + 3]) + 6
    print(f"\n{title}")
    print(" " * start + "1 MiB and more".ljust(middle) + "below")
    for cells in [headings, *rows]:
        print(line(cells))


ORIGINS = {
    "scales": "fitted to this stack's smaller scales", "stack": "fitted to all scales of this stack that the program "
    "was fitted to", "machine": "another software stack of this machine, host memory as on other machines",
    "others": "mean of other machines: this one was never fitted", "generic": "expected of any machine",
}  # fmt: skip


def _print(report: Mapping[str, Any]) -> None:
    print(
        f"{report['judged_rows']} rows judged, {report['fitted_rows']} rows of the fit set (not judged), "
        f"{report['left_out_rows']} rows not judged; error: median of |predicted / measured - 1|, bias: its median "
        "with sign"
    )
    whole = [dict(report[key]) | {"set": name} for key, name in (
        ("held_out", "held out"), ("fitted", "fit set"), ("machine_left_out", "machine left out"))]  # fmt: skip
    _print_errors("All rows", ("set",), whole)
    _print_errors("Held out, by system", ("system", "stack", "origin"), report["by_system"])
    for origin in sorted({entry["origin"] for entry in report["by_system"]}):
        print(f"  {origin}: constants {ORIGINS[origin]}")
    _print_errors("Fit set, by system", ("system", "stack"), report["by_system_fitted"])
    _print_errors("Every machine by constants of the others", ("system", "stack", "origin"),
                  report["by_system_left_out"])  # fmt: skip
    _print_errors("Held out, by algorithm", ("system", "stack", "collective", "name"),
                  report["by_algorithm"])  # fmt: skip
    _print_choices(report)
    _print_worst(report)
    print("not judged:")
    for entry in report["not_judged"]:
        print(f"  {entry['system']} {entry['collective']} {entry['name']}: {entry['rows']} rows, "
                      f"{entry['reason']}")  # fmt: skip


def _print_choices(report: Mapping[str, Any]) -> None:
    found = report["best_algorithm"]
    print(
        f"best algorithm: of {found['calls']} calls with a choice, the model's is within 5 % of the measured best in "
        f"{_percent(found['within_5_percent'])} (median regret {found['median_regret']:.3f})"
    )
    for entry in report["by_system"]:
        one = entry["best_algorithm"]
        if one["calls"]:
            print(f"  {entry['system']} {entry['stack']}: {_percent(one['within_5_percent'])} of "
                          f"{one['calls']}, median regret {one['median_regret']:.3f}")  # fmt: skip


def _print_worst(report: Mapping[str, Any]) -> None:
    print("worst held-out rows (and what the model's time consists of):")
    for row in report["worst"]:
        _print_row(row)
    if report.get("rows"):
        print("all rows:")
    for row in report.get("rows", []):
        _print_row(row)


def _print_row(row: Mapping[str, Any]) -> None:
    fitted = ", fitted" if row["fitted"] else ""
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.get("shares", {}).items())
    print(
        f"  {row['system']} {row['collective']} {row['name']}, {row['nodes']} x {row['ranks_per_node']} ranks, "
        f"{row['bytes']:.0f} bytes: measured {1e6 * row['measured_s']:.1f} us, predicted "
        f"{1e6 * row['predicted_s']:.1f} us ({_percent(row['error'], signed=True)}{fitted})"
        f"{'; ' + shares if shares else ''}  [{Path(row['file']).name}, line {row['line']}]"
    )


def main(arguments: list[str]) -> int:
    """Read the tables, price every row, print the errors. Returns 0. Raises UserError for a file that is wrong."""
    options = _parser().parse_args(arguments)
    if options.write is not None and not options.fit:
        raise UserError("--write needs --fit: without it there are no new constants to write")
    from perfmodel.network.fitted import FITTED
    from perfmodel.network.fitted_text import fitted_text
    from perfmodel.network.measured import read_measurements
    from perfmodel.network.measured_cases import make_cases
    from perfmodel.network.validation import fit_stacks

    measurements = [one for path in _tables(options.data) for one in read_measurements(path)]
    with _steps("pricing schedules") as advance:
        cases, left_out = make_cases(measurements, advance)
    known: Mapping[Any, Any] = FITTED
    if options.fit:
        with _steps("fitting constants") as advance:
            known = fit_stacks(cases, lambda _: advance(0))
        if options.write is not None:
            from perfmodel.machine import write_text_atomically

            write_text_atomically(options.write, fitted_text(known))
    verdicts, others, causes = _judge(cases, known)
    report = _report(verdicts, others, left_out, causes)
    if options.rows:
        report["rows"] = [_row(one) for one in verdicts]
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0
