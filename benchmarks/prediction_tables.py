"""The report of ``prediction.py`` as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any


def percent(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def print_errors(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One line per group of layouts."""
    print(f"\n{title}")
    print(f"{'':<38}{'layouts':>8}{'median':>9}{'90 %':>9}{'worst':>9}{'bias':>9}  worst is")
    for name, row in rows.items():
        numbers = "".join(
            f"{percent(row[key], key in ('worst', 'bias')):>9}" for key in ("median", "p90", "worst", "bias")
        )
        print(f"{name:<38}{row['layouts']:>8}{numbers}  {row['worst_case']}")


def print_phases(title: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """predicted - measured of each phase, as a part of the measured step."""
    names = list(next(iter(rows.values())))
    print(f"\n{title}")
    print(f"{'ranks':<8}" + "".join(f"{name:>26}" for name in names))
    for ranks, phases in rows.items():
        cells = (f"{percent(one['error_of_step'], True)} ({percent(one['spread_of_step'])}) of "
                 f"{percent(one['part_of_step'])}" for one in phases.values())  # fmt: skip
        print(f"{ranks:<8}" + "".join(f"{cell:>26}" for cell in cells))


def print_choices(title: str, rows: list[Mapping[str, Any]]) -> None:
    print(f"\n{title}")
    columns = f"{'chosen':<34}{'best measured':<34}{'regret':>8}{'95 % interval':>20}{'rank corr.':>11}"
    print(f"{'ranks, model, data':<36}{columns}")
    for row in rows:
        name, correlation = f"{row['ranks']}, {row['model']}, {row['data']}", row["rank_correlation"]
        interval = "n/a" if row["low"] is None else f"{percent(row['low'], True)} to {percent(row['high'], True)}"
        print(f"{name:<36}{row['chosen']:<34}{row['best']:<34}{percent(row['regret']):>8}{interval:>20}"
              f"{'n/a' if correlation is None else f'{correlation:.2f}':>11}")  # fmt: skip


def print_summary(name: str, summary: Mapping[str, Any]) -> None:
    """All groups of one knowledge."""
    print_errors(f"{name}: all layouts, and by ranks", {"all": summary["all"], **summary["by_ranks"]})
    print_errors(f"{name}: by model and data", summary["by_model"])
    print_errors(f"{name}: by kind of layout (a layout can be of several)", summary["by_kind"])
    print_phases(f"{name}: predicted - measured by phase, median (90 % of layouts within) in parts of the step, and "
                 "the phase's part of it", summary["by_phase"])  # fmt: skip
    print_choices(f"{name}: choice among the layouts over gloo", summary["choices"])
    print_choices(f"{name}: choice among layouts and transports", summary["choices_with_transport"])


def print_cases(cases: list[Mapping[str, Any]]) -> None:
    """Every layout."""
    print(f"\n{'ranks':<6}{'model':<13}{'data':<14}{'layout':<40}{'measured ms (smallest, largest)':>33}"
          f"{'predicted':>11}{'error':>9}{'planned':>9}{'refit':>9}")  # fmt: skip
    for case in cases:
        seconds = case["measured_s"]
        spread = f"{1e3 * median(seconds):.0f} ({1e3 * min(seconds):.0f}, {1e3 * max(seconds):.0f})"
        error = case["error"]
        mark = "*" if case["fitted_by_refit"] and "refit" in error else ""
        print(f"{case['ranks']:<6}{case['model']:<13}{case['data']:<14}{case['layout']:<40}{spread:>33}"
              f"{1e3 * median(case['predicted_s']['exact']):>11.0f}{percent(error['exact'], True):>9}"
              f"{percent(error['planned'], True):>9}{percent(error.get('refit'), True) + mark:>9}")  # fmt: skip


def print_tables(report: Mapping[str, Any]) -> None:
    """Everything; error: predicted / measured - 1."""
    print(f"{report['set']} set; machine: {report['machine']['name']}; uneven cells: {report['uneven']}")
    print(f"noise: a layout's median step is known within {percent(report['noise'])} (median over layouts)")
    print_cases(report["cases"])
    for name, summary in report["summaries"].items():
        print_summary(name, summary)
    if "refit" in report:
        refit = report["refit"]
        print(f"\ncorrections fitted to {', '.join(refit['fitted_to'])}:")
        for name, one in refit["factors"].items():
            print(f"  {name}: x {one['factor']:.3f} (spread {percent(one['quality'])}, {one['samples']} phases)")
        print_errors("what they were fitted to, before and after", refit["fit_cases"])
        for name, summary in refit["held_out"].items():
            print_summary(f"held out, {'before' if name == 'exact' else 'after'} the refit", summary)
