"""How wrong predicted step times are: layouts of 1, 2 and 4 ranks, three models, two data sets, measured and predicted.

Measured: training steps as ``janus train`` takes them (loader, totals, clipping, average, record), in one launch per
number of ranks that switches between 24 or more layouts per model, in rounds. Every finished round is a line of --raw;
a measurement that was stopped goes on where it stood. On a quiet host the whole takes eight minutes, in pieces with
--only-ranks and --only-models.

Predicted: the same steps by perfmodel with the constants of a machine file (janus calibrate), which saw none of these
models, cells and layouts. "exact" has the real graphs' divisions and the real gates' experts handed in, "planned" is
what a planner knows before launch: divisions estimated from counts, gates drawn at random.

error: predicted / measured - 1, median over the steps of a layout. regret: of the layout predicted to be fastest, over
the one measured to be, by steps on the same batch, with the 95 % interval of its median by order statistics.

examples:
  janus calibrate --out host.toml && python benchmarks/prediction.py --machine host.toml
  python benchmarks/prediction.py --what measure --only-ranks 4 --only-models "moe wide"
  python benchmarks/prediction.py --what judge --machine host.toml --refit --json > prediction_host.json
  python benchmarks/prediction.py --quick --machine host.toml
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from prediction_cases import DATA_SETS, MODELS, cases_of, fingerprint, make_store, uneven_source
from rank_jobs import launch, progress, provenance

RAW = Path(__file__).parent / "results" / "prediction_host_raw.jsonl"
LAUNCH_TIMEOUT_S = 1800.0
QUICK_LAYOUTS = 6  # the first ones of each number of ranks


def read_raw(path: Path) -> list[dict[str, Any]]:
    """Lines of a raw file, without a last one that a kill cut short. Ends the program for other cases' lines."""
    if not path.exists():
        return []
    lines = [
        json.loads(text) for text in path.read_text(encoding="utf-8").splitlines(keepends=True) if text[-1] == "\n"
    ]
    launches = [line for line in lines if line["kind"] == "launch"]
    if any(line["cases"] != fingerprint() for line in launches):
        raise SystemExit(
            f"prediction: {path} was measured with other cases than these: remove it or give another --raw"
        )
    return lines


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line; one that a kill cut short before is ended first, as what it is: not JSON, so it is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        text = path.read_bytes()
        path.write_bytes(text[: text.rfind(b"\n") + 1])
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def sets_to_measure(num_ranks: int, models: Sequence[str], rounds: int, quick: bool, lines: list[dict]) -> list[dict]:
    """Model by model and data set by data set: the cases, and the rounds that are not on file."""
    done = {(line["model"], line["data"], line["round"]) for line in lines
            if line["kind"] == "round" and line["ranks"] == num_ranks}  # fmt: skip
    sets = []
    for model in models:
        cases = cases_of(num_ranks, with_experts=MODELS[model].experts is not None)
        chosen = [asdict(case) for case in (cases[:QUICK_LAYOUTS] if quick else cases)]
        for data in DATA_SETS:
            missing = [number for number in range(rounds) if (model, data, number) not in done]
            if missing:
                sets.append({"model": model, "data": data, "rounds": missing, "cases": chosen})
    return sets


def measure(options: argparse.Namespace, stores: dict[str, str]) -> None:
    """Every launch that is needed."""
    for num_ranks in options.only_ranks:
        lines = read_raw(options.raw)
        sets = sets_to_measure(num_ranks, options.only_models, options.rounds, options.quick, lines)
        if not sets:
            progress(f"{num_ranks} ranks: everything is measured ({options.raw})")
            continue
        about = {"kind": "launch", "cases": fingerprint(), "ranks": num_ranks, "uneven": uneven_source()}
        append_line(options.raw, about | provenance("prediction"))
        mpi = any(case["transport"] == "mpi" for one in sets for case in one["cases"])
        job = {"raw": str(options.raw), "stores": stores, "steps": options.steps, "mpi": mpi, "sets": sets}
        launch(__file__, num_ranks, job, LAUNCH_TIMEOUT_S)


def judge(options: argparse.Namespace, stores: dict[str, str]) -> dict[str, Any]:
    """The report on what is on file."""
    from prediction_judge import make_report
    from prediction_steps import rounded

    lines = read_raw(options.raw)
    if not any(line["kind"] == "round" for line in lines):
        raise SystemExit(f"prediction: {options.raw} has no finished round: measure first (--what measure)")
    return rounded(provenance("prediction") | make_report(lines, options.machine, stores, refit=options.refit))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["measure", "judge", "both"], default="both")
    parser.add_argument("--machine", metavar="HOST.toml", help="machine file of this host, made by 'janus calibrate'")
    parser.add_argument("--raw", type=Path, default=RAW, help="measured rounds, one JSON line each")
    parser.add_argument("--only-ranks", type=int, nargs="+", choices=[1, 2, 4], default=[1, 2, 4])
    parser.add_argument("--only-models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per layout and round")
    parser.add_argument("--quick", action="store_true", help="six layouts of each number of ranks only, another --raw")
    parser.add_argument("--refit", action="store_true",
                        help="also with corrections fitted to one rank and one data set, judged apart")  # fmt: skip
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw predicted against measured")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--on-ranks", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick and options.raw == RAW:
        options.raw = RAW.with_name("prediction_quick_raw.jsonl")
    if options.what != "measure" and options.machine is None and options.on_ranks is None:
        parser.error("--machine is needed to predict: make one with 'janus calibrate --out host.toml'")
    return options


def main() -> None:
    options = read_options()
    if options.on_ranks is not None:
        from prediction_steps import run_on_ranks

        run_on_ranks(options.on_ranks)
        return
    with tempfile.TemporaryDirectory(prefix="prediction_") as folder:
        stores = {data: str(make_store(data, Path(folder) / f"{data}.store").path) for data in DATA_SETS}
        if options.what != "judge":
            measure(options, stores)
        if options.what == "measure":
            return
        report = judge(options, stores)
    if options.figure is not None:
        from prediction_figure import draw

        draw(report, options.figure)
    if options.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        from prediction_tables import print_tables

        print_tables(report)


if __name__ == "__main__":
    main()
