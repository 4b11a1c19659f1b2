"""Cells: which structures, equal work in weak studies, stable identities."""

import dataclasses

import numpy as np
import pytest

from janus.errors import UserError
from scaling_studies.cells import check_constant_work, middle_structures, resolve_cells
from scaling_studies.records import RankCounts
from tests.study_cases import data, strong, weak


def test_middle_structures_surround_the_median_and_skip_empty_ones():
    work = np.array([0, 100, 1, 50, 52, 0, 54, 1000])
    assert middle_structures(work, 3) == (3, 4, 6)
    with pytest.raises(UserError, match="needs 7 different structures and its data holds 6"):
        middle_structures(work, 7)


@pytest.mark.parametrize("per_rank", [1, 2, 3, 5])
def test_weak_cells_give_every_rank_exactly_the_same_work(per_rank):
    cells = resolve_cells(weak(ranks=(1, 2, 3, 4, 8), structures_per_rank=per_rank), data())
    counts = {entry for cell in cells for entry in cell.counts_per_rank}
    assert len(counts) == 1
    assert [len(cell.indices) for cell in cells] == [per_rank * ranks for ranks in (1, 2, 3, 4, 8)]


def test_strong_cells_share_the_same_structures():
    cells = resolve_cells(strong(ranks=(1, 2, 4), structures_total=6), data())
    assert len({cell.indices for cell in cells}) == 1
    assert len({cell.data_id for cell in cells}) == 1
    assert len({sum(entry.work for entry in cell.counts_per_rank) for cell in cells}) == 1
    assert [len(cell.counts_per_rank) for cell in cells] == [1, 2, 4]


def test_micro_batches_stay_within_the_cap_and_add_up():
    counts = data()
    (cell,) = resolve_cells(strong(ranks=(1,), structures_total=8, max_work=12_000), counts)
    (batches,) = cell.micro_batches
    assert len(batches) > 1
    assert all(batch.work <= 12_000 for batch in batches)
    assert sum(batch.work for batch in batches) == counts.work[list(cell.indices)].sum()
    assert cell.train_settings["batch"]["max_work"] == 12_000


def test_work_that_is_not_constant_is_refused():
    def one(angles: int) -> tuple[RankCounts, ...]:
        return (RankCounts(structures=1, atoms=1, edges=100, bonds=1, angles=angles),)

    check_constant_work(weak(), {1: one(0), 2: one(1)})  # 1 % is the tolerance
    with pytest.raises(UserError, match="rank at 2 ranks has work 102 against 100"):
        check_constant_work(weak(), {1: one(0), 2: one(2)})
    with pytest.raises(UserError, match="step at 2 ranks has work 200 against 100"):
        check_constant_work(strong(), {1: one(0), 2: one(0) * 2})


def test_identity_changes_with_what_decides_the_result_and_only_with_that():
    def identity(study, counts) -> str:
        return resolve_cells(study, counts)[0].id

    base = identity(weak(), data())
    assert base == identity(weak(repeats=9, seed=5, time_out_s=1.0), data())
    assert base != identity(weak(steps=3), data())
    assert base != identity(weak(recompute=True), data())
    assert base != identity(weak(), dataclasses.replace(data(), fingerprint="beef"))
    assert base != resolve_cells(weak(), data())[1].id
