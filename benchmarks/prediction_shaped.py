"""Layouts across a real network of limited rate: steps measured and predicted, and the choice as the network slows.

Four hosts (network namespaces, two racks of two; ``shaped/``) with one rank each take training steps in eight layouts
over gloo, in rounds within one launch, for every setting of rates and delay. All four share this machine's cores, so
compute is that of four ranks on one host, and only messages take the network's time.

Predicted: compute by the machine file of this host (janus calibrate); collectives by closed form on the shape's rates
and delays (payload's part of the rate from messages between two ranks), plus what they take among four ranks of this
host without a network, by the same machine file. Nothing is fitted to what is measured across the network.

error: predicted / measured - 1, median over steps. regret: of the layout predicted to be fastest, over the one measured
to be. Needs root on Linux as ``shaped_network.py`` does; under three minutes per setting on a quiet host.

examples:
  sudo python benchmarks/prediction_shaped.py --machine host.toml
  sudo python benchmarks/prediction_shaped.py --machine host.toml --settings 40:20:1000 --raw slow.jsonl
  python benchmarks/prediction_shaped.py --machine host.toml --what judge --json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from prediction_cases import EQUAL, Case, make_store
from rank_jobs import progress, provenance
from shaped.shape import MEGABIT_BYTES, Shape
from shaped_network import LARGEST_MBIT

from janus.config import ExpertConfig, ModelConfig

if TYPE_CHECKING:
    from perfmodel.machine import Machine

RAW = Path(__file__).parent / "results" / "prediction_shaped_raw.jsonl"
SETTINGS = ("200:200:50", "80:40:250", "40:20:1000")  # Mbit/s of a host's cable, of a rack's, microseconds of delay
MODEL_NAME = "shaped"
MODEL = ModelConfig(
    family="matris-moe", num_blocks=2, width=32, num_heads=2, angle_width=16,
    cutoff_angstrom=4.6, line_cutoff_angstrom=3.2,
    experts=ExpertConfig(num_experts=8, top_k=2, message_hidden=256, feature_hidden=128),
)  # fmt: skip
ALL = {"unit": 4, "shard_degree": 4, "graph_degree": 4, "expert_degree": 4}
CASES = (
    Case(name="data 4"),
    Case(name="shard 4", parallel={"unit": 4, "shard_degree": 4}),
    Case(name="shard 2 x 2 replicas", parallel={"unit": 2, "shard_degree": 2}),
    Case(name="graph 4", parallel={"unit": 4, "graph_degree": 4}),
    Case(name="expert 4, tokens", parallel={"unit": 4, "expert_degree": 4}),
    Case(name="expert 4, 16 bits", parallel={"unit": 4, "expert_degree": 4, "expert_compression": "float16"}),
    Case(name="expert 2 x 2 replicas", parallel={"unit": 2, "expert_degree": 2}),
    Case(name="shard, graph, expert 4", parallel=ALL),
)
MESSAGE_SIZES = (1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10)
PAIRS = ((0, 1), (0, 2))  # in a rack, across racks
LAUNCH_TIMEOUT_S = 600.0


def shape_of(setting: str) -> Shape:
    """HOST:RACK:DELAY in Mbit/s and microseconds. Raises ValueError for other words."""
    host, rack, delay = (float(word) for word in setting.split(":"))
    if not (0 < host <= LARGEST_MBIT and 0 < rack <= LARGEST_MBIT):
        raise ValueError(f"rates of {setting} must be above 0 and at most {LARGEST_MBIT:g} Mbit/s")
    return Shape(
        host_bytes_per_s=host * MEGABIT_BYTES, rack_bytes_per_s=rack * MEGABIT_BYTES, cable_delay_s=1e-6 * delay
    )


def measure(options: argparse.Namespace) -> None:
    """Every setting that is not on file; each is a line of the raw file."""
    from shaped.launch import run_gloo
    from shaped.network import ShapedNetwork

    done = {line["setting"] for line in read_raw(options.raw)}
    for setting in options.settings:
        if setting in done:
            progress(f"{setting}: measured ({options.raw})")
            continue
        progress(f"{setting}: measuring")
        with tempfile.TemporaryDirectory(prefix="prediction_shaped_") as folder:
            store = make_store(EQUAL, Path(folder) / "equal.store")
            job = {"store": str(store.path), "rounds": options.rounds, "steps": options.steps}
            with ShapedNetwork(shape_of(setting)) as network:
                words = [str(Path(__file__).resolve()), "--on-ranks", json.dumps(job)]
                lines = run_gloo(network, words, LAUNCH_TIMEOUT_S)
                switch = network.statistics()
        line = {"setting": setting, "about": provenance("prediction_shaped"), "switch": switch, "lines": lines}
        options.raw.parent.mkdir(parents=True, exist_ok=True)
        with options.raw.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def read_raw(path: Path) -> list[dict[str, Any]]:
    """One line per measured setting."""
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(text) for text in texts if text.endswith("\n")]


def run_on_ranks(job: Mapping[str, Any]) -> None:
    """What each rank does; rank 0 prints a JSON line per message size and round."""
    import torch
    from prediction_steps import WARM_UP_STEPS, LayoutSteps, config_of, open_data, require_equal_losses, rounded
    from shaped.lifetime import end_with_parent
    from shaped.ranks import say, time_messages, time_reduction

    from janus.parallel.communication import connect
    from janus.parallel.fs3d import Axes

    end_with_parent()
    torch.set_num_threads(1)
    communicator = connect(device="cpu", transport="gloo", timeout_s=300.0)
    time_reduction(communicator)
    time_messages(communicator, PAIRS, MESSAGE_SIZES)
    store = open_data(Path(job["store"]), MODEL)
    steps = {}
    for case in CASES:
        config = config_of(case, MODEL, store)
        axes = Axes.of(config.parallel.layout(communicator.world_size), communicator)
        steps[case.key] = LayoutSteps(config, store, communicator, axes)
    count = WARM_UP_STEPS + job["steps"]
    for number in range(job["rounds"]):
        rows = {key: one.visit(number * count, count)[WARM_UP_STEPS:] for key, one in steps.items()}
        exact = {key: taken for key, taken in rows.items() if "16 bits" not in key}
        require_equal_losses(exact)
        line = {
            "kind": "round",
            "ranks": 4,
            "model": MODEL_NAME,
            "data": EQUAL,
            "round": number,
            "cases": rounded(rows),
        }
        say(communicator, line)
        if communicator.rank == 0:
            progress(f"round {number + 1}: " + ", ".join(f"{k} {t[-1]['step_s']:.2f} s" for k, t in rows.items()))
    communicator.leave(0)


def judge(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every measured setting: errors by layout, and the choice."""
    from perfmodel.machine import load_machine

    machine = load_machine(options.machine)
    with tempfile.TemporaryDirectory(prefix="prediction_shaped_") as folder:
        path = str(make_store(EQUAL, Path(folder) / "equal.store").path)
        return [judge_setting(entry, machine, path) for entry in read_raw(options.raw)]


