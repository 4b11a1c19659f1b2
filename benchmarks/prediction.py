"""How wrong predicted step times are: layouts of 1, 2 and 4 ranks, measured and predicted, in two sets of cases.

main: three models on two data sets, in whose sight the predictor's formulas were written. second: two other models, at
other cutoffs, on other crystals, in the same layouts; nothing was fitted to it, so its errors are those to expect.

Measured: training steps as ``janus train`` takes them (loader, totals, clipping, average, record), in one launch per
number of ranks that switches between 24 or more layouts per model, in rounds. Every finished round is a line of --raw;
a measurement that was stopped goes on where it stood. On a quiet host the main set takes twelve minutes, the second
eight; in pieces with --only-ranks and --only-models.

Predicted: the same steps by perfmodel with the constants of a machine file (janus calibrate), which saw none of these
models, cells and layouts. "exact" has the real graphs' divisions and the real gates' experts handed in, "planned" is
what a planner knows before launch: divisions estimated from counts, gates drawn at random.

error: predicted / measured - 1, median over the steps of a layout. regret: of the layout predicted to be fastest, over
the one measured to be, by steps on the same batch, with the 95 % interval of its median by order statistics.

examples:
  janus calibrate --out host.toml && python benchmarks/prediction.py --machine host.toml
  python benchmarks/prediction.py --what measure --only-ranks 4 --only-models "moe wide"
  python benchmarks/prediction.py --what judge --machine host.toml --refit --json > prediction_host.json
  python benchmarks/prediction.py --set second --machine host.toml --refit
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

from prediction_cases import DATA_SETS, SETS, CaseSet, make_store, uneven_source
from rank_jobs import launch, progress, provenance

RESULTS = Path(__file__).parent / "results"
LAUNCH_TIMEOUT_S = 1800.0
QUICK_LAYOUTS = 6  # the first ones of each number of ranks


def raw_file(case_set: CaseSet, quick: bool) -> Path:
    """Where the rounds of a set are kept unless --raw says otherwise."""
    words = ["quick" if quick else "host"] + ([] if case_set.name == "main" else [case_set.name])
    return RESULTS / f"prediction_{'_'.join(words)}_raw.jsonl"


def read_raw(path: Path, case_set: CaseSet) -> list[dict[str, Any]]:
    """Lines of a set's raw file, without a last one that a kill cut short. Ends the program for other cases' lines."""
    if not path.exists():
        return []
    lines = [
        json.loads(text) for text in path.read_text(encoding="utf-8").splitlines(keepends=True) if text[-1] == "\n"
    ]
    launches = [line for line in lines if line["kind"] == "launch"]
    if any(line["cases"] != case_set.fingerprint() for line in launches):
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


def work_to_do(
    case_set: CaseSet, num_ranks: int, models: Sequence[str], rounds: int, quick: bool, lines: list[dict]
) -> list[dict[str, Any]]:
    """Model by model and data set by data set: the cases, and the rounds that are not on file."""
    done = {(line["model"], line["data"], line["round"]) for line in lines
            if line["kind"] == "round" and line["ranks"] == num_ranks}  # fmt: skip
    work = []
    for model in models:
        cases = case_set.cases_of(num_ranks, model)
        chosen = [asdict(case) for case in (cases[:QUICK_LAYOUTS] if quick else cases)]
        for data in DATA_SETS:
            missing = [number for number in range(rounds) if (model, data, number) not in done]
            if missing:
                work.append({"model": model, "data": data, "rounds": missing, "cases": chosen})
    return work


def measure(options: argparse.Namespace, stores: dict[str, str]) -> None:
    """Every launch that is needed."""
    case_set = SETS[options.set]
    for num_ranks in options.only_ranks:
        lines = read_raw(options.raw, case_set)
        work = work_to_do(case_set, num_ranks, options.only_models, options.rounds, options.quick, lines)
        if not work:
            progress(f"{num_ranks} ranks: everything is measured ({options.raw})")
            continue
        about = {"kind": "launch", "cases": case_set.fingerprint(), "ranks": num_ranks, "uneven": uneven_source()}
        append_line(options.raw, about | provenance("prediction"))
        mpi = any(case["transport"] == "mpi" for one in work for case in one["cases"])
        job = {"set": case_set.name, "raw": str(options.raw), "stores": stores, "steps": options.steps, "mpi": mpi,
               "work": work}  # fmt: skip
        launch(__file__, num_ranks, job, LAUNCH_TIMEOUT_S)


def judge(options: argparse.Namespace, stores: dict[str, str]) -> dict[str, Any]:
    """The report on what is on file."""
    from prediction_judge import make_report
    from prediction_steps import rounded

    case_set = SETS[options.set]
    lines = read_raw(options.raw, case_set)
    if not any(line["kind"] == "round" for line in lines):
        raise SystemExit(f"prediction: {options.raw} has no finished round: measure first (--what measure)")
    report = make_report(lines, case_set, options.machine, stores, refit=options.refit)
    return rounded(provenance("prediction") | report)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["measure", "judge", "both"], default="both")
    parser.add_argument("--set", choices=list(SETS), default="main", help="cases: see above")
    parser.add_argument("--machine", metavar="HOST.toml", help="machine file of this host, made by 'janus calibrate'")
    parser.add_argument("--raw", type=Path, help="measured rounds, one JSON line each (one file per set)")
    parser.add_argument("--only-ranks", type=int, nargs="+", choices=[1, 2, 4], default=[1, 2, 4])
    parser.add_argument("--only-models", nargs="+", metavar="MODEL", help="of the set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per layout and round")
    parser.add_argument("--quick", action="store_true", help="six layouts of each number of ranks only, another --raw")
    parser.add_argument("--refit", action="store_true",
                        help="also with corrections fitted to one rank and one data set, judged apart")  # fmt: skip
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw predicted against measured")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--on-ranks", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    case_set = SETS[options.set]
    options.raw = options.raw if options.raw is not None else raw_file(case_set, options.quick)
    options.only_models = options.only_models or list(case_set.models)
    for model in set(options.only_models) - set(case_set.models):
        parser.error(f"--only-models {model!r}: the {options.set} set has {', '.join(case_set.models)}")
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
        stores = {data: str(make_store(data, Path(folder) / f"{data}.store", SETS[options.set]).path)
                  for data in DATA_SETS}  # fmt: skip
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
