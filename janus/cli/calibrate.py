"""``janus calibrate``: measure this host and write its machine file. The measuring is in janus/calibrate.py."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from janus.errors import UserError

EXAMPLES = """examples:
  janus calibrate --out host.toml                    one rank, one per core, and two per core where cores are few
  janus calibrate --out host.toml --quick            fewer steps and sizes, over gloo alone: half a minute, less sure
  janus calibrate --out host.toml --ranks 1,2        these numbers of ranks only
  janus calibrate --out host.toml --json             the constants and their errors as one JSON document

The file says how fast one rank is when the host runs that many ranks, and what their collectives cost;
'janus plan --machine host.toml' uses it. It is refused on a host with another processor or number of cores.
Run it while the host does nothing else: it says where it was disturbed and which constants that leaves in doubt.
"""
FEW_CORES = 4  # up to here two ranks per core are measured too: small hosts are where people try more ranks than cores


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus calibrate", description="Measure this host (in one to two minutes) into a machine file.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.toml", help="machine file to write")
    parser.add_argument("--ranks", metavar="N,N,...", help="numbers of ranks to measure (1 is always measured)")
    parser.add_argument("--quick", action="store_true", help="measure less, in about half a minute")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: GPUs where NVIDIA's driver lists any"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    return parser


def _fillings(text: str | None, cores: int, gpus: int = 0) -> list[int]:
    """Numbers of ranks to measure, ascending, 1 first. Raises UserError for a list that is not one."""
    most = gpus or 8 * cores
    if text is None:
        return sorted({1, gpus}) if gpus else sorted({1, cores, *([2 * cores] if cores <= FEW_CORES else [])})
    try:
        numbers = {int(word) for word in text.split(",")}
    except ValueError:
        raise UserError(f"--ranks is {text!r}: write numbers with commas between, like 1,2") from None
    if min(numbers) < 1 or max(numbers) > most:
        why = "one per GPU of this host" if gpus else "8 per core of this host"
        raise UserError(f"--ranks is {text!r}: use numbers from 1 to {most} ({why})")
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


class _RanksFailedError(Exception):
    """The processes of a filling ended badly: their exit code and last words."""


def _measure(ranks: int, device: str, quick: bool, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Raw timings of one filling, measured by processes of their own; over MPI beside gloo where that starts.

    Raises UserError with their last words.
    """
    words = ["--device", device, *(["--quick"] if quick else [])]
    over_mpi = ranks > 1 and device == "cpu" and not quick
    try:
        if over_mpi:
            try:
                return _run(ranks, [*words, "--transport", "mpi"], on_stage)
            except _RanksFailedError as error:
                print(f"janus calibrate: {ranks} ranks over MPI: {error}; gloo alone is measured", file=sys.stderr)
        return _run(ranks, words, on_stage)
    except _RanksFailedError as error:
        raise UserError(f"measuring {ranks} ranks failed with {error}: try --ranks 1") from None


