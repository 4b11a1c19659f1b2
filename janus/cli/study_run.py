"""``janus study run``: run what a campaign still lacks. It owns options, the order of preparation and the progress bar.

What a study is, how attempts are run and what becomes of them belongs to ``scaling_studies``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.cli.study_data import (
    ResolvedCampaign,
    add_campaign_options,
    declaration_of,
    refuse_other_folder,
    resolve_campaign,
)
from janus.errors import UserError

if TYPE_CHECKING:
    from perfmodel.machine import Machine
    from scaling_studies.attempts import Attempts
    from scaling_studies.cells import Cell
    from scaling_studies.records import Record
    from scaling_studies.runner import Runner
    from scaling_studies.study import Declaration
    from scaling_studies.wanted import Standing

RUN_EXAMPLES = """examples:
  janus study run --quick --data alloys.store --machine machine.toml \\
      --out studies/first
  janus study run --config study.toml --data alloys.store \\
      --machine machine.toml --out studies/first
  janus study run --config study.toml --data alloys.store --machine lineshine \\
      --out studies/big --once                                     (from cron)

study.toml:
  [[study]]
  name = "weak"
  question = "How much longer does a step take when ranks are added?"
  mode = "weak"                # or "strong" with structures_total,
                               # "throughput" with a list of structures_per_rank
  ranks = [1, 2, 4]
  structures_per_rank = 2
  repeats = 6
  model = "matris-tiny"

  [executor]                   # left out: this host
  kind = "slurm"               # or pbs, flux, lsf
  ranks_per_node = 8

The same command goes on after any stop: what is done stays, jobs in flight are
taken up again.

exit code:
  0  every point has its good attempts; with --once also while a job runs or is
     queued
  1  some are missing (failures, budget: 'janus study status' says which); with
     --once and nothing under way also where the scheduler took no job
  2  a mistake or a refusal
