"""``janus plan``: search the ways to run a job, pick one, write the plan that ``janus train --plan`` runs.

It owns options, progress and printing. It owns no price and no choice (``perfmodel.planner``), no plan file
(``perfmodel.plan_file``) and no launch script (``scaling_studies.launch_scripts``).
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from janus.errors import UserError

EXAMPLES = """examples:
  janus plan --data alloys.store --model matris-tiny --world-size 2 --machine host.toml --out plan.json
  janus plan --data alloys.store --model matris-small --world-size 2 --machine host.toml --out plan.json \\
      --global-batch 32 --memory-gb 5          at most 5 GB per rank
  janus plan ... --world-size 1-4              the best of 1, 2 and 4 ranks
  janus plan --data big.store --model matris-moe-l --machine lineshine --nodes 64 --out plan.json --script slurm
  janus plan ... --epochs 1 --deadline-hours 12            how many nodes make it
  janus plan ... --nodes 64 --node-hours 5000              how many epochs that buys
  janus plan ... --nodes 16-256 --epochs 3 --prefer node-hours
  janus plan ... --nodes 64 --shard-degree 8 --recompute yes   keep some choices, search the others
  janus plan ... --json                        the whole plan as one JSON document

then: mpiexec -n 2 janus train --plan plan.json --out runs/planned     (or what --script wrote)
"""
MOST_ROWS = 14
HOUR_S = 3600.0
DEGREES = ("unit", "shard-degree", "graph-degree", "expert-degree")
WORDS = {
    "--recompute": ("recompute", {"yes": 1, "no": 0}),
    "--expert-compression": ("expert_compression", {"float16": 1, "none": 0}),
    "--gathered-blocks": ("gathered_blocks", {"2": 2, "all": 0}),
    "--expert-strategy": ("expert_strategy", {"tokens": "tokens", "weights": "weights"}),
    "--placement": ("placement", {"unit_first": "unit_first", "replica_first": "replica_first"}),
    "--transport": ("transport", {"gloo": "gloo", "mpi": "mpi", "nccl": "nccl"}),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus plan", description="Pick how to run a training job before it starts.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="STORE", help="packed store (janus data pack)")
    parser.add_argument("--model", required=True, help="preset (janus model list) or a TOML file of a model")
    parser.add_argument("--machine", required=True, help="machine file (janus calibrate) or a name of the catalogue")
    parser.add_argument("--out", type=Path, default=Path("plan.json"), metavar="PLAN.json",
                        help="plan file to write (default: plan.json)")  # fmt: skip
    _add_sizes(parser.add_argument_group("how many ranks (one of them; neither: what the question leaves open)"))
    _add_run(parser.add_argument_group("the run and its limits"))
    _add_fixed(parser.add_argument_group("choices that are not to be searched"))
    output = parser.add_argument_group("output")
    output.add_argument("--script", choices=("slurm", "pbs", "flux", "lsf", "local"),
                        help="also write a launch script beside the plan")  # fmt: skip
    output.add_argument("--queue", help="queue or partition of the script")
    output.add_argument("--account", help="account, project or bank of the script")
    output.add_argument("--run-folder", default=None, metavar="DIR",
                        help="--out of the training in the script (default: runs/NAME)")  # fmt: skip
    output.add_argument("--json", action="store_true", help="print the plan as one JSON document")
    return parser


def _add_sizes(group: Any) -> None:
    group.add_argument("--world-size", metavar="N", help="ranks: 8, a list 1,2,4 or a range 1-4")
    group.add_argument("--nodes", metavar="N", help="nodes, all their devices used: 64, a list 16,64 or a range 16-256")


def _add_run(group: Any) -> None:
    group.add_argument("--global-batch", type=int, metavar="S",
                       help="structures per step, all ranks (default: 8 each, at most all there are)")  # fmt: skip
    group.add_argument("--epochs", type=float, metavar="E", help="length of the run (default: 1 is priced)")
    group.add_argument("--steps", type=int, metavar="N", help="length of the run in steps")
    group.add_argument("--deadline-hours", type=float, metavar="H", help="wall clock that the run may take")
    group.add_argument("--node-hours", type=float, metavar="H", help="budget; without --epochs: how many it buys")
    group.add_argument("--prefer", choices=("time", "node-hours", "nodes"),
                       help="what decides (default: time; with a deadline: nodes)")  # fmt: skip
    group.add_argument("--memory-gb", type=float, metavar="GB", help="memory of one rank (default: the machine's)")
    group.add_argument("--memory-reserve", type=float, default=0.1, metavar="F",
                       help="fraction of the machine's memory left free (default: 0.1)")  # fmt: skip
    group.add_argument("--structures", type=int, metavar="N",
                       help="plan for so many structures distributed like those of --data")  # fmt: skip
    group.add_argument("--batches", type=int, default=8, metavar="N", help="global batches to sample (default: 8)")
    group.add_argument("--seed", type=int, default=0, help="seed of the run: the batches are those it will draw")


def _add_fixed(group: Any) -> None:
    for name in DEGREES:
        group.add_argument(f"--{name}", type=int, metavar="N")
    group.add_argument("--max-work", metavar="W", help="cap on a micro-batch's edges + angles, or none")
    for option, (_, values) in WORDS.items():
        group.add_argument(option, choices=tuple(values))


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
        cell=store.arrays["cell"], periodic=store.arrays["pbc"],
    )  # fmt: skip


def _check(options: argparse.Namespace) -> None:
    above_zero = ("batches", "global_batch", "memory_gb", "epochs", "steps", "deadline_hours", "node_hours",
                  "structures", *(name.replace("-", "_") for name in DEGREES))  # fmt: skip
    for name in above_zero:
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be above 0")
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}: it must be 0 or more")
    if options.out.suffix != ".json":
        raise UserError(f"--out is {options.out}: a plan's name ends in .json")
    if options.world_size is not None and options.nodes is not None:
        raise UserError(f"--world-size {options.world_size} and --nodes {options.nodes} are both given: keep one")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """8, 1,2,4 or 4-64 (its ends and the powers of two between)."""
    from perfmodel.questions import node_numbers

    if not re.fullmatch(r"\d+(-\d+|(,\d+)*)", text):
        raise UserError(f"{option} is {text!r}: give a number, a list like 1,2,4 or a range like 4-64")
    if "-" in text:
        low, high = (int(word) for word in text.split("-"))
        if not 0 < low <= high:
            raise UserError(f"{option} is {text}: a range goes from at least 1 upwards")
        return node_numbers(low, high)
    numbers = tuple(int(word) for word in text.split(","))
    for number in numbers:
        if number < 1:
            raise UserError(f"{option} is {number}: it must be above 0")
    return numbers


def _world_sizes(options: argparse.Namespace, machine: Any) -> tuple[int, ...]:
    """Numbers of ranks to try."""
    from perfmodel.questions import node_numbers

    if options.world_size is not None:
        return _numbers("--world-size", options.world_size)
    if machine.is_calibrated_host:
        if options.nodes is not None and _numbers("--nodes", options.nodes) != (1,):
            raise UserError(f"--nodes is {options.nodes} and {machine.name} is one host: give --world-size")
        return node_numbers(1, machine.devices_per_node)
    if options.nodes is not None:
        nodes = _numbers("--nodes", options.nodes)
        if nodes[-1] > machine.nodes:
            raise UserError(f"--nodes is {options.nodes} and {machine.name} has {machine.nodes}: use at most that many")
    elif options.deadline_hours is not None or options.node_hours is not None:
        nodes = (*(4**power for power in range(20) if 4**power < machine.nodes), machine.nodes)
    else:
        raise UserError("no number of ranks is given: add --nodes, --world-size, --deadline-hours or --node-hours")
    return tuple(number * machine.devices_per_node for number in nodes)


def _fixed(options: argparse.Namespace) -> dict[str, tuple[Any, ...]]:
    """Choices that the user made, by column of a search."""
    fixed: dict[str, tuple[Any, ...]] = {}
    for name in DEGREES:
        value = getattr(options, name.replace("-", "_"))
        if value is not None:
            fixed[name.replace("-", "_")] = (value,)
    for option, (column, values) in WORDS.items():
        word = getattr(options, option.removeprefix("--").replace("-", "_"))
        if word is not None:
            fixed[column] = (values[word],)
    if options.max_work is not None:
        if options.max_work != "none" and not (options.max_work.isdecimal() and int(options.max_work)):
            raise UserError(f"--max-work is {options.max_work!r}: give a whole number above 0, or none")
        fixed["cap"] = (None if options.max_work == "none" else int(options.max_work),)
    return fixed


def _feasible(
    sizes: tuple[int, ...], options: argparse.Namespace, num_structures: int, model: Any
) -> tuple[int, ...]:  # fmt: skip
    """Of several numbers of ranks those with a structure for every group of ranks that shares one, in some layout; one
    alone is left to the planner."""
    from perfmodel.candidates import least_data_degree

    most = min(num_structures, options.global_batch or num_structures)
    fixed = _fixed(options)
    some = tuple(size for size in sizes if least_data_degree(model, fixed, size) <= most)
    return some if len(sizes) > 1 and some else sizes


def _make_plan(options: argparse.Namespace) -> Any:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from perfmodel.machine import load_machine
    from perfmodel.planner import Request, make_plan
    from perfmodel.scaled_data import scaled_data

    model, name = _model(options.model)
    machine = load_machine(options.machine)
    machine.require_rates()
    sizes = _world_sizes(options, machine)
    data = _data_counts(options.data, model)
    if options.structures is not None:
        data = scaled_data(data, options.structures, at_least=8 * max(sizes), seed=options.seed)
    sizes = _feasible(sizes, options, len(data.atoms), model)
    request = Request(
        model=model, model_name=name, world_sizes=sizes, seed=options.seed, global_batch=options.global_batch,
        num_batches=options.batches, memory_bytes=None if options.memory_gb is None else 1e9 * options.memory_gb,
        memory_reserve=options.memory_reserve, fixed=_fixed(options), epochs=options.epochs, steps=options.steps,
        deadline_s=None if options.deadline_hours is None else HOUR_S * options.deadline_hours,
        node_s=None if options.node_hours is None else HOUR_S * options.node_hours, prefer=options.prefer,
        num_structures=options.structures,
    )  # fmt: skip
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading counts", total=None)
        return make_plan(request, machine, data, lambda stage: progress.update(task, description=stage))


def _print_plan(plan: Any, content: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    request, several = plan.request, len(plan.request.sizes) > 1
    where = "" if several else f" on {plan.chosen.layout.world_size} ranks of {plan.machine.name}"
    title = f"{request.model_name or 'model'}{where}, {plan.chosen.structures} structures per step"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("candidate", *(["nodes"] if several else []), "micro", "step", "events", "memory"):
        table.add_column(heading, justify="left" if heading == "candidate" else "right", no_wrap=heading != "candidate")
    table.add_column("verdict")
    for one in plan.finalists:
        nodes = [f"{one.nodes:,}"] if several else []
        table.add_row(one.words, *nodes, f"{one.micro_batches:.1f}", _ms(one.step_s), _ms(one.events_step_s),
                      f"{one.memory_bytes / 1e9:.2f} GB", one.verdict)  # fmt: skip
    for one in plan.others[: max(0, MOST_ROWS - len(plan.finalists))]:
        table.add_row(one.words, *([""] if several else []), f"{one.micro_batches:.1f}", _ms(one.step_s), "",
                      f"{one.memory_bytes / 1e9:.2f} GB", one.verdict)  # fmt: skip
    console.print(table)
    prediction = content["prediction"]
    console.print("phases: " + ", ".join(f"{name} {_ms(value)}" for name, value in prediction["phase_s"].items()))
    causes = sorted(prediction["cause_s"].items(), key=lambda item: -item[1])
    console.print("causes: " + ", ".join(f"{name} {_ms(value)}" for name, value in causes if value > 0))
    if prediction["percent_of_peak"] is not None:
        console.print(f"{prediction['percent_of_peak']:.1f} % of {prediction['peak']['name']} (model FLOPs)")
    if several:
        _print_front(console, content)
    for paragraph in content["explanation"]:
        console.print(f"\n{paragraph}", highlight=False, markup=False)
    if prediction["oversubscribed"]:
        console.print("note: more ranks than cores: oversubscribed")


def _print_front(console: Any, content: dict[str, Any]) -> None:
    """What nothing beats in time, memory and node-hours."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from perfmodel.questions import hours

    table = Table(title="what nothing beats in time, memory and node-hours (as searched)", box=SIMPLE_HEAD)
    for heading in ("nodes", "run", "node-hours", "memory", "candidate"):
        table.add_column(heading, justify="left" if heading == "candidate" else "right")
    for one in content["pareto"]:
        table.add_row(f"{one['nodes']:,}", hours(one["run_s"]), f"{one['node_hours']:,.4g}",
                      f"{one['memory_bytes'] / 1e9:.2f} GB", one["words"])  # fmt: skip
    console.print(table)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _write_script(plan: Any, content: dict[str, Any], options: argparse.Namespace) -> Path:
    """The launch script beside the plan."""
    from perfmodel.machine import write_text_atomically
    from perfmodel.search_memory import computes_on_cores
    from scaling_studies.launch_scripts import Job, launch_script

    machine, chosen = plan.machine, plan.chosen
    ranks = chosen.layout.world_size
    on_node = ranks if machine.is_calibrated_host else min(ranks, machine.devices_per_node)
    folder = options.run_folder or f"runs/{options.out.stem}"
    text = launch_script(options.script, Job(
        name=f"janus-{options.out.stem}", ranks=ranks, nodes=chosen.nodes, ranks_per_node=on_node,
        command=["janus", "train", "--plan", str(options.out), "--out", folder],
        threads=content["train"]["run"]["threads"], time_limit_s=_time_limit_s(plan),
        gpus_per_node=0 if computes_on_cores(machine) else on_node, transport=chosen.settings.transport,
        queue=options.queue, account=options.account, comments=content["explanation"][:1],
    ))  # fmt: skip
    path = options.out.with_suffix(".lsf" if options.script == "lsf" else ".sh")
    write_text_atomically(path, text)
    return path


