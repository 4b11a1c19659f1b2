"""``janus calibrate``: measure this host and write its machine file. The measuring is in janus/calibrate.py."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from janus.errors import UserError

EXAMPLES = """examples:
  janus calibrate --out host.toml                    one rank, one per core, and two per core where cores are few
  janus calibrate --out host.toml --ranks 1,2        these numbers of ranks only
  janus calibrate --out host.toml --json             the constants and their errors as one JSON document

The file says how fast one rank is when the host runs that many ranks; 'janus plan --machine host.toml' uses it.
It is refused on a host with another processor or another number of cores.
"""
FEW_CORES = 4  # up to here two ranks per core are measured too: small hosts are where people try more ranks than cores


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus calibrate", description="Measure this host (in about a minute) into a machine file.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.toml", help="machine file to write")
    parser.add_argument("--ranks", metavar="N,N,...", help="numbers of ranks to measure (1 is always measured)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    return parser


def _fillings(text: str | None, cores: int) -> list[int]:
    """Numbers of ranks to measure, ascending, 1 first. Raises UserError for a list that is not one."""
    if text is None:
        return sorted({1, cores, *([2 * cores] if cores <= FEW_CORES else [])})
    try:
        numbers = {int(word) for word in text.split(",")}
    except ValueError:
        raise UserError(f"--ranks is {text!r}: write numbers with commas between, like 1,2") from None
    if min(numbers) < 1 or max(numbers) > 8 * cores:
        raise UserError(f"--ranks is {text!r}: use numbers from 1 to {8 * cores} (8 per core of this host)")
    return sorted({1, *numbers})


def _launcher(ranks: int) -> list[str]:
    """The words that start ``ranks`` processes here. Raises UserError where there is no MPI launcher."""
    if ranks == 1:
        return []
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise UserError(f"mpiexec was not found to start {ranks} ranks: install the package mpich or use --ranks 1")
    return [found, "-n", str(ranks)]


def _measure(ranks: int, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Raw timings of one filling, measured by processes of their own. Raises UserError with their last words."""
    command = [*_launcher(ranks), sys.executable, "-m", "janus.calibrate", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None, "the output is a pipe"
        last = ""
        try:
            for line in process.stdout:
                if line.startswith("stage "):
                    on_stage(line.removeprefix("stage ").strip())
                elif line.startswith("{"):
                    last = line
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code != 0 or not last:
            errors.seek(0)
            words = errors.read().strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"measuring {ranks} ranks failed with code {code} ({words[0]}): try --ranks 1")
    return json.loads(last)


def measure_all(fillings: Sequence[int]) -> list[dict[str, Any]]:
    """Raw timings of every filling, under a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from janus.calibrate import STAGES

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("calibrating", total=len(fillings) * len(STAGES))

        def start(ranks: int) -> Callable[[str], None]:
            def stage(name: str) -> None:
                progress.update(task, advance=1, description=f"{ranks} rank{'s' * (ranks > 1)}: {name}")

            return stage

        return [_measure(ranks, start(ranks)) for ranks in fillings]


def _print_tables(values: dict[str, Any], judgements: Sequence[Any], out: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rates = Table(
        title=f"{values['device_name']}: one rank, by ranks on this host (quality: median residual of the fit)",
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    rates.add_column("constant")
    for table in values["rates"].values():
        rates.add_column(f"{table['ranks']['value']} rank(s)", justify="right")
    for name in next(iter(values["rates"].values())):
        if name in ("ranks", "threads", "fused_s"):
            continue
        entries = [table.get(name) for table in values["rates"].values()]
        rates.add_row(name, *("-" if e is None else f"{e['value']:.3g} ± {100 * e['quality']:.0f} %" for e in entries))
    rates.add_row("all_reduce_bytes_per_s", *(
        f"{table['all_reduce_bytes_per_s']['value']:.3g}" if "all_reduce_bytes_per_s" in table else "-"
        for table in values["rates"].values()
    ))  # fmt: skip
    console.print(rates)
    title = "short training steps: measured and predicted (a held-out step took no part in the fit)"
    steps = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("ranks", "model", "angles", "use", "measured ms", "predicted ms", "error"):
        steps.add_column(heading, justify="left" if heading in ("model", "use") else "right")
    for entry in judgements:
        steps.add_row(
            str(entry.ranks), entry.model, f"{entry.angles:.0f}", "held out" if entry.held_out else "fit",
            f"{1e3 * entry.measured_s:.1f}", f"{1e3 * entry.predicted_s:.1f}", f"{100 * entry.error:+.0f} %",
        )  # fmt: skip
    console.print(steps)
    peak = values["device"]["peaks"]["float32"]["value"]
    console.print(f"peak: {peak / 1e9:.1f} GFLOP/s float32 per core (measured square product); machine file: {out}")


def _require_writable(out: Path) -> None:
    """Raise UserError before measuring, not after, when the machine file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another place") from None


def main(arguments: list[str]) -> int:
    """Measure, fit, write the machine file."""
    options = _parser().parse_args(arguments)
    if options.out.suffix != ".toml":
        raise UserError(f"--out is {options.out}: a machine file's name ends in .toml")
    _require_writable(options.out)
    import psutil

    from perfmodel.calibration import error_summary, machine_values
    from perfmodel.host import this_host
    from perfmodel.machine import write_machine

    host = this_host()
    raws = measure_all(_fillings(options.ranks, host.cores))
    values, judgements = machine_values(
        raws, host=host, memory_bytes=psutil.virtual_memory().total, date=datetime.now(UTC).date().isoformat()
    )
    write_machine(options.out, values)
    if options.json:
        print(json.dumps({"machine": str(options.out), "values": values, "errors": error_summary(judgements)}))
    else:
        _print_tables(values, judgements, options.out)
    return 0
