"""Bytes of a rank for many candidates at once: states of what it keeps, gathered blocks, its largest micro-batch.

It owns which columns of a candidate memory depends on. How much each thing takes is in ``memory``; finalists are
predicted by it whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perfmodel.candidates import Candidates
from perfmodel.compute_time import FEATURES, ROWS, work_coefficients
from perfmodel.memory import AVERAGE_STATES, BASE_BYTES, INDEX_BYTES, OPTIMIZER_STATES
from perfmodel.search_parts import Tables
from perfmodel.workload import ITEM_BYTES, PHASES
from perfmodel.workload_moe import experts_of

Floats = NDArray[np.float64]


def memory_bytes(tables: Tables, candidates: Candidates) -> Floats:
    """Peak bytes of the fullest rank [C]."""
    return BASE_BYTES + _states(tables, candidates) + _micro_batches(tables, candidates)


def _states(tables: Tables, candidates: Candidates) -> Floats:
    """Parameters, gradients, optimizer and average that a rank keeps, the blocks that it holds gathered, a bucket."""
    job, num_blocks = tables.job, tables.job.model.num_blocks
    item_bytes = ITEM_BYTES[job.dtype]
    first, which = candidates.keys(["shard_degree", "expert_degree", "expert_strategy", "gathered_blocks"])
    result = np.zeros(len(first))
    for number, k in enumerate(first.tolist()):
        shard, expert, strategy, gathered = (
            int(candidates[name][k]) for name in ("shard_degree", "expert_degree", "expert_strategy", "gathered_blocks")
        )
        numel, _ = tables.kept(shard, expert, strategy)
        states = 2 + OPTIMIZER_STATES + (AVERAGE_STATES if job.averages else 0)
        units = tables.units(shard, expert)
        held = [shard * size for block, size in units.items() if block >= 0]
        root = sum(shard * size for block, size in units.items() if block < 0)
        whole = root + sum(sorted(held)[-(gathered or num_blocks) :])
        bucket = min(numel * item_bytes, 25 * 1024**2)
        result[number] = item_bytes * (states * numel + 2 * whole) + bucket  # gathered: values and their gradients
    return np.asarray(result[which])


def _micro_batches(tables: Tables, candidates: Candidates) -> Floats:
    """What the largest micro-batch keeps for the double backward, and the indices of all."""
    model, dtype = tables.job.model, tables.job.dtype
    first, which = candidates.keys(["world_size", "graph_degree", "cap", "recompute"])
    result = np.zeros(len(first))
    for number, k in enumerate(first.tolist()):
        world, graph, recompute = (int(candidates[name][k]) for name in ("world_size", "graph_degree", "recompute"))
        largest = tables.rows(world, world // graph, 1, candidates.cap(k)).largest
        rows = dict(zip(("once", "structures", "atoms", "edges", "bonds", "angles"), largest.tolist(), strict=True))
        for name in ("atoms", "edges", "bonds", "angles"):
            rows[name] /= graph
        if graph > 1:
            ratio = tables.halos(graph).at(np.array([graph / max(rows["structures"], 1.0)]))[1][0]
            rows |= {"ghosts": rows["atoms"] * ratio[1], "shared_pairs": rows["edges"] * ratio[2],
                     "shared_bonded_pairs": rows["bonds"] * ratio[3]}  # fmt: skip
        if model.experts is not None:
            top_k = experts_of(model).top_k
            rows |= {"message_copies": top_k * rows["edges"], "feature_copies": top_k * rows["atoms"]}
        kept = work_coefficients(model, dtype=dtype, recompute=bool(recompute))[:, :, FEATURES.index("fresh_bytes")]
        vector = np.array([rows.get(name, 0.0) for name in ROWS])
        indices = sum(each * largest[("once", "structures", "atoms", "edges", "bonds", "angles").index(kind)]
                      for kind, each in INDEX_BYTES.items())  # fmt: skip
        result[number] = vector @ kept[:, [PHASES.index("FE"), PHASES.index("FF")]].sum(axis=1) + 2 * indices
    return np.asarray(result[which])