def _time_limit_s(plan: Any) -> float:
    """Predicted run with a quarter more, start-up twice, and five minutes."""
    start_up_s = plan.start_up_s or 0.0
    return 1.25 * (plan.chosen.run_s - start_up_s) + 2 * start_up_s + 300.0


def main(arguments: list[str]) -> int:
    """Search, write the plan and the script, say what was chosen and why."""
    options = _parser().parse_args(arguments)
    _check(options)
    from perfmodel.machine import write_text_atomically
    from perfmodel.plan_file import plan_mapping

    plan = _make_plan(options)
    content = plan_mapping(plan)
    text = json.dumps(content, indent=2, allow_nan=False)
    script = _write_script(plan, content, options) if options.script else None
    write_text_atomically(options.out, text + "\n")
    if options.json:
        print(text)
        return 0
    _print_plan(plan, content)
    _print_next(plan, options, script)
    return 0


def _print_next(plan: Any, options: argparse.Namespace, script: Path | None) -> None:
    """What to type next."""
    from scaling_studies.launch_scripts import submit_command

    ranks = plan.chosen.layout.world_size
    start = f"mpiexec -n {ranks} janus train --plan {options.out} --out {options.run_folder or 'RUN'}"
    print(f"\nplan: {options.out}   run it: {start if script is None else submit_command(options.script, str(script))}")
