"""``janus study plan``: what a campaign will cost, before anything is submitted. It owns options and the table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from janus.cli.study_data import add_campaign_options, declaration_of, resolve_campaign

if TYPE_CHECKING:
    from perfmodel.machine import Machine
    from scaling_studies.campaign_plan import CampaignPlan, PlannedPoint, PlannedStudy

EXAMPLES = """examples:
  janus study plan --config study.toml --data alloys.store \\
      --machine machine.toml
  janus study plan --config study.py --data alloys.store --machine lineshine
  janus study plan --quick --data alloys.store --machine machine.toml --json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="janus study plan", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Every point with predicted time, memory and node-hours; nothing is submitted.\n"
        "Exit code 2 with the reasons where the campaign may not start.",
    )  # fmt: skip
    add_campaign_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def main(arguments: list[str]) -> int:
    """Print the plan. Returns 0, or 2 when the campaign is refused. Raises UserError for a wrong declaration."""
    from perfmodel.machine import load_machine

    options = _parser().parse_args(arguments)
    plan = make_plan(options, load_machine(options.machine))
    if options.json:
        print(json.dumps(plan.to_mapping(), indent=1, allow_nan=False))
    else:
        print_plan(plan)
    for refusal in plan.refusals:
        print(f"refused: {refusal}", file=sys.stderr)
    return 2 if plan.refusals else 0


def make_plan(options: argparse.Namespace, machine: Machine) -> CampaignPlan:
    """Resolve and predict every point, under a progress line on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from scaling_studies.campaign_plan import plan_campaign
    from scaling_studies.predicted import predicted_records

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading the data", total=None)
        campaign = resolve_campaign(
            declaration_of(options), options.data, machine, lambda stage: progress.update(task, description=stage)
        )
        progress.update(task, description="predicting", total=len(campaign.cells))
        records = predicted_records(campaign.cells, machine, lambda cell: progress.advance(task))
    return plan_campaign(campaign.cells, records, campaign.declaration.executor, machine)


def print_plan(plan: CampaignPlan) -> None:
    """One table per study, totals, notes."""
    from rich.console import Console

    console = Console()
    for study in plan.studies:
        console.print(_table(study))
    exact = "" if plan.is_exact else "at most "
    console.print(
        f"{plan.jobs} jobs on {plan.machine} ({plan.executor}): {exact}{plan.node_hours:,.3g} node-hours, "
        f"{exact}{_duration(plan.jobs_s)} one after another; times and memory are predicted", highlight=False,
    )  # fmt: skip
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def _table(study: PlannedStudy) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    budget = "no budget" if study.budget_node_hours is None else f"budget {study.budget_node_hours:,.3g}"
    exact = "" if study.is_exact else "at most "
    jobs = f"{study.points[0].repeats} jobs per point, each at most {_duration(study.points[0].limit_s)}"
    title = f"{study.name} ({study.mode}): {exact}{study.node_hours:,.3g} node-hours, {budget}; {jobs}"
    table = Table(title=title, title_justify="left", caption=escape(study.question), caption_justify="left",
                  box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fmt: skip
    columns = _columns(study)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in study.points:
        table.add_row(*(value(point) for value in columns.values()))
    return table


def _columns(study: PlannedStudy) -> dict[str, Callable[[PlannedPoint], str]]:
    """Heading -> what a point shows there; what is the same and plain at every point is left out."""
    columns: dict[str, Callable[[PlannedPoint], str]] = {}
    if study.mode == "throughput":
        columns["per rank"] = lambda point: f"{point.scale:,}"
    columns["ranks"] = lambda point: f"{point.ranks:,}{' *' if point.oversubscribed else ''}"
    if any(point.nodes > 1 for point in study.points):
        columns["nodes"] = lambda point: f"{point.nodes:,}"
    if any(not point.layout.is_pure_data_parallel for point in study.points):
        columns["unit: s,g,e"] = _degrees
    columns["batch"] = lambda point: f"{point.structures:,}"
    columns["step"] = lambda point: _duration(point.step_s)
    columns["GB of limit"] = _memory
    columns["job"] = lambda point: _duration(point.job_s)
    columns["node-h"] = lambda point: f"{'' if point.job_s is not None else '<= '}{point.node_hours:,.3g}"
    return columns


def _degrees(point: PlannedPoint) -> str:
    """Unit and its shard, graph and expert degrees."""
    layout = point.layout
    return f"{layout.unit}: {layout.shard_degree},{layout.graph_degree},{layout.expert_degree}"


def _memory(point: PlannedPoint) -> str:
    """Predicted memory of a rank, of what it may use."""
    used = "n/a" if point.memory_bytes is None else f"{point.memory_bytes / 1e9:.3g}"
    return f"{used} of {point.memory_limit_bytes / 1e9:.3g}"


def _duration(seconds: float | None) -> str:
    """Three digits in the unit that suits."""
    if seconds is None:
        return "n/a"
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
