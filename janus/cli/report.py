"""``janus report``: one self-contained HTML page from the records of a study. It owns its options only."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from janus.errors import UserError

if TYPE_CHECKING:
    from reports.training import TrainingRun

EXAMPLES = """examples:
  janus report studies/first --out report.html
  janus report studies/first --out report.html --run runs/first
  janus report studies/first --out report.html --title "Weak and strong scaling, first look"
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus report",
        description="Write one HTML page that shows every point of a study, measured beside predicted. The page needs "
        "no network, no script and no other file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder that 'janus study run' wrote")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="page to write (default: report.html)")
    parser.add_argument("--run", type=Path, help="folder of a training run to show as well (its loss and errors)")
    parser.add_argument("--title", default="Scaling report", help="heading of the page")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a sentence")
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


def main(arguments: list[str]) -> int:
    """Write the page. Returns 0. Raises UserError when the folder holds no record."""
    options = _parser().parse_args(arguments)
    from reports.page import render_page
    from scaling_studies.atomic import write_atomically
    from scaling_studies.records import RECORD_FOLDER, read_folder

    folder = read_folder(options.folder / RECORD_FOLDER)
    if not folder.records:
        refused = f" ({len(folder.refused)} files were refused)" if folder.refused else ""
        raise UserError(f"no record in {options.folder / RECORD_FOLDER}{refused}: run 'janus study run' first")
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = render_page(folder, title=options.title, written_at=now, training=_training(options.run))
    write_atomically(options.out, page)
    if options.json:
        refused_names = [name for name, _ in folder.refused]
        print(json.dumps({"report": str(options.out), "records": len(folder.records), "refused": refused_names}))
    else:
        print(f"{options.out}: {len(folder.records)} records, {len(page.encode()) / 2**20:.2f} MiB")
        for name, reason in folder.refused:
            print(f"refused {name}: {reason}")
    return 0