def _run(ranks: int, words: Sequence[str], on_stage: Callable[[str], None]) -> dict[str, Any]:
    command = [*_launcher(ranks), sys.executable, "-m", "janus.calibrate", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None, "the output is a pipe"
        last, start_up_s = "", None
        try:
            for line in process.stdout:
                if line.startswith("stage "):
                    on_stage(line.removeprefix("stage ").strip())
                elif line.startswith("started"):
                    start_up_s = time.perf_counter() - start
                elif line.startswith("{"):
                    last = line
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code != 0 or not last:
            errors.seek(0)
            spoken = errors.read().strip().splitlines()[-1:] or ["no message"]
            raise _RanksFailedError(f"code {code} ({spoken[0]})")
    return {**json.loads(last), "start_up_s": start_up_s}


def measure_all(fillings: Sequence[int], *, device: str = "cpu", quick: bool = False) -> list[dict[str, Any]]:
    """Raw timings of every filling, under a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from janus.calibrate import is_crowded, num_stages

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    total = sum(num_stages(quick, device == "cpu" and is_crowded(ranks)) for ranks in fillings)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("calibrating", total=total)

        def start(ranks: int) -> Callable[[str], None]:
            def stage(name: str) -> None:
                progress.update(task, advance=1, description=f"{ranks} rank{'s' * (ranks > 1)}: {name}")

            return stage

        return [_measure(ranks, device, quick, start(ranks)) for ranks in fillings]


class HostWatch:
    """Watches what other processes take of the cores while this one's children measure."""

    def __init__(self) -> None:
        self.load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
        self._start_s, self._busy_s, self._own_s = time.perf_counter(), _busy_seconds(), _own_seconds()

    def noise(self) -> Any:
        """perfmodel.calibration_noise.Noise of the time since."""
        import psutil

        from perfmodel.calibration_noise import Noise

        everyone_s, own_s = _busy_seconds() - self._busy_s, _own_seconds() - self._own_s
        whole_s = (time.perf_counter() - self._start_s) * (psutil.cpu_count() or 1)
        return Noise(load_before=self.load_before, other_share=max(0.0, everyone_s - own_s) / whole_s)


def _busy_seconds() -> float:
    """CPU seconds of all processes on all cores, those that the hypervisor took included."""
    import psutil

    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _print_tables(values: dict[str, Any], judgements: Sequence[Any], out: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(_rates_table(values))
    console.print(_families_table(values))
    if values["collectives"]:
        console.print(_collectives_table(values))
    console.print(_steps_table(judgements))
    provenance = values["provenance"]
    for what in ("fit", "held_out"):
        if f"{what}_median_abs_error" in provenance:
            console.print(
                f"{what.replace('_', ' ')} steps: median error {100 * provenance[f'{what}_median_abs_error']:.1f} %, "
                f"90th percentile {100 * provenance[f'{what}_90th_abs_error']:.1f} %, worst "
                f"{100 * provenance[f'{what}_worst_abs_error']:.1f} %, bias {100 * provenance[f'{what}_bias']:+.1f} %"
            )
    peak = values["device"]["peaks"]["float32"]
    started = ", ".join(f"{entry['value']:.1f} s of {name.removeprefix('ranks_')}"
                        for name, entry in values["start_up"].items())  # fmt: skip
    console.print(
        f"peak: {peak['value'] / 1e9:.1f} GFLOP/s float32 ({peak['name']}); start-up by ranks: {started or 'n/a'}; "
        f"machine file: {out}"
    )


def _table(title: str, headings: Sequence[str], left: Sequence[str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    return table


def _with_quality(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    return f"{entry['value']:.3g}" + (f" ± {100 * entry['quality']:.0f} %" if "quality" in entry else "")


def _rates_table(values: dict[str, Any]) -> Any:
    tables = list(values["rates"].values())
    title = f"{values['device_name']}: one rank, by ranks on this host (±: median residual of the fit, or spread)"
    found = _table(title, ["constant", *(f"{table['ranks']['value']} rank(s)" for table in tables)], ["constant"])
    names = dict.fromkeys(name for table in tables for name in table)
    for name in names:
        if name not in ("ranks", "threads", "fused_s", "fused_row_s", "families"):
            found.add_row(name, *(_with_quality(table.get(name)) for table in tables))
    return found


def _families_table(values: dict[str, Any]) -> Any:
    tables = list(values["rates"].values())
    headings = ["family", "constant", *(f"{table['ranks']['value']} rank(s)" for table in tables)]
    found = _table("inside steps of one model family, in place of the constants above", headings, headings[:2])
    for family in tables[0]["families"]:
        for name in tables[0]["families"][family]:
            found.add_row(family, name, *(_with_quality(table["families"][family][name]) for table in tables))
    return found


def _collectives_table(values: dict[str, Any]) -> Any:
    headings = ("transport", "collective", "ranks", "groups", "latency us", "GB/s", "quality", "sizes kept")
    found = _table("collectives (latency + size / bandwidth, or the times at each size)", headings, headings[:2])
    for transport, collectives in values["collectives"].items():
        for collective, groups in collectives.items():
            for entry in groups.values():
                found.add_row(
                    transport, collective, str(entry["ranks"]["value"]), str(entry["groups"]["value"]),
                    f"{1e6 * entry['latency_s']['value']:.0f}", f"{entry['bytes_per_s']['value'] / 1e9:.2f}",
                    f"{100 * entry['latency_s']['quality']:.0f} %",
                    str(len(entry["knots_s"]["value"])) if "knots_s" in entry else "line",
                )  # fmt: skip
    return found


def _steps_table(judgements: Sequence[Any]) -> Any:
    title = "short training steps: measured and predicted (held out: took no part in the fit; rec.: recomputed)"
    headings = ("ranks", "model", "angles", "use", "measured ms", "predicted ms", "error")
    found = _table(title, headings, ("model", "use"))
    for entry in judgements:
        found.add_row(
            str(entry.ranks), entry.model + ", rec." * entry.recompute, f"{entry.angles:.0f}",
            "held out" if entry.held_out else "fit", f"{1e3 * entry.measured_s:.1f}",
            f"{1e3 * entry.predicted_s:.1f}", f"{100 * entry.error:+.0f} %",
        )  # fmt: skip
    return found


def _require_writable(out: Path) -> None:
    """Raise UserError before measuring, not after, when the machine file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another place") from None


def _num_gpus(device: str) -> int:
    """GPUs to measure; 0 for the CPU. Raises UserError where GPUs are asked for and there are none."""
    from perfmodel.host import gpu_names

    if device == "cpu" or (device == "auto" and not gpu_names()):
        return 0
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 and device == "cuda":
        raise UserError("--device is 'cuda' but torch sees no GPU: use --device cpu or a CUDA build of torch")
    return count


def main(arguments: list[str]) -> int:
    """Measure, fit, write the machine file."""
    options = _parser().parse_args(arguments)
    if options.out.suffix != ".toml":
        raise UserError(f"--out is {options.out}: a machine file's name ends in .toml")
    from perfmodel.host import this_host

    host = this_host()
    gpus = _num_gpus(options.device)
    fillings = _fillings(options.ranks, host.cores, gpus)
    _require_writable(options.out)
    import psutil

    from perfmodel.calibration import error_summary, machine_values
    from perfmodel.machine import write_machine

    watch = HostWatch()
    raws = measure_all(fillings, device="cuda" if gpus else "cpu", quick=options.quick)
    noise = watch.noise()
    values, judgements = machine_values(
        raws, host=host, memory_bytes=psutil.virtual_memory().total, date=datetime.now(UTC).date().isoformat(),
        noise=noise,
    )  # fmt: skip
    write_machine(options.out, values)
    if options.json:
        print(json.dumps({"machine": str(options.out), "values": values, "errors": error_summary(judgements)}))
    else:
        _print_tables(values, judgements, options.out)
    _warn(noise.sentences(host.cores), values["provenance"])
    return 0


def _warn(disturbances: Sequence[str], provenance: dict[str, Any]) -> None:
    """Say on standard error what disturbed the measurement and which constants that leaves in doubt."""
    if disturbances:
        print(f"janus calibrate: {'; '.join(disturbances)}: calibrate again while the host is quiet", file=sys.stderr)
    if provenance["distrusted"]:
        print(
            "janus calibrate: repeats lie far apart, do not rely on: " + "; ".join(provenance["distrusted"]),
            file=sys.stderr,
        )