"""


def _parser() -> argparse.ArgumentParser:
    run = argparse.ArgumentParser(
        prog="janus study run", epilog=RUN_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Predict every point, refuse what cannot work, then submit training jobs for\n"
        "every point that has not enough good attempts, in random order, until it has.",
    )  # fmt: skip
    add_campaign_options(run)
    run.add_argument("--out", type=Path, required=True, help="folder of the study; an existing one is continued")
    run.add_argument("--once", action="store_true", help="collect and submit once, and leave: for cron")
    run.add_argument("--torchrun", action="store_true", help="start the ranks of local jobs with torchrun, not mpiexec")
    run.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return run


def main(arguments: list[str]) -> int:
    """Run what is missing. Returns 0 when nothing is missing any more (with --once: or a job is under way), else 1.

    Raises UserError for a mistake or a refusal.
    """
    from janus.cli.study_show import print_study
    from scaling_studies.lease import only_runner

    options = _parser().parse_args(arguments)
    declaration = _declaration(options)
    refuse_other_folder(options.out)
    machine = _machine(options.machine, declaration)
    with only_runner(options.out), _progress() as (say, stage, show):
        stage("reading the data")
        campaign = resolve_campaign(declaration, options.data, machine, stage)
        runner = _prepared(options, campaign, machine, say, stage, show)
        standing = runner.run_once() if options.once else runner.run()
    print_study(options.out, options.json)
    return 0 if standing.is_complete or (options.once and standing.is_under_way) else 1


def _declaration(options: argparse.Namespace) -> Declaration:
    declaration = declaration_of(options)
    if not options.torchrun:
        return declaration
    if declaration.executor.kind != "local":
        raise UserError(
            f"--torchrun is for jobs of this host, executor.kind is {declaration.executor.kind!r}: remove it"
        )
    return dataclasses.replace(declaration, executor=dataclasses.replace(declaration.executor, launcher="torchrun"))


def _machine(name: str, declaration: Declaration) -> Machine:
    """The machine file; jobs of this host need the one that was calibrated on it."""
    from perfmodel.host import require_calibrated_here
    from perfmodel.machine import load_machine

    machine = load_machine(name)
    if declaration.executor.kind == "local":
        if not machine.is_calibrated_host:
            raise UserError(f"--machine {name} is not a file of this host: make one with 'janus calibrate'")
        require_calibrated_here(machine)
    return machine


def _prepared(
    options: argparse.Namespace, campaign: ResolvedCampaign, machine: Machine, say: Any, stage: Any, show: Any
) -> Runner:
    """The runner, once nothing speaks against it and declaration, plan, predictions and data are in the folder."""
    from scaling_studies.attempts import Attempts
    from scaling_studies.campaign_plan import plan_campaign, write_plan
    from scaling_studies.campaign_work import campaign_work
    from scaling_studies.executors.choice import executor_for
    from scaling_studies.measured import Host
    from scaling_studies.predicted import predicted_records
    from scaling_studies.runner import Runner
    from scaling_studies.study import write_declaration

    attempts = Attempts(options.out)
    _refuse_other_results(attempts, campaign)
    _refuse_other_frame(attempts, campaign.cells, machine)
    stage("predicting")
    predictions = predicted_records(campaign.cells, machine)
    executor = campaign.declaration.executor
    plan = plan_campaign(campaign.cells, predictions, executor, machine)
    plan.require()
    write_declaration(options.out, campaign.declaration)
    write_plan(options.out, plan)
    _write_predictions(attempts, predictions)
    stage("writing data sets")
    paths = {cell.id: campaign.write_data(options.out, cell) for cell in campaign.cells}
    work = campaign_work(campaign.cells, Host(machine=machine), lambda cell: paths[cell.id])
    return Runner(attempts, work, executor_for(executor), say=say, show=show)


def _refuse_other_results(attempts: Attempts, campaign: ResolvedCampaign) -> None:
    """Raise UserError when attempts in the folder at declared points are of another declaration, data or code.

    Points may be dropped as long as one with attempts stays: else it is not the same campaign.
    """
    from scaling_studies.records import MEASURED

    if any(record.source != MEASURED and not record.repeats_planned for record in attempts.read()):
        raise UserError(f"{attempts.folder} holds a campaign that is predicted only: use a new --out")
    known = {cell.id for cell in campaign.cells}
    cell_at = {(cell.study.name, float(cell.scale)): cell for cell in campaign.cells}
    measured = [record for record in attempts.read() if record.source == MEASURED]
    for record in measured:
        if record.cell_id in known or (cell := cell_at.get((record.study, record.x))) is None:
            continue
        then = record.provenance.get("code_version")
        if then != cell.code_version:
            raise UserError(
                f"{record.place} was measured with code {then} and the code is {cell.code_version} now: they are not "
                f"comparable, so use a new --out, or restore the code; what {attempts.folder} holds stays"
            )
        if (layout := cell.layout.to_mapping()) != record.layout:
            raise UserError(
                f"{record.place} was measured with layout {_words(record.layout)} and would have {_words(layout)} "
                "now: use the declaration and machine file of before, or a new --out"
            )
        raise UserError(
            f"{attempts.folder} holds results of another declaration or other data ({record.place}, cell "
            f"{record.cell_id}{_change_since(attempts.folder, campaign.declaration)}): use a new --out so that nothing "
            "is mixed"
        )
    if measured and not any(record.cell_id in known for record in measured):
        raise UserError(
            f"{attempts.folder} holds attempts at {measured[0].place} and at no point of this declaration: declare one "
            "of its points again, or use a new --out"
        )


def _change_since(folder: Path, now: Declaration) -> str:
    """What differs from the declaration kept in a study folder, "" where that cannot be read."""
    from scaling_studies.study import CAMPAIGN_FILE, changed_settings, read_declaration

    try:
        found = changed_settings(read_declaration(folder / CAMPAIGN_FILE), now)
    except UserError:
        return ""
    return "; " + (", ".join(found) or "the settings are as they were, the data are not")


def _words(layout: Mapping[str, Any]) -> str:
    """A layout in words: unit 2, replicas 3, shard_degree 2."""
    return ", ".join(f"{name} {value}" for name, value in layout.items() if value not in (1, "unit_first")) or "unit 1"


def _refuse_other_frame(attempts: Attempts, cells: Sequence[Cell], machine: Machine) -> None:
    """Raise UserError when attempts at these cells were made on another machine, or refer to another base point."""
    from scaling_studies.records import MEASURED

    cell_of = {cell.id: cell for cell in cells}
    for record in attempts.read():
        if record.source != MEASURED or (cell := cell_of.get(record.cell_id)) is None:
            continue
        study = cell.study
        if record.base_x not in study.points:
            raise UserError(
                f"study {study.name} has efficiencies that refer to {study.scaled} = {record.base_x:,g} in "
                f"{attempts.folder} and the declaration has dropped that point: declare it again, or use a new --out"
            )
        if record.base_x != study.base:
            raise UserError(
                f"study {study.name} has efficiencies that refer to {study.scaled} = {record.base_x:,g} in "
                f"{attempts.folder} and to {study.base:,} in the declaration: set base_{study.scaled} = "
                f"{record.base_x:g}, or use a new --out"
            )
        if record.machine != machine.name:
            raise UserError(
                f"{attempts.folder} holds times of machine {record.machine!r} and --machine is {machine.name!r}: they "
                "are not comparable, so use a new --out, or the machine file of before"
            )


def _write_predictions(attempts: Attempts, predictions: Sequence[Record]) -> None:
    """Write the predicted record of every cell before anything runs; those of an earlier declaration go."""
    from scaling_studies.records import PREDICTED, write_record

    for record in predictions:
        write_record(attempts.record_folder, record)
    current = {record.file_name for record in predictions}
    for old in attempts.read():
        if old.source == PREDICTED and old.file_name not in current:
            (attempts.record_folder / old.file_name).unlink()


@contextmanager
def _progress() -> Iterator[tuple[Any, Any, Any]]:
    """Functions that say a line, name the stage, show where the campaign stands: a progress bar on stderr.

    Where stderr is a file, a line for each further good attempt.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)
        shown = -1

        def show(now: Standing) -> None:
            nonlocal shown
            words = f"{now.running} running, {now.waiting} waiting"
            progress.update(bar, description=words, completed=now.good, total=now.wanted)
            if not console.is_terminal and now.good != shown:
                say(f"{now.good} of {now.wanted} good attempts")
            shown = now.good

        yield say, lambda text: progress.update(bar, description=text), show
