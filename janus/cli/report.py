"""``janus report``: page, PDF, summary, LaTeX table and data files from the records of a study. It owns its options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reports.campaign import Campaign
    from reports.training import TrainingRun
    from scaling_studies.records import RecordFolder

EXAMPLES = """examples:
  janus report studies/first --out report.html
                            report.html, .pdf, .md, .tex and folder report-data
  janus report studies/first --out report.html --only html --only pdf
  janus report studies/first --out report.html --run runs/first \\
      --title "Weak and strong scaling, first look"
  janus report studies/new --out report.html --against studies/old
                            with what changed, and in which phase
"""
FORMATS = ("html", "pdf", "md", "tex", "data")  # as in reports.files


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus report",
        description="Write a report that shows every point of a study, measured beside predicted: one\n"
        "HTML page that needs no network, no script and no other file; the same as PDF; a\n"
        "page of Markdown; a LaTeX table; and a folder with every number as CSV and every\n"
        "figure as SVG.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder that 'janus study run' or 'janus study predict' wrote")
    parser.add_argument("--out", type=Path, default=Path("report.html"),
                        help="page to write; the other files are named after it (default: report.html)")  # fmt: skip
    parser.add_argument("--only", action="append", choices=FORMATS, help="write this only; may be given several times")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="earlier study to hold this one against")
    parser.add_argument("--run", type=Path, help="folder of a training run to show as well (its loss and errors)")
    parser.add_argument("--title", default="Scaling report", help="heading of the report")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a line per file")
    return parser


def _training(folder: Path | None) -> TrainingRun | None:
    """The training run to show, None where none was named. Raises UserError when it cannot be read."""
    if folder is None:
        return None
    from reports.training import TrainingRun
    from scaling_studies.measured import UnreadableRun, read_run

    try:
        run, steps = read_run(folder)
    except UnreadableRun as error:
        raise UserError(f"--run {folder}: {error}: name the folder of a finished run or leave it out") from None
    return TrainingRun(run=run, steps=tuple(steps))


def _records(folder: Path) -> RecordFolder:
    """The records of a study's folder. Raises UserError when there is none."""
    from scaling_studies.records import RECORD_FOLDER
    from scaling_studies.study import study_records

    found = study_records(folder)
    if not found.records:
        refused = f" ({len(found.refused)} files were refused)" if found.refused else ""
        raise UserError(f"no record in {folder / RECORD_FOLDER}{refused}: run 'janus study run' first")
    return found


def _declared(folder: Path) -> dict[str, dict[str, object]] | None:
    """The study tables of campaign.toml by name, None without that file. Raises UserError when it cannot be read."""
    from janus.config import read_toml
    from scaling_studies.study import CAMPAIGN_FILE

    if not (folder / CAMPAIGN_FILE).exists():
        return None
    tables: Any = read_toml(folder / CAMPAIGN_FILE).get("study", [])
    return {str(table["name"]): dict(table) for table in tables}


def read_report_campaign(folder: Path, *, against: Path | None = None, run: Path | None = None) -> Campaign:
    """Everything that a report of a study's folder is about. Raises UserError."""
    from reports.campaign import Campaign

    return Campaign(
        folder=_records(folder), training=_training(run), earlier=_records(against) if against else None,
        declared=_declared(folder),
    )  # fmt: skip


def now_text() -> str:
    """The time of writing, as a report shows it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


@contextmanager
def _progress() -> Iterator[Callable[[str, int | None], None]]:
    """A bar on stderr (of a terminal), told what comes next and, once known, out of how many steps."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("reading records", total=None)

        def tell(words: str, total: int | None = None) -> None:
            progress.update(bar, description=words, total=total, advance=0 if total else 1)

        yield tell


def main(arguments: list[str]) -> int:
    """Write the files. Returns 0. Raises UserError when the folder holds no record."""
    options = _parser().parse_args(arguments)
    formats = tuple(name for name in FORMATS if not options.only or name in options.only)
    with _progress() as tell:
        from reports.build import build_document
        from reports.files import num_stages, write_report

        campaign = read_report_campaign(options.folder, against=options.against, run=options.run)
        tell("sections", None)
        document = build_document(campaign, title=options.title, written_at=now_text())
        tell("files", num_stages(document, formats))
        written = write_report(document, campaign, options.out, formats, on_stage=lambda words: tell(words, None))
    _print_result(written, campaign, as_json=options.json)
    return 0


def _print_result(written: list[Path], campaign: Campaign, *, as_json: bool) -> None:
    refused = campaign.folder.refused
    if as_json:
        files = [str(path) for path in written]
        names = [name for name, _ in refused]
        print(json.dumps({"schema": "janus.report/1", "files": files, "records": len(campaign.records),
                          "refused": names, "no_longer_declared": [entry.tag for entry in campaign.folder.undeclared],
                          }))  # fmt: skip
        return
    for path in written:
        if path.is_dir():
            print(f"{path}: {sum(1 for _ in path.iterdir())} files")
        else:
            print(f"{path}: {path.stat().st_size / 1000:,.0f} kB")
    print(f"{len(campaign.records)} records")
    for line in campaign.folder.undeclared_lines:
        print(line)
    for name, reason in refused:
        print(f"refused {name}: {reason}")
