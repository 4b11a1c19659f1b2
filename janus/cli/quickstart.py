"""``janus quickstart``: the whole idea once, from structures to a report. It owns the order, not the parts."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from janus.errors import UserError

EXAMPLES = """examples:
  janus quickstart                          in ./quickstart, ends with the path of the report
  janus quickstart --out /tmp/first --count 80 --steps 20

What it runs, each of them a command of its own:
  janus data make, janus calibrate, janus plan, janus train (by mpiexec), janus evaluate, janus study run, janus report
"""
MARKER = ".janus-quickstart"
MODEL = "matris-tiny"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus quickstart",
        description="Make data, calibrate this host, plan a layout, train, run a small scaling study, write a report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for everything (%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="structures to make (default %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="training steps (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=0, help="ranks of the training run (default: up to 2 cores)")
    return parser


def main(arguments: list[str]) -> int:
    """Run every part in order; the first that fails ends it with its exit code."""
    options = _parser().parse_args(arguments)
    for name, least in (("count", 20), ("steps", 1), ("ranks", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be at least {least}")
    out = _fresh_folder(options.out)
    ranks = options.ranks or min(2, len(os.sched_getaffinity(0)))
    started = time.monotonic()
    for number, (title, run) in enumerate(_parts(out, options.count, options.steps, ranks), start=1):
        print(f"\n[{number}/7] {title}", flush=True)
        code = run()
        if code != 0:
            print(f"janus quickstart: part {number} ({title}) ended with exit code {code}", file=sys.stderr)
            return code
    print(f"\nDone in {time.monotonic() - started:.0f} s. The report: {(out / 'report.html').resolve()}")
    return 0


def _fresh_folder(out: Path) -> Path:
    """An empty folder; one that an earlier quickstart filled is emptied, anything else is refused."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UserError(f"--out {out} holds files that are not from a quickstart: give another folder")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("made by janus quickstart; it may be emptied by the next one\n")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): give another folder") from None
    return out


def _parts(out: Path, count: int, steps: int, ranks: int) -> list[tuple[str, Callable[[], int]]]:
    store, machine, plan, run = (str(out / name) for name in ("alloys.store", "machine.toml", "plan.json", "run"))
    study, report = str(out / "study"), str(out / "report.html")
    config = {"cutoff": "5.0", "line-cutoff": "3.5"}
    cutoffs = [word for name, value in config.items() for word in (f"--{name}", value)]
    batch = "16"
    return [
        (
            "structures: alloys labelled on the spot with ASE's EMT potential",
            lambda: _run("data", "make", "--out", store, "--count", str(count), *cutoffs),
        ),
        ("this host: measured into a machine file", lambda: _run("calibrate", "--quick", "--out", machine)),
        (
            f"layout: picked before launch for {ranks} ranks",
            lambda: _run(
                "plan", "--data", store, "--model", MODEL, "--world-size", str(ranks), "--machine", machine,
                "--global-batch", batch, "--out", plan,
            ),
        ),
        (
            f"training: {steps} second-order steps on {ranks} ranks",
            lambda: _launch(ranks, "train", "--data", store, "--plan", plan, "--out", run, "--steps", str(steps),
                            "--data.validation_fraction=0.1"),
        ),
        ("evaluation: the averaged weights on all structures", lambda: _run("evaluate", run, store)),
        (
            "study: weak and strong scaling, every point predicted and measured",
            lambda: _run("study", "run", "--quick", "--data", store, "--machine", machine, "--out", study),
        ),
        ("report", lambda: _run("report", study, "--out", report, "--run", run)),
    ]  # fmt: skip


def _run(*words: str) -> int:
    """One command in this process."""
    from janus.cli.main import main as janus

    print("$ janus " + " ".join(words), flush=True)
    return janus(words)


def _launch(ranks: int, *words: str) -> int:
    """One command on several ranks."""
    from scaling_studies.launchers import launch_command

    command, environment = launch_command(ranks, words)
    print("$ " + " ".join(["mpiexec", "-n", str(ranks), "janus", *words]), flush=True)
    return _process(command, environment)


def _process(command: Sequence[str], environment: dict[str, str]) -> int:
    import subprocess

    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
