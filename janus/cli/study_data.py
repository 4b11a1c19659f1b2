"""From a declaration and a data set to cells and their small data sets. It owns opening stores and counting.

What a cell is belongs to ``scaling_studies.cells``. Used by ``janus study plan`` and ``janus study run``.
"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from janus.data.store import StructureStore
    from perfmodel.machine import Machine
    from scaling_studies.cells import Cell
    from scaling_studies.study import Declaration

DATA_FOLDER = "data"
QUICK_MODEL = "matris-tiny"


@dataclass(frozen=True, kw_only=True)
class ResolvedCampaign:
    """A declaration with its points resolved on a machine and a data set. stores: cell id -> where it draws from."""

    declaration: Declaration
    cells: tuple[Cell, ...]
    stores: dict[str, StructureStore]

    def write_data(self, folder: Path, cell: Cell) -> Path:
        """The data set of one cell below a study folder, written where it is not there yet."""
        return write_cell_data(folder, cell, self.stores[cell.id])


def add_campaign_options(parser: ArgumentParser) -> None:
    """What ``plan`` and ``run`` both need to know."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="campaign: TOML file with [[study]] tables, or a Python file")
    what.add_argument("--quick", action="store_true", help="a small weak and strong study over 1, 2 and 4 ranks")
    parser.add_argument("--model", help=f"model preset of --quick (default: {QUICK_MODEL})")
    parser.add_argument("--data", type=Path, required=True, help="store (or any file ASE reads) with the structures")
    parser.add_argument("--machine", required=True, help="file of 'janus calibrate', or a machine of the catalogue")


def declaration_of(options: Namespace) -> Declaration:
    """The campaign that the options of ``add_campaign_options`` name. Raises UserError."""
    from scaling_studies.study import quick_declaration, read_declaration

    if options.quick:
        return quick_declaration(model=options.model or QUICK_MODEL)
    if options.model is not None:
        raise UserError(f"--model {options.model} is for --quick: set model in {options.config} instead, and remove it")
    return read_declaration(options.config)


def refuse_other_folder(folder: Path) -> None:
    """Raise UserError where --out names a folder of something else, which a campaign must not be mixed with."""
    from janus.data.store_arrays import META_NAME
    from janus.train.runfolder import RUN_FILE

    for name, what in ((RUN_FILE, "a training run"), (META_NAME, "a store of structures")):
        if (folder / name).exists():
            raise UserError(f"{folder} is the folder of {what} ({name}): use another --out")


def resolve_campaign(
    declaration: Declaration, data: Path, machine: Machine, on_stage: Callable[[str], None] = lambda stage: None
) -> ResolvedCampaign:
    """The cells of all studies. on_stage: told what is worked on (progress bars).

    Where the declaration does not say how many ranks a node of a catalogued machine takes, it takes one per device.
    """
    from janus.data.pack import open_or_pack
    from perfmodel.run_validation import data_counts
    from scaling_studies.cells import resolve_cells
    from scaling_studies.code_version import trainer_version
    from scaling_studies.planned_layout import planner_for

    executor = declaration.executor
    if not machine.is_calibrated_host and not executor.ranks_per_node:
        executor = dataclasses.replace(executor, ranks_per_node=machine.devices_per_node)
    opened: dict[tuple[float, float], Any] = {}
    cells: list[Cell] = []
    stores: dict[str, StructureStore] = {}
    for study in declaration.studies:
        on_stage(f"points of study {study.name}")
        model = study.model_config
        cutoffs = (model.cutoff_angstrom, model.line_cutoff_angstrom)
        if cutoffs not in opened:
            store = open_or_pack(data, *cutoffs)
            opened[cutoffs] = store, data_counts(store)
        store, counts = opened[cutoffs]
        found = resolve_cells(
            study, counts, executor=executor, code_version=trainer_version(), choose_layout=planner_for(machine)
        )
        cells += found
        stores |= dict.fromkeys((cell.id for cell in found), store)
    return ResolvedCampaign(
        declaration=dataclasses.replace(declaration, executor=executor), cells=tuple(cells), stores=stores
    )


def write_cell_data(folder: Path, cell: Cell, source: StructureStore) -> Path:
    """The data set of one cell: its structures in order, copies under names of their own. Written once."""
    from janus.data.store import write_store

    path = folder / DATA_FOLDER / f"{cell.data_id}.store"
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
