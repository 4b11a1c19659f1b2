"""``janus validate paper``: the published full-machine numbers beside the model, and what they say of each other."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXAMPLES = """examples:
  janus validate paper                             both machines: rows, bands, one assignment, identities, unknowns
  janus validate paper --machine cnis              one of them
  janus validate paper --search-seconds 0          without the search: a few seconds
  janus validate paper --json > paper.json         everything, every source and reason included

what is printed: docs/prediction.md, "The published table"
"""
WIDTH = 150  # columns at least: the tables cannot be read on fewer
MOST_MOVED = 0.02  # of its range: less is not called a move


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus validate paper", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Hold the predictor against the published runs of MatRIS-MoE on LineShine and CNIS "
        "(arXiv 2604.15821). Much of them is unpublished: every row has the band that the unknowns allow.",
    )  # fmt: skip
    parser.add_argument("--machine", choices=("lineshine", "cnis"), help="one machine (default: both)")
    parser.add_argument("--search-seconds", type=float, default=40.0, metavar="S",
                        help="computing time at most of each search; 0: none (default: 40)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of samples and search (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; called once per generation of a search."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


def main(arguments: list[str]) -> int:
    """Print the table. Returns 0; 1 where a search found no assignment within the tolerance. Raises UserError."""
    options = _parser().parse_args(arguments)
    if options.search_seconds < 0:
        raise UserError(f"--search-seconds is {options.search_seconds:g}: it must be 0 (no search) or more")
    from perfmodel.machine import load_machine
    from perfmodel.paper import MACHINES, PAPER
    from perfmodel.paper_report import across, machine_report, num_generations

    reports = []
    for name in [options.machine] if options.machine else MACHINES:
        with _progress(f"searching unknowns of {name}", num_generations()) as advance:
            reports.append(machine_report(
                load_machine(name), search_seconds=options.search_seconds, seed=options.seed, advance=advance
            ))  # fmt: skip
    document = {"schema": "janus.paper/1", "paper": PAPER, "across_machines": across(), "machines": reports}
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        _print(document)
    searched = [report["search"] for report in reports if "search" in report]
    return 0 if all(search["exists"] for search in searched) else 1


def _print(document: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    for report in document["machines"]:
        _print_rows(console, report)
        _print_identities(console, report["identities"])
        _print_unknowns(console, report)
        _print_deciding(console, report)
        _print_worth(console, report)
        _print_verdict(console, report)
    one = document["across_machines"]
    console.print(f"\nacross the machines: {one['name']}: {one['left']} {_span(one, 'left')} {one['relation']} "
                  f"{one['right']} {_span(one, 'right')}: {one['verdict']}", markup=False)  # fmt: skip


def _table(title: str, *headings: tuple[str, bool]) -> Table:
    """headings: text, and whether it is a number."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for text, number in headings:
        table.add_column(text, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    size = abs(value)
    if size and (size >= 1e6 or size < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:+.1f} %"


def _print_rows(console: Console, report: Mapping[str, Any]) -> None:
    table = _table(
        f"{report['machine']}: published beside predicted", ("row", False), ("published", True), ("source", False),
        ("at defaults", True), ("error", True), ("band", True), ("of which 90 %", True), ("found", True),
        ("error", True),
    )  # fmt: skip
    for row in report["rows"]:
        table.add_row(
            f"{row['label']} [{row['unit']}]".replace("[", r"\["), row["printed"], row["tag"],
            _number(row["at_defaults"]), _percent(row["error_at_defaults"]),
            f"{_number(row['low'])} to {_number(row['high'])}" + ("" if row["in_band"] else " (misses)"),
            f"{_number(row['low_5'])} to {_number(row['high_95'])}", _number(row["found"]),
            _percent(row["error_of_found"]),
        )  # fmt: skip
    console.print(table)
    console.print(
        "at defaults: assumed values of the machine file, none moved towards these rows. band: what the unknowns "
        "below allow, by samples and corners. found: one assignment near the defaults that was searched for the rows."
    )


def _span(one: Mapping[str, Any], side: str) -> str:
    low, high = _number(one[f"{side}_low"]), _number(one[f"{side}_high"])
    return low if low == high else f"{low} to {high}"


def _print_identities(console: Console, entries: Sequence[Mapping[str, Any]]) -> None:
    table = _table("identities: what the numbers say of each other (printed digits taken as intervals)",
                   ("verdict", False), ("quantity", False), ("one way", False), ("", False), ("other way", False),
                   ("gap", True))  # fmt: skip
    for one in entries:
        follows = one["verdict"] == "follows"
        table.add_row(
            one["verdict"], f"{one['name']} [{one['unit']}]".replace("[", r"\["),
            f"{_span(one, 'left')}: {one['left']}", "" if follows else one["relation"],
            "" if follows else f"{_span(one, 'right')}: {one['right']}", "" if follows else _percent(one["gap"]),
        )  # fmt: skip
    console.print(table)
    for one in entries:
        if one["verdict"] == "contradicts":
            note = f" ({one['note']})" if one["note"] else ""
            console.print(f"contradiction: {one['name']}: {_span(one, 'left')} is not {one['relation']} "
                          f"{_span(one, 'right')} {one['unit']}{note}", markup=False)  # fmt: skip


def _range(one: Mapping[str, Any]) -> str:
    if one["scale"] == "choice":
        return " | ".join(one["words"]) or " | ".join(_number(value) for value in one["choices"])
    return f"{_number(one['low'])} to {_number(one['high'])}"


def _accepted(one: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    if "accepted_low" not in entry:
        return "n/a"
    if one["scale"] == "choice":
        names = dict(zip(one["choices"], one["words"] or map(_number, one["choices"]), strict=True))
        return " | ".join(names[value] for value in entry["accepted_choices"])
    return f"{_number(entry['accepted_low'])} to {_number(entry['accepted_high'])}"


def _print_unknowns(console: Console, report: Mapping[str, Any]) -> None:
    searched = report.get("search")
    table = _table("unknowns", ("what nobody published", False), ("range", False), ("default", False),
                   ("found", False), ("seen within 10 %", False), ("why this range", False))  # fmt: skip
    for one in report["unknowns"]:
        entry = searched["values"][one["key"]] if searched else {}
        moved = entry.get("moved", 0.0) > MOST_MOVED
        table.add_row(
            f"{one['label']} [{one['unit']}]".replace("[", r"\[") if one["unit"] else one["label"], _range(one),
            one["default_in_words"], (entry["in_words"] + (" *" if moved else "")) if searched else "n/a",
            _accepted(one, entry), one["reason"],
        )  # fmt: skip
    console.print(table)
    if searched:
        console.print("* moved from its default. seen within 10 %: over all assignments met that reproduce every row; "
                      "a range that is shorter than the unknown's is what the table says of it.")  # fmt: skip


def _print_deciding(console: Console, report: Mapping[str, Any]) -> None:
    labels = {one["key"]: one["label"] for one in report["unknowns"]}
    table = _table("deciding unknowns: swing of the row over its default value as one moves over its range, and rank "
                   "correlation as all do", ("row", False), ("decided by", False))  # fmt: skip
    for row in report["rows"]:
        words = [
            f"{labels[one['key']]} ({_number(one['swing'])}, {one['correlation']:+.2f})" for one in row["deciding"]
        ]
        table.add_row(row["label"], "; ".join(words))
    console.print(table)


def _print_worth(console: Console, report: Mapping[str, Any]) -> None:
    table = _table("optimised over baseline: how many times longer a step takes without one of what the paper names",
                   ("without", False), ("M, defaults", True), ("M, found", True), ("M, within 10 %", True),
                   ("L, defaults", True), ("L, found", True), ("L, within 10 %", True))  # fmt: skip
    for m, large in zip(report["worth"]["m"], report["worth"]["l"], strict=True):
        cells = []
        for one in (m, large):
            span = f"{one['low']:.2f} to {one['high']:.2f}" if "low" in one else "n/a"
            cells += [f"{one['at_defaults']:.2f}", f"{one['found']:.2f}" if "found" in one else "n/a", span]
        table.add_row(m["label"], *cells)
    console.print(table)


def _print_verdict(console: Console, report: Mapping[str, Any]) -> None:
    searched = report.get("search")
    if searched is None:
        return
    name, facts = report["machine"], searched["facts"]
    batch = "" if searched["within_reported_batch"] else ", but only with batches beyond the reported one"
    if searched["exists"]:
        console.print(
            f"{name}: an assignment within {100 * searched['tolerance']:g} % of every row exists{batch} (worst row "
            f"{100 * searched['worst_error']:.1f} %; {searched['accepted']:,} of {searched['tried']:,} tried). There "
            "are more unknowns than rows: that one exists says little, what it excludes says more."
        )
    else:
        console.print(f"{name}: no assignment within {100 * searched['tolerance']:g} % of every row was found; the "
                      f"best misses one by {100 * searched['worst_error']:.1f} %.")  # fmt: skip
        for row, worst in sorted(searched["conflicts"].items(), key=lambda entry: entry[1])[:3]:
            console.print(f"  without the row {row} the worst error is {100 * worst:.1f} %")
    if searched["stopped_early"]:
        console.print("the search stopped at its time limit: its outcome depends on this machine's speed")
    console.print(
        f"  it means: {facts['full_machine_units']:,.0f} units; configurations per unit "
        f"{facts['peak_configurations_per_unit']:.2f} (peak), {facts['strong_configurations_per_unit']:.2f} (strong), "
        f"{facts['step_l_configurations_per_unit']:.2f} and {facts['step_m_configurations_per_unit']:.2f} (step times "
        f"of L and M, on {facts['step_nodes']:,.0f} nodes); a rank of L needs at most "
        f"{facts['rank_memory_bytes'] / 1e9:.0f} of {facts['rank_available_bytes'] / 1e9:.0f} GB"
    )
