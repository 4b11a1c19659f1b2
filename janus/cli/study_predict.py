"""``janus study predict``: a campaign that is predicted only, up to full machines. It owns options and the table."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.cli.study_data import refuse_other_folder
from janus.errors import UserError

if TYPE_CHECKING:
    from scaling_studies.records import Record

EXAMPLES = """examples:
  janus study predict --machine lineshine cnis --model matris-moe-l \\
      --out studies/full
  janus report studies/full --out full.html
  janus study predict --machine lineshine --model matris-moe-m \\
      --out studies/medium --json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus study predict", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Weak and strong scaling from one unit of 8 ranks to the full machine, predicted:\n"
        "nothing is run, and every record says so. Points that do not fit in memory are\n"
        "kept with the reason.",
    )  # fmt: skip
    parser.add_argument("--machine", nargs="+", required=True, metavar="NAME", help="machines of the catalogue")
    parser.add_argument("--model", default="matris-moe-l", help="a matris-moe preset (default: matris-moe-l)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the campaign, for 'janus report'")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    return parser


def main(arguments: list[str]) -> int:
    """Write the predicted records and print them. Returns 0. Raises UserError for what cannot be predicted."""
    options = _parser().parse_args(arguments)
    refuse_other_folder(options.out)
    _refuse_measured(options.out)
    records = _records(options)
    _write(options.out, records)
    base_of = {record.study: record for record in records if record.ranks == record.base_ranks}
    points = [_values(record, base_of[record.study]) for record in records]
    if options.json:
        print(json.dumps({"schema": "janus.prediction/1", "folder": str(options.out), "points": points}))
    else:
        _print(points)
        print(f"predicted only, nothing was run: janus report {options.out} --out report.html")
    return 0


def _records(options: argparse.Namespace) -> list[Record]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from scaling_studies.full_machine import all_full_machine_records

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=None)
        machines = list(dict.fromkeys(options.machine))
        return all_full_machine_records(
            machines, options.model, lambda line: progress.update(task, description=f"predicting {line}")
        )


def _refuse_measured(folder: Path) -> None:
    """Raise UserError where the folder holds anything but predictions."""
    from scaling_studies.records import MEASURED, RECORD_FOLDER, read_folder

    found = read_folder(folder / RECORD_FOLDER)
    if found.refused or any(record.source == MEASURED for record in found.records):
        raise UserError(f"{folder} holds a measured campaign or files of another kind: use a new --out")


def _write(folder: Path, records: Sequence[Record]) -> None:
    """Write the records; those of an earlier prediction go."""
    from scaling_studies.records import RECORD_FOLDER, STUDY_PLACE, read_folder, write_record

    place = folder / RECORD_FOLDER
    before = {record.file_name for record in read_folder(place).records}
    studies = list(dict.fromkeys(record.study for record in records))
    for record in records:
        facts = {**record.facts, STUDY_PLACE: studies.index(record.study)}
        write_record(place, dataclasses.replace(record, facts=facts))
    for old in before - {record.file_name for record in records}:
        (place / old).unlink()


def _values(record: Record, base: Record) -> dict[str, Any]:
    """One point; None where it is not known. base: the point that efficiency refers to."""
    from scaling_studies.ratios import efficiency, percent_of_peak

    step_s = record.step_s[0] if record.step_s else None
    known = step_s is not None and bool(base.step_s)
    return {
        "source": record.source, "study": record.study, "mode": record.mode, "machine": record.machine,
        "model": record.model, "ranks": record.ranks, "nodes": record.nodes, "state": record.state,
        "reason": record.reason, "step_s": step_s, "start_up_s": record.start_up_s,
        "memory_bytes": record.memory_bytes, "base_ranks": record.base_ranks,
        "efficiency": efficiency(record.mode, base.step_s[0], base.ranks, step_s, record.ranks) if known else None,
        "model_flops_per_s": record.model_flops / step_s if known and record.model_flops else None,
        "percent_of_peak": percent_of_peak(record.model_flops, step_s, record.peak) if known else None,
    }  # fmt: skip


def _print(points: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for study in dict.fromkeys(point["study"] for point in points):
        line = [point for point in points if point["study"] == study]
        title = f"{study}: {line[0]['model']} on {line[0]['machine']}, {line[0]['mode']}, PREDICTED"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in ("ranks", "nodes", "step", "efficiency", "FLOP/s", "of peak", "memory/rank"):
            table.add_column(heading, justify="right", no_wrap=True)
        for point in line:
            table.add_row(f"{point['ranks']:,}", f"{point['nodes']:,}", *_shown(point))
        console.print(table)
        for point in line:
            if point["reason"]:
                console.print(f"{point['ranks']:,} ranks: {point['reason']}", highlight=False, markup=False)


def _shown(point: Mapping[str, Any]) -> list[str]:
    def text(name: str, form: str, factor: float = 1.0) -> str:
        return "n/a" if point[name] is None else form.format(factor * point[name])

    return [
        text("step_s", "{:,.4g} s"), text("efficiency", "{:.1f} %", 100), text("model_flops_per_s", "{:.3g}"),
        text("percent_of_peak", "{:.1f} %"), text("memory_bytes", "{:.1f} GB", 1e-9),
    ]  # fmt: skip
