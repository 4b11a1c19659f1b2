"""``janus study watch``: a campaign while it runs, live in the terminal, its page rendered again as records change.

It owns the live view and when the page is rendered; rows are those of ``study status``, the page that of ``report``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from janus.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from janus.cli.study_status import Status
    from scaling_studies.progress import PointProgress

EXAMPLES = """examples:
  janus study watch studies/first
  janus study watch studies/first --page report.html --every 30
                                         (keep the page open and reload it)

It only looks: stop it with Ctrl-C at any time, the campaign goes on. It ends by
itself when every point is complete.
"""
LEAST_EVERY_S = 1.0
BAR_WIDTH = 20
SHOWN_FAILURES = 4


@dataclass(frozen=True, kw_only=True)
class View:
    """What one look saw. page: what became of the page at its last rendering, "" without one."""

    folder: Path
    status: Status
    seen_at: datetime
    page: str = ""

    @property
    def is_complete(self) -> bool:
        """Every point has what it wants and nothing is in flight."""
        rows = self.status.rows  # none: 'run' has not yet written down its points
        return bool(rows) and all(row.is_complete and not row.in_flight for row in rows)


def main(arguments: list[str]) -> int:
    """Watch until the campaign is complete or Ctrl-C. Returns 0. Raises UserError when there is no campaign."""
    options = _parser().parse_args(arguments)
    if not options.every >= LEAST_EVERY_S:
        raise UserError(f"--every {options.every:g} is too often: use {LEAST_EVERY_S:g} second or more")
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    looks = _looks(options.folder, options.page, options.title)
    try:
        view = next(looks)  # what cannot be watched is said before the screen is taken
        with Live(live_view(view), console=console, refresh_per_second=4) as live:
            while not view.is_complete:
                time.sleep(options.every)
                view = next(looks)
                live.update(live_view(view))
    except KeyboardInterrupt:
        console.print("stopped watching; the campaign is as it was")
        return 0
    console.print("every point is complete")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus study watch", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Show a campaign live: good attempts, jobs in flight, failures, node-hours.",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="folder that 'janus study run' wrote")
    parser.add_argument("--page", type=Path, help="page to write again whenever a record has changed")
    parser.add_argument("--title", default="Scaling report", help="heading of the page")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="between looks (default: 10)")
    return parser


def _looks(folder: Path, page: Path | None, title: str) -> Iterator[View]:
    """Look after look; the page is written before a look is shown, and only when the records are other ones."""
    from janus.cli.study_status import read_status

    written_for, page_words = None, ""
    while True:
        view = View(folder=folder, status=read_status(folder, ask=False), seen_at=datetime.now())
        if page is not None and (state := _records_state(folder)) != written_for:
            page_words, written_for = _write_page(folder, page, title), state
        yield replace(view, page=page_words)


def _records_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every record: equal as long as none has changed."""
    from scaling_studies.records import RECORD_FOLDER

    found = []
    for path in (folder / RECORD_FOLDER).glob("*.json"):
        try:
            facts = path.stat()
        except FileNotFoundError:
            continue  # replaced between the listing and now
        found.append((path.name, facts.st_size, facts.st_mtime_ns))
    return tuple(sorted(found))


def _write_page(folder: Path, page: Path, title: str) -> str:
    """Write the page; what went wrong is said and does not end the watch."""
    from janus.cli.report import now_text, read_report_campaign
    from reports.build import build_document
    from reports.files import write_report

    begin = time.monotonic()
    try:
        campaign = read_report_campaign(folder)
        write_report(build_document(campaign, title=title, written_at=now_text()), campaign, page, ["html"])
    except UserError as error:
        return f"{page} was not written: {error}"
    return f"{page} written at {datetime.now():%H:%M:%S} in {time.monotonic() - begin:.1f} s"


def live_view(view: View) -> Group:
    """One frame: a table per study, then failures, then the page and the runner."""
    from rich.console import Group
    from rich.text import Text

    rows = view.status.rows
    good, wanted = sum(min(row.good, row.wanted) for row in rows), sum(row.wanted for row in rows)
    head = Text.assemble(
        (str(view.folder), "bold"), f"  {good} of {wanted} good attempts, seen {view.seen_at:%H:%M:%S}",
    )  # fmt: skip
    studies = [name for name in view.status.budgets if any(row.study == name for row in rows)]
    tables = [_table(view.status, [row for row in rows if row.study == name]) for name in studies]
    return Group(head, *tables, *_lines(view))


def _table(status: Status, rows: Sequence[PointProgress]) -> Table:
    from rich import box
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    first, budget = rows[0], status.budgets.get(rows[0].study)
    spent = status.node_hours(first.study)
    cost = f"{spent:,.3g} node-hours" if budget is None else f"{spent:,.3g} of {budget:,.3g} node-hours"
    title = f"{first.study} ({first.mode}): {cost}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first.scaled.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("", width=BAR_WIDTH)
    table.add_column("good", justify="right", no_wrap=True)
    table.add_column("in flight")
    table.add_column("did not count", no_wrap=True)
    for row in rows:
        bar = ProgressBar(total=max(row.wanted, 1), completed=min(row.good, row.wanted), width=BAR_WIDTH,
                          complete_style="cyan", finished_style="green")  # fmt: skip
        table.add_row(f"{row.x:,g}", bar, f"{row.good} of {row.wanted}", _in_flight(row), str(row.failed or "-"))
    return table


def _in_flight(row: PointProgress) -> str:
    """State and age of each job of a point."""
    words = []
    for entry in row.in_flight:
        age = "" if entry.age_s is None else f" {timedelta(seconds=int(entry.age_s))}"
        words.append(f"{entry.state.lower()}{age}")
    return ", ".join(words) or "-"


def _lines(view: View) -> list[Text]:
    from rich.text import Text

    failures = [row for row in view.status.rows if row.last_failure]
    lines = [Text(f"{row.study}, {row.x:,g}: {row.last_failure}", overflow="ellipsis", no_wrap=True)
             for row in failures[-SHOWN_FAILURES:]]  # fmt: skip
    if len(failures) > SHOWN_FAILURES:
        lines.append(Text(f"and {len(failures) - SHOWN_FAILURES} more failures: janus study status {view.folder}"))
    lines += [Text(note) for note in view.status.notes]
    runner = view.status.runner
    lines.append(Text(f"runner: {runner}" if runner else "no runner at work: 'janus study run' goes on", style="dim"))
    return lines + ([Text(view.page, style="dim")] if view.page else [])
