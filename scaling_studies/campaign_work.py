"""What a runner needs to run ``janus train`` for the cells of a campaign. It puts the parts together and owns none.

The weights that a measured run saved are removed once they are timed: a campaign is after times, and hundreds of
checkpoints of a large model would fill any disk. Runs that failed are left as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from scaling_studies.cells import Cell, identity
from scaling_studies.code_version import trainer_version
from scaling_studies.launchers import RUN_FOLDER, TRAINER, attempt_job
from scaling_studies.measured import METHOD, Host, measured_record
from scaling_studies.records import MEASURED, PLANNED, Record
from scaling_studies.runner import Work

CHECKPOINT_FOLDER = "checkpoints"  # of the trainer, in its run folder


def campaign_work(
    cells: Sequence[Cell], host: Host, data_of: Callable[[Cell], Path], *, trainer: Sequence[str] = TRAINER
) -> Work:
    """Work of a runner. data_of: cell -> its data set; trainer: command line up to its options."""

    def planned(cell: Cell, repeat: int) -> Record:
        return Record(
            **identity(cell), source=MEASURED, method=METHOD, machine=host.name, state=PLANNED, repeat=repeat,
            layout=dict(cell.layout.to_mapping()), executor=cell.executor.kind, counts_per_rank=cell.counts_per_rank,
            oversubscribed=host.is_oversubscribed(cell.ranks, cell.executor.threads),
            provenance={"code_version": cell.code_version, "seeds": {"order": cell.study.seed}},
        )  # fmt: skip

    def measure(cell: Cell, record: Record, folder: Path) -> Record:
        found = measured_record(cell, record, folder, host)
        shutil.rmtree(folder / RUN_FOLDER / CHECKPOINT_FOLDER, ignore_errors=True)
        return found

    return Work(
        cells=tuple(cells), planned=planned, code_version=trainer_version, seed=cells[0].study.seed,
        job_of=lambda cell, record, folder: attempt_job(record.tag, folder, cell, data_of(cell), trainer=trainer),
        measure=measure,
    )  # fmt: skip