def judge_setting(entry: Mapping[str, Any], machine: Machine, store: str) -> dict[str, Any]:
    """One line of the raw file beside its predictions."""
    import prediction_judge
    from prediction_predict import Predictor
    from shaped.prediction import StepPrices

    from perfmodel.prices import HostPrices
    from perfmodel.step_time import rates_for

    shape = shape_of(entry["setting"])
    rates, _ = rates_for(machine, shape.num_hosts)
    software = HostPrices(machine, rates, "gloo")
    prices = StepPrices.of_messages(shape, entry["lines"], software)
    cases = prediction_judge.measured_cases(entry["lines"], lambda ranks, model: {case.key: case for case in CASES})
    judged = prediction_judge.judge(
        cases, Predictor(machine, {EQUAL: store}, models={MODEL_NAME: MODEL}, prices=prices)
    )
    summaries = {
        name: {
            "errors": prediction_judge.errors_of(judged, name), "phases": prediction_judge.phase_errors(judged, name),
            "choice": prediction_judge.choice(judged, name),
        } for name in prediction_judge.KNOWLEDGE
    }  # fmt: skip
    return {
        "setting": entry["setting"], "shape": asdict(shape), "about": entry["about"], "switch": entry["switch"],
        "transport": prices.constants(), "summaries": summaries, "cases": [one.to_mapping() for one in judged],
    }  # fmt: skip


