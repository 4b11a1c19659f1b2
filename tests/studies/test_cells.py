"""Cells: which structures, equal work where it is promised, what the trainer is told, stable identities."""

import dataclasses

import numpy as np
import pytest

from janus.errors import UserError
from janus.layout import Layout
from janus.train.config import train_config
from scaling_studies.cells import Cell, constancy_problems, identity, middle_structures, resolve_cells
from scaling_studies.records import PREDICTED, Record
from scaling_studies.study import CLOCKS, ExecutorSettings
from tests.study_cases import data, strong, throughput, weak


def test_middle_structures_surround_the_median_and_skip_empty_ones():
    work = np.array([0, 100, 1, 50, 52, 0, 54, 1000])
    assert middle_structures(work, 3) == (3, 4, 6)
    with pytest.raises(UserError, match="7 different structures are needed and the data holds 6"):
        middle_structures(work, 7)
    with pytest.raises(UserError, match="study w: 21 different structures are needed and the data holds 20"):
        resolve_cells(weak(structures_per_rank=21), data())


@pytest.mark.parametrize("per_rank", [1, 2, 3, 5])
def test_weak_cells_give_every_rank_exactly_the_same_work(per_rank):
    cells = resolve_cells(weak(ranks=(1, 2, 3, 4, 8), structures_per_rank=per_rank), data())
    counts = {entry for cell in cells for entry in cell.counts_per_rank}
    assert len(counts) == 1
    assert [len(cell.indices) for cell in cells] == [per_rank * ranks for ranks in (1, 2, 3, 4, 8)]
    assert constancy_problems(cells) == []


def test_strong_cells_share_the_same_structures():
    cells = resolve_cells(strong(ranks=(1, 2, 4), structures_total=6), data())
    assert len({cell.indices for cell in cells}) == 1
    assert len({cell.data_id for cell in cells}) == 1
    assert len({sum(entry.work for entry in cell.counts_per_rank) for cell in cells}) == 1
    assert [len(cell.counts_per_rank) for cell in cells] == [1, 2, 4]
    assert constancy_problems(cells) == []


def test_throughput_cells_keep_ranks_and_the_mix_of_structures():
    cells = resolve_cells(throughput(structures_per_rank=(2, 4, 6)), data())
    assert [cell.ranks for cell in cells] == [2, 2, 2]
    assert [len(cell.indices) for cell in cells] == [4, 8, 12]
    assert len({cell.distinct for cell in cells}) == 1
    assert {entry.work for cell in cells for entry in cell.counts_per_rank} == {
        cells[0].counts_per_rank[0].work * factor for factor in (1, 2, 3)
    }
    assert constancy_problems(cells) == []


def test_the_ranks_of_a_graph_group_share_its_counts():
    study = weak(ranks=(4, 8), unit=4, graph_degree=2, shard_degree=4)
    whole = resolve_cells(weak(ranks=(4,)), data())[0]
    for cell in resolve_cells(study, data()):
        assert len(cell.counts_per_rank) == cell.ranks
        assert sum(entry.edges for entry in cell.counts_per_rank) * 4 == cell.ranks * sum(
            entry.edges for entry in whole.counts_per_rank
        )
        assert len({entry.work for entry in cell.counts_per_rank}) == 1  # two copies: whatever is odd is shared out


@pytest.mark.parametrize("study", [weak(ranks=(1, 2)), strong(ranks=(1, 2)), throughput()])
def test_what_is_not_constant_is_named(study):
    first, *others = resolve_cells(study, data(50))
    other = resolve_cells(dataclasses.replace(study, name="x"), data(50, seed=3))[1]
    broken: list[Cell] = [first, *others[:-1], dataclasses.replace(other, study=study, scale=others[-1].scale)]
    (problem,) = constancy_problems(broken)
    assert problem.startswith(f"study {study.name} is {study.mode} but at {others[-1].scale}")
    assert f"at the base point ({study.base})" in problem


def test_settings_are_ones_that_the_trainer_takes():
    study = weak(ranks=(4,), unit=2, shard_degree=2, graph_degree=1, max_work=0, transport="mpi")
    (cell,) = resolve_cells(study, data(), executor=ExecutorSettings(threads=3))
    config = train_config({"model": study.model, **cell.train_settings})
    assert config.parallel.layout(4) == cell.layout == Layout(unit=2, replicas=2, shard_degree=2)
    assert (config.parallel.transport, config.run.threads, config.run.steps) == ("mpi", 3, 10)
    assert config.batch.structures == len(cell.indices)
    assert config.batch.max_work > cell.data.work.sum()


def test_identity_changes_with_what_decides_the_result_and_only_with_that():
    def name(study, counts=None, **options) -> str:
        return resolve_cells(study, counts or data(), **options)[0].id

    base = name(weak())
    assert base == name(weak(repeats=9, seed=5, time_out_s=1.0, node_hours=2.0, max_failures=1))
    assert base == name(weak(), executor=ExecutorSettings(poll_s=9.0, max_in_flight=1))
    slurm = [ExecutorSettings(kind="slurm", ranks_per_node=2, queue=queue) for queue in ("short", "long")]
    assert name(weak(), executor=slurm[0]) == name(weak(), executor=slurm[1])
    others = {
        name(weak(steps=3)), name(weak(recompute=True)), name(weak(clock="mean_rank")), name(weak(transport="mpi")),
        name(weak(), dataclasses.replace(data(), fingerprint="beef")), name(weak(), code_version="newer"),
        name(weak(), executor=ExecutorSettings(threads=2)),
        name(weak(), executor=ExecutorSettings(launcher="torchrun")),
        resolve_cells(weak(), data())[1].id,
    }  # fmt: skip
    assert len(others) == 9
    assert base not in others


@pytest.mark.parametrize(("study", "x", "base_x"), [(weak(), 2, 1), (strong(), 2, 1), (throughput(), 2, 1)])
def test_records_of_a_cell_say_what_is_scaled_where_and_by_which_clock(study, x, base_x):
    cell = resolve_cells(study, data(), executor=ExecutorSettings(kind="slurm", ranks_per_node=1))[1]
    record = Record(**identity(cell), source=PREDICTED, method="", machine="m", layout={}, step_s=(1.0,))
    assert (record.x, record.base_x, record.scaled) == (x, base_x, study.scaled)
    assert (record.ranks, record.nodes) == (2, 2)
    assert record.clock == CLOCKS["slowest_rank"]


def test_a_planned_layout_is_chosen_per_point():
    asked = []

    def choose(study, ranks, counts, indices):
        asked.append((ranks, len(indices)))
        return Layout(unit=ranks, shard_degree=ranks)

    cells = resolve_cells(weak(layout="planned"), data(), choose_layout=choose)
    assert asked == [(1, 2), (2, 4)]
    assert [cell.layout.unit for cell in cells] == [1, 2]
    with pytest.raises(UserError, match="give a machine file"):
        resolve_cells(weak(layout="planned"), data())
