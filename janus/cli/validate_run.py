"""``janus validate run``: prediction beside record, by phase; which constant is off; corrections."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.cli.recorded_run import Run, phases_of, predictions, read_run, spread_out
from janus.errors import UserError

if TYPE_CHECKING:
    from perfmodel.corrections import Corrections, Pair
    from perfmodel.machine import Machine
    from perfmodel.run_validation import Comparison, MeasuredStep, Suspect

EXAMPLES = """examples:
  janus validate run runs/first --machine host.toml                predicted beside recorded; which constant is off
  janus validate run runs/first --plan plan.json                   what the plan said beside what happened
  janus validate run runs/* --machine host.toml --refit refit.json       fit corrections to the first half of the steps
  janus validate run runs/new --machine host.toml --corrections refit.json     judge them on another run
  janus validate run runs/new --machine host.toml --refit refit.json --fit-on runs/first runs/second
"""
SCHEMA = "janus.validation/1"
MOST_STEPS = 40  # predicted of one run: the first and last ones and those evenly between
SUSPECT_STEPS = 10
SHOWN_SUSPECTS = 3
WORTH_NAMING = 0.2  # of the squared errors by phase: what explains less is noise's affair


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus validate run", description="Lay a prediction beside the record of a training run, by phase.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="folders of runs (janus train --out)")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="hold the run against this plan's prediction")
    parser.add_argument("--machine", metavar="HOST.toml", help="predict the recorded steps with this machine file")
    parser.add_argument("--data", type=Path, metavar="PATH", help="the run's structures, where they have moved")
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help="first steps to leave out (default: 2)")
    parser.add_argument("--corrections", type=Path, metavar="FILE.json", help="predict with these corrections")
    parser.add_argument(
        "--refit", type=Path, metavar="FILE.json",
        help="fit corrections to the first half of the steps, keep them, and judge them on the rest",
    )  # fmt: skip
    parser.add_argument("--fit-on", type=Path, nargs="+", default=[], metavar="RUN_FOLDER",
                        help="with --refit: fit to all steps of these runs instead")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.plan is None and options.machine is None:
        raise UserError("nothing to hold the run against: give --plan PLAN.json, --machine HOST.toml or both")
    for name in ("refit", "corrections"):
        if getattr(options, name) is not None and options.machine is None:
            raise UserError(f"--{name} needs --machine HOST.toml: corrections belong to a machine's predictions")
    if options.fit_on and options.refit is None:
        raise UserError("--fit-on needs --refit FILE.json: without it nothing is fitted")
    if options.refit is not None and options.corrections is not None:
        raise UserError("--refit and --corrections are both given: the first makes what the second uses, keep one")
    if options.warm_up < 0:
        raise UserError(f"--warm-up is {options.warm_up}: it must be 0 or more")


def against_machine(run: Run, machine: Machine, corrections: Corrections | None) -> dict[str, Any]:
    """The run beside what the machine file predicts of its steps."""
    from statistics import median

    from perfmodel.run_validation import compare, suspects

    steps = spread_out(run.steps, MOST_STEPS)
    found = predictions(run, steps, machine, corrections)
    comparison = compare(phases_of(found), steps)
    few = spread_out(steps, SUSPECT_STEPS)
    likely = suspects(
        few, lambda changed: phases_of(predictions(run, few, changed, corrections)), machine, run.layout.world_size
    )
    flops = median(one.flops_model for one in found)
    return {
        "by": f"machine {machine.name}", **comparison_mapping(comparison),
        "memory": memory_mapping(max(one.memory_bytes for one in found), run.memory_bytes),
        "percent_of_peak": peak_mapping(run, machine, flops, comparison),
        "suspects": [asdict(one) for one in likely[:SHOWN_SUSPECTS]], "sentence": sentence(comparison, likely),
        "notes": list(dict.fromkeys(note for one in found for note in one.notes)),
    }  # fmt: skip


def against_plan(run: Run, plan: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The run beside a plan's prediction. Raises UserError for a plan of another job."""
    from perfmodel.run_validation import compare, with_outside

    predicted = plan.get("prediction") or {}
    if plan.get("world_size") != run.layout.world_size or plan.get("layout") != run.layout.to_mapping():
        raise UserError(
            f"{path} plans {plan.get('layout')} but {run.folder} ran {run.layout.describe()}: "
            "give the plan that the run was started with"
        )
    if not isinstance(predicted.get("phase_s"), Mapping) or not predicted.get("step_s"):
        raise UserError(f"{path} holds no prediction of a step: make it again with 'janus plan'")
    comparison = compare([with_outside(predicted["step_s"], predicted["phase_s"])] * len(run.steps), run.steps)
    return {
        "by": f"plan {path.name} for {plan.get('machine')}", **comparison_mapping(comparison),
        "memory": memory_mapping(predicted.get("memory_bytes"), run.memory_bytes),
        "percent_of_peak": {"predicted": predicted.get("percent_of_peak"), "measured": None, "peak": None},
        "suspects": [], "sentence": sentence(comparison, []), "notes": list(predicted.get("notes", [])),
    }  # fmt: skip


def comparison_mapping(comparison: Comparison) -> dict[str, Any]:
    return {
        "steps": comparison.steps, "predicted_s": comparison.predicted_s, "measured_s": comparison.measured_s,
        "spread_s": comparison.spread_s, "error": comparison.error,
        "median_absolute_error": comparison.median_error, "phases": [asdict(one) for one in comparison.phases],
    }  # fmt: skip


def memory_mapping(predicted: float | None, measured: float | None) -> dict[str, Any]:
    """Bytes of the fullest rank."""
    known = predicted is not None and measured is not None
    return {"predicted_bytes": predicted, "measured_bytes": measured,
            "error": predicted / measured - 1 if known else None}  # fmt: skip


def peak_mapping(run: Run, machine: Machine, flops: float, comparison: Comparison) -> dict[str, Any]:
    """Model FLOPs over time over the peak of the devices in use; None where the peak is not known."""
    peak = machine.peak(run.config.run.dtype)
    if peak is None:
        return {"predicted": None, "measured": None, "peak": None}
    ranks = run.layout.world_size
    devices = machine.devices_used(ranks, max(1, run.config.run.threads)) if machine.is_calibrated_host else ranks
    whole = flops / (devices * peak.flops_per_s)
    return {"predicted": 100 * whole / comparison.predicted_s, "measured": 100 * whole / comparison.measured_s,
            "peak": f"{devices} x {peak.name}"}  # fmt: skip


def sentence(comparison: Comparison, likely: Sequence[Suspect]) -> str:
    """Where the error lies and what may be behind it."""
    worst = comparison.worst_phase
    off_s = abs(comparison.predicted_s - comparison.measured_s)
    if off_s <= comparison.spread_s:
        begin = "the step is predicted within the spread of the record"
    else:
        begin = f"the step is predicted {1e3 * off_s:.1f} ms too " + (
            "long" if comparison.predicted_s > comparison.measured_s else "short"
        )
    where = f"; most of the phases' errors lies in {worst.phase} ({100 * worst.share:.0f} %)"
    if not likely:
        return begin + where
    one = likely[0]
    if one.explained < WORTH_NAMING:
        return f"{begin}{where}; no single constant explains it"
    quality = "n/a" if one.quality is None else f"{100 * one.quality:.0f} %"
    return (
        f"{begin}{where}; likeliest constant: {one.constant}, times {one.change:.2f} it would explain "
        f"{100 * one.explained:.0f} % of the squared errors (its quality: {quality})"
    )


def pairs_of(run: Run, steps: Sequence[MeasuredStep], machine: Machine) -> list[Pair]:
    """Phases of steps, predicted without corrections and measured."""
    from perfmodel.corrections import Pair

    return [
        Pair(model=run.config.model, phase=phase, predicted_s=predicted[phase], measured_s=step.phase_s[phase])
        for step, predicted in zip(steps, phases_of(predictions(run, steps, machine)), strict=True)
        for phase in predicted if phase != "outside"
    ]  # fmt: skip


def refit(runs: Sequence[Run], fit_on: Sequence[Run], machine: Machine, path: Path) -> dict[str, Any]:
    """Fit corrections, keep them, and old and new errors of every run's steps that took no part in the fit."""
    from perfmodel.corrections import MIN_SAMPLES, fit_corrections, write_corrections
    from perfmodel.run_validation import compare

    halves = {run.folder: _halves(run, whole=bool(fit_on)) for run in runs}
    pairs: list[Pair] = []
    for run in fit_on or runs:
        steps = spread_out(run.steps, MOST_STEPS) if fit_on else halves[run.folder][0]
        pairs += pairs_of(run, steps, machine)
    sources = [f"{run.folder.name}: " + ("all steps" if fit_on else "first half") for run in fit_on or runs]
    corrections = fit_corrections(pairs, machine=machine.name, sources=sources)
    if not corrections.factors:
        raise UserError(
            f"--refit: {len(pairs)} phases are too few to fit corrections to: at least {MIN_SAMPLES} steps must take "
            "part in the fit, use a longer run, or several runs"
        )
    write_corrections(path, corrections)
    judged = []
    for run in runs:
        rest = halves[run.folder][1]
        entry: dict[str, Any] = {"run": str(run.folder), "steps": len(rest)}
        for name, chosen in (("old", None), ("new", corrections)):
            comparison = compare(phases_of(predictions(run, rest, machine, chosen)), rest)
            entry[name] = {"error": comparison.error, "median_absolute_error": comparison.median_error}
        judged.append(entry)
    factors = [{"model": model, "phase": phase, **asdict(one)}
               for (model, phase), one in sorted(corrections.factors.items())]  # fmt: skip
    return {"file": str(path), "fitted_to": sources, "factors": factors, "rest": judged}


def _halves(run: Run, *, whole: bool) -> tuple[list[MeasuredStep], list[MeasuredStep]]:
    """Steps to fit to and steps to judge on; whole: all of them are judged."""
    if whole:
        return [], spread_out(run.steps, MOST_STEPS)
    if len(run.steps) < 4:
        raise UserError(f"--refit: {run.folder} has {len(run.steps)} steps after warm-up, at least 4 are needed to "
                        "fit to half of them")  # fmt: skip
    half = len(run.steps) // 2
    return spread_out(run.steps[:half], MOST_STEPS), spread_out(run.steps[half:], MOST_STEPS)


def make_document(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, as plain values."""
    from janus.cli.train import read_plan
    from perfmodel.corrections import read_corrections
    from perfmodel.machine import load_machine

    _check(options)
    runs = [read_run(folder, options.warm_up, options.data) for folder in options.runs]
    machine = load_machine(options.machine) if options.machine is not None else None
    corrections = read_corrections(options.corrections) if options.corrections is not None else None
    if machine is not None and corrections is not None:
        corrections.require_machine(machine.name)
    plan = read_plan(options.plan) if options.plan is not None else None
    document: dict[str, Any] = {"schema": SCHEMA, "runs": [], "refit": None}
    for run in runs:
        found = []
        if plan is not None:
            found.append(against_plan(run, plan, options.plan))
        if machine is not None:
            found.append(against_machine(run, machine, corrections))
        document["runs"].append({
            "run": str(run.folder), "layout": run.layout.describe(), "ranks": run.layout.world_size,
            "recorded_steps": len(run.steps), "warm_up": options.warm_up, "predictions": found,
        })  # fmt: skip
    if options.refit is not None and machine is not None:
        fit_on = [read_run(folder, options.warm_up, options.data) for folder in options.fit_on]
        document["refit"] = refit(runs, fit_on, machine, options.refit)
    return document


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:+.1f} %"


def _print_prediction(entry: Mapping[str, Any]) -> None:
    print(
        f"  predicted by {entry['by']}; milliseconds, medians over {entry['steps']} steps; +- half the quartiles' range"
    )
    print(f"    {'phase':<11}{'predicted':>11}{'measured':>11}{'+-':>8}{'error':>10}{'share of errors':>17}")
    for one in entry["phases"]:
        print(
            f"    {one['phase']:<11}{1e3 * one['predicted_s']:>11.2f}{1e3 * one['measured_s']:>11.2f}"
            f"{1e3 * one['spread_s']:>8.2f}{_percent(one['error']):>10}{100 * one['share']:>15.0f} %"
        )
    print(
        f"    {'step':<11}{1e3 * entry['predicted_s']:>11.2f}{1e3 * entry['measured_s']:>11.2f}"
        f"{1e3 * entry['spread_s']:>8.2f}{_percent(entry['error']):>10}"
    )
    memory, peak = entry["memory"], entry["percent_of_peak"]
    sizes = ["n/a" if memory[key] is None else f"{memory[key] / 1e9:.2f} GB"
             for key in ("predicted_bytes", "measured_bytes")]  # fmt: skip
    print(f"    memory of the fullest rank: predicted {sizes[0]}, measured {sizes[1]} ({_percent(memory['error'])})")
    parts = ["n/a" if peak[key] is None else f"{peak[key]:.1f} %" for key in ("predicted", "measured")]
    print(f"    of peak ({peak['peak'] or 'n/a'}): predicted {parts[0]}, measured {parts[1]}")
    print(f"    {entry['sentence']}")
    for one in entry["suspects"]:
        quality = "n/a" if one["quality"] is None else f"{100 * one['quality']:.0f} %"
        print(f"      {one['constant']}: times {one['change']:.2f} explains {100 * one['explained']:.0f} %, "
              f"quality {quality}")  # fmt: skip
    for note in entry["notes"]:
        print(f"    note: {note}")


def _print(document: Mapping[str, Any]) -> None:
    for run in document["runs"]:
        print(f"{run['run']}: {run['layout']}, {run['recorded_steps']} steps after {run['warm_up']} of warm-up")
        for entry in run["predictions"]:
            _print_prediction(entry)
    found = document["refit"]
    if found is None:
        return
    print(f"corrections fitted to {'; '.join(found['fitted_to'])}, kept in {found['file']}")
    for one in found["factors"]:
        print(f"  {one['model']:<14}{one['phase']:<11}x {one['factor']:.3f}  "
              f"(spread {100 * one['quality']:.1f} %, {one['samples']} phases)")  # fmt: skip
    print("steps that took no part in the fit, error (median absolute error of a step):")
    for one in found["rest"]:
        old, new = one["old"], one["new"]
        print(f"  {one['run']}: before {_percent(old['error'])} ({100 * old['median_absolute_error']:.1f} %), "
              f"after {_percent(new['error'])} ({100 * new['median_absolute_error']:.1f} %), "
              f"{one['steps']} steps")  # fmt: skip


def main(arguments: list[str]) -> int:
    """Compare and print. Returns 0. Raises UserError for what is not a run, a plan of another job, missing data."""
    options = _parser().parse_args(arguments)
    document = make_document(options)
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        _print(document)
    return 0