def print_tables(results: Sequence[Mapping[str, Any]]) -> None:
    from prediction_tables import percent, print_choices, print_errors, print_phases

    for entry in results:
        constants = entry["transport"]
        print(f"\n{entry['setting']} (Mbit/s, Mbit/s, us): overhead {1e6 * constants['overhead_s']:.0f} us, payload "
              f"{constants['link_fraction']:.3f} of the rate")  # fmt: skip
        print(f"{'layout':<28}{'measured ms (smallest, largest)':>34}{'predicted':>11}{'error':>9}{'planned':>9}")
        for case in entry["cases"]:
            seconds = case["measured_s"]
            spread = f"{1e3 * median(seconds):.0f} ({1e3 * min(seconds):.0f}, {1e3 * max(seconds):.0f})"
            predicted_s, error = median(case["predicted_s"]["exact"]), case["error"]
            print(f"{case['layout']:<28}{spread:>34}{1e3 * predicted_s:>11.0f}"
                  f"{percent(error['exact'], True):>9}{percent(error['planned'], True):>9}")  # fmt: skip
    for name in ("exact", "planned"):
        print_errors(f"{name}: errors", {entry["setting"]: entry["summaries"][name]["errors"] for entry in results})
        print_phases(f"{name}: predicted - measured by phase in parts of the step",
                     {entry["setting"]: entry["summaries"][name]["phases"] for entry in results})  # fmt: skip
        print_choices(f"{name}: choice", [
            entry["summaries"][name]["choice"] | {"data": entry["setting"]} for entry in results
        ])  # fmt: skip


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["measure", "judge", "both"], default="both")
    parser.add_argument("--machine", metavar="HOST.toml", help="machine file of this host, made by 'janus calibrate'")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), metavar="HOST:RACK:US",
                        help="Mbit/s of a host's and of a rack's cable, delay of every cable")  # fmt: skip
    parser.add_argument("--raw", type=Path, default=RAW, help="what was measured, a JSON line per setting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per layout and round")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    parser.add_argument("--on-ranks", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for setting in options.settings:
        try:
            shape_of(setting)
        except ValueError:
            parser.error(
                f"--settings {setting}: write HOST:RACK:US (at most {LARGEST_MBIT:g} Mbit/s), for instance 80:40:250"
            )
    if options.what != "measure" and options.machine is None and options.on_ranks is None:
        parser.error("--machine is needed to predict: make one with 'janus calibrate --out host.toml'")
    return options


def stopped(number: int, _: object) -> None:
    """A request to end takes the way of Ctrl-C, through every context that has something to close."""
    raise KeyboardInterrupt


def main() -> int:
    options = read_options()
    if options.on_ranks is not None:
        run_on_ranks(options.on_ranks)
    if options.what != "judge":
        from shaped.network import why_not

        reason = why_not()
        if reason is not None:
            print(f"prediction_shaped: {reason}", file=sys.stderr)
            return 2
        for request in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(request, stopped)
        try:
            measure(options)
        except KeyboardInterrupt:
            print("prediction_shaped: stopped, nothing is left behind", file=sys.stderr)
            return 130
        except (RuntimeError, subprocess.SubprocessError) as error:
            print(f"prediction_shaped: {error}", file=sys.stderr)
            return 1
    if options.what == "measure":
        return 0
    results = judge(options)
    if options.json:
        from prediction_steps import rounded

        print(json.dumps(rounded(provenance("prediction_shaped") | {"results": results}), indent=1))
    else:
        print_tables(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
