"""``janus plan``: predict the ways to run a job, pick one, write the plan that ``janus train --plan`` runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from janus.errors import UserError

EXAMPLES = """examples:
  janus plan --data alloys.store --model matris-tiny --world-size 2 --machine host.toml --out plan.json
  janus plan --data alloys.store --model matris-small --world-size 2 --machine host.toml --out plan.json \\
      --global-batch 32 --memory-gb 5          at most 5 GB per rank
  janus plan ... --json                        the whole plan as one JSON document

then: mpiexec -n 2 janus train --plan plan.json --out runs/planned
"""
LATER_ROWS = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus plan", description="Pick how to run a training job before it starts.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="packed store (janus data pack)")
    parser.add_argument("--model", required=True, help="preset (janus model list) or a TOML file of a model")
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="ranks of the job")
    parser.add_argument("--machine", required=True, help="machine file (janus calibrate) or a name of the catalogue")
    parser.add_argument("--out", type=Path, required=True, metavar="PLAN.json", help="plan file to write")
    parser.add_argument(
        "--global-batch",
        type=int,
        metavar="S",
        help="structures per step, all ranks (default: 8 each, at most all there are)",
    )
    parser.add_argument("--memory-gb", type=float, metavar="GB", help="memory of one rank (default: the machine's)")
    parser.add_argument("--batches", type=int, default=8, metavar="N", help="global batches to sample (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run: the batches are those it will draw")
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON document")
    return parser


def _model(text: str) -> tuple[Any, str | None]:
    """(ModelConfig, preset name or None) of a preset or a TOML file with a model's fields."""
    from janus.config import ModelConfig, from_mapping, read_toml
    from janus.presets import preset

    if text.endswith(".toml"):
        values = read_toml(Path(text))
        return from_mapping(ModelConfig, values.get("model", values), "model"), None
    return preset(text), text


def _data_counts(path: Path, model: Any) -> Any:
    """Counts of a store at the model's cutoffs. Raises UserError for what is not a store."""
    from janus.data.store import StructureStore
    from perfmodel.dataset import DataCounts, ElementCounts

    store = StructureStore.open(path)
    cutoffs = (model.cutoff_angstrom, model.line_cutoff_angstrom)
    if (store.cutoff_angstrom, store.line_cutoff_angstrom) != cutoffs:
        store = store.recount(*cutoffs)
    return DataCounts(
        path=str(path), fingerprint=str(store.fingerprint),
        atoms=store.num_atoms, edges=store.num_edges, bonds=store.num_bonds, angles=store.num_angles,
        elements=ElementCounts(
            end=store.arrays["composition_end"], element=store.arrays["composition_element"],
            atoms=store.arrays["composition_atoms"], edges=store.arrays["composition_edges"],
        ),
    )  # fmt: skip


def _check(options: argparse.Namespace) -> None:
    for name, value in (("--world-size", options.world_size), ("--batches", options.batches),
                        ("--global-batch", options.global_batch), ("--memory-gb", options.memory_gb)):  # fmt: skip
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}: it must be above 0")
    if options.out.suffix != ".json":
        raise UserError(f"--out is {options.out}: a plan's name ends in .json")


def _make_plan(options: argparse.Namespace) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    from perfmodel.machine import load_machine
    from perfmodel.planner import Request, make_plan

    model, name = _model(options.model)
    machine = load_machine(options.machine)
    data, ranks = _data_counts(options.data, model), options.world_size
    request = Request(
        model=model, model_name=name, world_size=options.world_size, seed=options.seed,
        global_batch=options.global_batch or max(ranks, min(8 * ranks, len(data.atoms))), num_batches=options.batches,
        memory_bytes=None if options.memory_gb is None else 1e9 * options.memory_gb,
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pricing candidates", total=None)
        return make_plan(request, machine, data, lambda total: progress.update(task, total=total, advance=1))


def _print_plan(plan: Any, content: dict[str, Any], out: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    request = plan.request
    title = (
        f"{request.model_name or 'model'} on {request.world_size} ranks of {plan.machine.name}, "
        f"{request.global_batch} structures per step"
    )
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("layout", "work cap", "recompute", "micro", "step", "memory"):
        table.add_column(heading, justify="left" if heading == "layout" else "right", no_wrap=True)
    table.add_column("verdict")
    for one in plan.considered:
        if one.step_s is not None:
            table.add_row(
                one.layout.describe(), "none" if one.max_work is None else f"{one.max_work:,}",
                "yes" if one.recompute else "no", f"{one.micro_batches:.1f}", f"{1e3 * one.step_s:.0f} ms",
                f"{one.memory_bytes / 1e9:.2f} GB", one.verdict,
            )  # fmt: skip
    console.print(table)
    later = [one for one in plan.considered if one.step_s is None]
    if later:
        shown = "; ".join(one.layout.describe() for one in later[:LATER_ROWS])
        more = f"; and {len(later) - LATER_ROWS} more" if len(later) > LATER_ROWS else ""
        console.print(f"considered too: {shown}{more}: {later[0].verdict}")
    prediction = content["prediction"]
    console.print(
        "phases: " + ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in prediction["phase_s"].items())
    )
    causes = sorted(prediction["cause_s"].items(), key=lambda item: -item[1])
    console.print("causes: " + ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in causes if value > 0))
    if prediction["percent_of_peak"] is not None:
        console.print(f"{prediction['percent_of_peak']:.1f} % of {prediction['peak']['name']} (model FLOPs)")
    for note in prediction["notes"]:
        console.print(f"note: {note}")
    if prediction["oversubscribed"]:
        console.print("note: more ranks than cores: oversubscribed")
    if prediction["assumptions"]:
        console.print(f"{len(prediction['assumptions'])} numbers of the machine file are assumed, not published")
    console.print(f"plan: {out}   run it: mpiexec -n {request.world_size} janus train --plan {out} --out RUN")


def main(arguments: list[str]) -> int:
    """Price the candidates, write the plan."""
    options = _parser().parse_args(arguments)
    _check(options)
    from perfmodel.machine import write_text_atomically
    from perfmodel.planner import plan_mapping

    plan = _make_plan(options)
    content = plan_mapping(plan)
    text = json.dumps(content, indent=2)
    write_text_atomically(options.out, text + "\n")
    if options.json:
        print(text)
    else:
        _print_plan(plan, content, options.out)
    return 0
