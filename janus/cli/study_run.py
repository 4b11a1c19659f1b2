"""``janus study run``: run what a campaign still lacks. It owns options, data preparation and the progress bar.

What a study is and how attempts are run and recorded belongs to ``scaling_studies``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from janus.data.store import StructureStore
    from scaling_studies.cells import Cell, DataCounts
    from scaling_studies.local import LocalExecutor, Task
    from scaling_studies.records import Record
    from scaling_studies.study import Study

RUN_EXAMPLES = """examples:
  janus study run --quick --data alloys.store --machine machine.toml --out studies/first
  janus study run --config study.toml --data alloys.store --machine machine.toml --out studies/first
  janus study run --quick --data alloys.store --machine machine.toml --out studies/first   (again: only what is missing)

study.toml:
  [[study]]
  name = "weak"
  question = "How much longer does a step take when ranks are added and each keeps the same work?"
  mode = "weak"                # or "strong", with structures_total
  ranks = [1, 2, 4]
  structures_per_rank = 2
  repeats = 6
  model = "matris-tiny"
"""


def _parser() -> argparse.ArgumentParser:
    run = argparse.ArgumentParser(
        prog="janus study run", epilog=RUN_EXAMPLES,
        description="Predict every point, then run the training jobs that have no good record yet, in random order. "
        "Stopping it at any time loses nothing: the same command goes on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = run.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="TOML file with [[study]] tables")
    what.add_argument("--quick", action="store_true", help="a small weak and strong study over 1, 2 and 4 ranks")
    run.add_argument("--data", type=Path, required=True, help="store (or any file ASE reads) to take structures from")
    run.add_argument("--machine", required=True, help="machine file that 'janus calibrate' wrote for this host")
    run.add_argument("--out", type=Path, required=True, help="folder of the study; an existing one is continued")
    run.add_argument("--model", default="matris-tiny", help="model preset of --quick (default: matris-tiny)")
    run.add_argument("--no-full-machine", action="store_true", help="leave out the predicted full-machine study")
    run.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return run


def main(arguments: list[str]) -> int:
    """Run what is missing. Returns 0, or 1 when an attempt of this call did not count. Raises UserError."""
    return _run(_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    from janus.cli.study_show import print_study
    from perfmodel.host import require_calibrated_here
    from perfmodel.machine import load_machine
    from scaling_studies import local
    from scaling_studies.measured import Host
    from scaling_studies.predicted import device_peaks
    from scaling_studies.study import quick_studies, read_campaign, write_campaign

    num_cores = len(os.sched_getaffinity(0))
    studies = quick_studies(num_cores, model=options.model) if options.quick else read_campaign(options.config)
    machine = load_machine(options.machine)
    if not machine.is_calibrated_host:
        raise UserError(f"--machine {options.machine} is not a file of this host: make one with 'janus calibrate'")
    require_calibrated_here(machine)
    with local.only_runner(options.out):
        plan = list(_resolved(studies, options.data))
        cells = [cell for cell, _ in plan]
        _refuse_other_results(options.out, cells)
        write_campaign(options.out, studies)
        _write_predictions(options.out, cells, machine, full_machine=not options.no_full_machine)
        paths = {cell.id: _cell_store(options.out, cell, store) for cell, store in plan}
        executor = local.LocalExecutor(
            folder=options.out, data_of=lambda cell: paths[cell.id],
            host=Host(name=machine.name, num_cores=num_cores, core_peaks=device_peaks(machine)),
        )  # fmt: skip
        executor.record_abandoned(cells)
        records = _run_tasks(executor, executor.wanted(cells, seed=studies[0].seed))
    print_study(options.out, options.json)
    return 0 if all(record.state == "DONE" for record in records) else 1


def _resolved(studies: Sequence[Study], data: Path) -> Iterator[tuple[Cell, StructureStore]]:
    """The cells of all studies, each with the store its structures come from, counted at its model's cutoffs."""
    from janus.data.pack import open_or_pack
    from scaling_studies.cells import resolve_cells

    opened: dict[tuple[float, float], StructureStore] = {}
    for study in studies:
        model = study.model_config
        cutoffs = (model.cutoff_angstrom, model.line_cutoff_angstrom)
        if cutoffs not in opened:
            opened[cutoffs] = open_or_pack(data, *cutoffs)
        for cell in resolve_cells(study, _data_counts(opened[cutoffs])):
            yield cell, opened[cutoffs]


def _data_counts(store: StructureStore) -> DataCounts:
    from scaling_studies.cells import DataCounts

    return DataCounts(
        fingerprint=store.fingerprint, atoms=store.num_atoms, edges=store.num_edges, bonds=store.num_bonds,
        angles=store.num_angles,
    )  # fmt: skip


def _refuse_other_results(folder: Path, cells: Sequence[Cell]) -> None:
    """Raise UserError when the folder holds measured results of cells that this declaration and data do not have."""
    from scaling_studies.records import MEASURED, RECORD_FOLDER, read_folder

    known = {cell.id for cell in cells}
    for record in read_folder(folder / RECORD_FOLDER).records:
        if record.source == MEASURED and record.cell_id not in known:
            raise UserError(
                f"{folder} holds results of another declaration or other data (study {record.study}, {record.ranks} "
                f"ranks, cell {record.cell_id}): use a new --out so that nothing is mixed"
            )


def _write_predictions(folder: Path, cells: Sequence[Cell], machine: Any, *, full_machine: bool) -> None:
    """Write the predicted record of every cell, and of the full-machine study, before anything runs."""
    from scaling_studies.full_machine import all_full_machine_records
    from scaling_studies.predicted import predicted_records
    from scaling_studies.records import PREDICTED, RECORD_FOLDER, read_folder, write_record

    records = predicted_records(cells, machine)
    if full_machine:
        records += all_full_machine_records()
    for record in records:
        write_record(folder / RECORD_FOLDER, record)
    current = {record.file_name for record in records}
    for old in read_folder(folder / RECORD_FOLDER).records:
        if old.source == PREDICTED and old.file_name not in current:
            (folder / RECORD_FOLDER / old.file_name).unlink()


def _cell_store(folder: Path, cell: Cell, source: StructureStore) -> Path:
    """The data set of one cell: its structures in order, copies under names of their own. Written once."""
    from janus.data.store import write_store

    path = folder / "data" / f"{cell.data_id}.store"
    if path.exists():
        return path

    def structures() -> Iterator[Any]:
        seen: dict[int, int] = {}
        for index in cell.indices:
            seen[index] = seen.get(index, 0) + 1
            structure = source[index]
            name = structure.name if seen[index] == 1 else f"{structure.name}, copy {seen[index]}"
            yield dataclasses.replace(structure, name=name)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_store(
        path, structures(), cutoff_angstrom=source.cutoff_angstrom, line_cutoff_angstrom=source.line_cutoff_angstrom
    )
    return path


def _run_tasks(executor: LocalExecutor, tasks: Sequence[Task]) -> list[Record]:
    """Run the attempts one after another under a progress bar on stderr; failures are named as they happen."""
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
    records = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("study", total=len(tasks))
        for task in tasks:
            cell = task.cell
            ranks = f"{cell.ranks} rank{'s' if cell.ranks > 1 else ''}"
            progress.update(bar, description=f"{cell.study.name}, {ranks}, repeat {task.repeat + 1}")
            record = executor.run(task)
            records.append(record)
            if record.state != "DONE":
                console.print(f"{cell.study.name}, {ranks}: {record.state}: {record.reason}", markup=False)
            progress.advance(bar)
        progress.update(bar, description="study done")
    return records
