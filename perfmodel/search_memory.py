"""Bytes of a rank for many candidates at once, from the coefficients of ``memory``: affine in its largest micro-batch.

It owns which columns of a candidate memory depends on, and the estimate of the largest micro-batch's rows
(``search_rows``). What memory holds and how much is in ``memory``; finalists are predicted by it whole.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from janus.layout import Layout
from janus.placement import STRATEGIES
from perfmodel.candidates import Candidates
from perfmodel.live_rows import ROW_KINDS, row_vector
from perfmodel.machine import Machine
from perfmodel.memory import BASE_BYTES, memory_coefficients
from perfmodel.memory_tiers import MOVES
from perfmodel.products import Counts
from perfmodel.search_tables import Tables
from perfmodel.step_work import RunSettings
from perfmodel.workload_moe import experts_of

Floats = NDArray[np.float64]

STATES = ("shard_degree", "expert_degree", "expert_strategy", "gathered_blocks", "recompute")
BATCH = ("world_size", "graph_degree", "cap", "expert_degree", "expert_strategy")


def computes_on_cores(machine: Machine) -> bool:
    """Whether ranks run on CPU cores, not on accelerators: devices named after a CPU or cores."""
    words = machine.device_name.lower().replace("(", " ").split()
    return machine.is_calibrated_host or any(word in ("cpu", "core", "cores") for word in words)


def transfers_s(machine: Machine, used: Floats, ranks_per_node: int) -> Floats:
    """Seconds per step of traffic with a second memory, of ranks that use so much [C]; 0 where its rate is not known.

    What finds no room in the first memory moves twice: moments and average leave first, read and written once a step.
    """
    if not machine.second_memory_bytes_per_node or machine.second_memory_bytes_per_s is None:
        return np.zeros(len(used))
    over = np.maximum(used - machine.memory_bytes_per_node / ranks_per_node, 0.0)
    return np.asarray(MOVES["moments"] * over / machine.second_memory_bytes_per_s)


def memory_bytes(tables: Tables, candidates: Candidates) -> Floats:
    """Peak bytes of the fullest rank [C]."""
    first, which = candidates.keys([*STATES, *BATCH])
    some = candidates.take(first)
    batch_of, batch = _batches(tables, some)
    state_of, totals = _totals(tables, some)
    chosen = totals[state_of, (batch[batch_of, 0] > 1).astype(int)]  # [K, moments, rows + 1]
    chosen = chosen + (some["graph_degree"] > 1)[:, None, None] * _per_division(tables)[some["recompute"]]
    rows = np.hstack([batch[batch_of, 1:], np.ones((len(some), 1))])
    return np.asarray((BASE_BYTES + np.einsum("kmr,kr->km", chosen, rows).max(axis=1))[which])


def _totals(tables: Tables, some: Candidates) -> tuple[NDArray[np.int64], Floats]:
    """Bytes per row of every moment, the constant last, with one and with more micro-batches [S,2,moments,rows + 1]."""
    dtype = tables.job.dtype
    first, which = some.keys(STATES)
    found = []
    for k in first.tolist():
        shard, expert, strategy, gathered, recompute = (int(some[name][k]) for name in STATES)
        settings = RunSettings(
            dtype=dtype, recompute=bool(recompute), gathered_blocks=gathered, expert_strategy=STRATEGIES[strategy],
            averages=tables.job.averages, clips=tables.job.clips,
        )  # fmt: skip
        replicas = 2 if int(some["world_size"].max()) > math.lcm(shard, expert) else 1
        layout = Layout(unit=math.lcm(shard, expert), replicas=replicas, shard_degree=shard, expert_degree=expert)
        found.append([_moments(tables, layout, settings, number) for number in (1, 2)])
    most = max(len(one) for pair in found for one in pair)
    padded = np.zeros((len(found), 2, most, len(ROW_KINDS) + 1))
    for number, pair in enumerate(found):
        for several, one in enumerate(pair):
            padded[number, several, : len(one)] = one
    return which, padded


def _moments(tables: Tables, layout: Layout, settings: RunSettings, micro_batches: int) -> Floats:
    """Bytes of every moment per row, the constant last: resident or allocated ones, as ``memory_tiers.used_bytes``."""
    found = memory_coefficients(tables.job.model, layout, settings, micro_batches=micro_batches)
    return found.resident_totals if tables.job.machine.is_calibrated_host else found.totals


def _per_division(tables: Tables) -> Floats:
    """What a divided graph adds per row, without and with recomputation [2, 1, rows + 1]: the most of any moment."""
    divided = []
    for recompute in (False, True):
        settings = RunSettings(dtype=tables.job.dtype, recompute=recompute)
        layouts = (Layout(replicas=2), Layout(unit=2, graph_degree=2))
        plain, graph = (_moments(tables, layout, settings, 2) for layout in layouts)
        divided.append(np.maximum(graph - plain, 0.0).max(axis=0, keepdims=True))
    return np.stack(divided)


def _batches(tables: Tables, some: Candidates) -> tuple[NDArray[np.int64], Floats]:
    """Micro-batches of the slowest group, and rows of the largest one on a rank [B, 1 + rows]."""
    first, which = some.keys(BATCH)
    found = []
    for k in first.tolist():
        world, graph = int(some["world_size"][k]), int(some["graph_degree"][k])
        groups = tables.rows(world, world // graph, 1, some.cap(k))
        load = _load(tables, some, k, float(groups.mean[3] / max(groups.mean[0], 1e-9) / graph))
        rows = _largest(tables, groups.largest, graph, load)
        found.append([max(1.0, math.ceil(groups.slowest[0])), *rows.tolist()])
    return which, np.array(found)


def _load(tables: Tables, some: Candidates, k: int, size: float) -> Floats:
    """Copies on the fullest rank of an expert group over the mean, message and feature layer."""
    expert, strategy = int(some["expert_degree"][k]), int(some["expert_strategy"][k])
    if expert == 1 or STRATEGIES[strategy] != "tokens":
        return np.ones(2)
    world, graph = int(some["world_size"][k]), int(some["graph_degree"][k])
    shared = tables.shared(world)
    return tables.routings.of(shared, world // graph, graph, expert, strategy, some.cap(k), size).load


def _largest(tables: Tables, rows: Floats, graph: int, load: Floats) -> Floats:
    """``live_rows.row_vector`` of a rank's part of the largest micro-batch."""
    model = tables.job.model
    _, structures, atoms, edges, bonds, angles = rows.tolist()
    ratio = np.zeros(4)
    if graph > 1:
        ratio = tables.halos(graph).at(np.array([graph / max(structures, 1.0)]))[1][0]
    copies = {}
    if model.experts is not None:
        top_k = experts_of(model).top_k
        copies = {
            "message_copies": top_k * edges / graph * float(load[0]),
            "feature_copies": top_k * atoms / graph * float(load[1]),
        }
    counts = Counts(
        structures=structures, atoms=atoms / graph, edges=edges / graph, bonds=bonds / graph, angles=angles / graph,
        ghosts=ratio[1] * atoms / graph, shared_pairs=ratio[2] * edges / graph,
        shared_bonded_pairs=ratio[3] * bonds / graph, **copies,
    )  # fmt: skip
    return np.asarray(row_vector(model, counts))
