"""The search: every candidate's memory, then the time of those that fit, from tables of what few columns decide.

It owns the order (memory first, then time) and the table of results. It does not own which candidates there are
(``candidates``), what the parts of a step cost (``search_parts``), what overlaps (``step_time.combine``), what memory
holds (``memory``) nor which candidate is wanted (``questions``, ``planner``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from perfmodel.candidates import Candidates, Space, enumerate_candidates
from perfmodel.search_memory import memory_bytes, transfers_s
from perfmodel.search_parts import Pricing, SearchParts
from perfmodel.search_tables import Job, Tables
from perfmodel.step_parts import StepParts
from perfmodel.step_time import StepSeconds, combine

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNK = 8192  # candidates combined at once: their table of phases and causes stays in the cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Candidates that fit in memory, priced. considered: how many there were in all; memory_bytes, limit_bytes,
    step_s, structures [C]: of a rank, what it may use, of a step, structures of a step.
    """

    candidates: Candidates
    considered: int
    memory_bytes: Floats
    limit_bytes: Floats
    step_s: Floats
    structures: Floats
    priced: SearchParts
    tables: Tables

    def __len__(self) -> int:
        return len(self.candidates)

    def take(self, which: NDArray[np.generic]) -> Found:
        """Some of the candidates, by number or by mask."""
        return replace(
            self, candidates=self.candidates.take(which), memory_bytes=self.memory_bytes[which],
            limit_bytes=self.limit_bytes[which], step_s=self.step_s[which], structures=self.structures[which],
            priced=take_parts(self.priced, which),
        )  # fmt: skip


def search(
    job: Job,
    space: Space,
    limit_bytes: Callable[[int], float],
    *,
    tables: Tables | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Found:
    """Price the space. limit_bytes(world size): memory that one rank may use; on_stage: told what is worked on.

    Raises UserError where nothing fits, naming the leanest candidate, and where the machine file has no rates.
    """
    job.machine.require_rates()
    tables = tables or Tables(job)
    on_stage("candidates")
    every = enumerate_candidates(
        job.model,
        space,
        lambda world_size, data_degree: tables.shared(world_size).heaviest(data_degree),
        job.batch_of,
    )
    on_stage(f"memory of {len(every):,} candidates")
    used = memory_bytes(tables, every)
    limit = _by_world(every, limit_bytes)
    fits = used <= limit
    if not fits.any():
        raise UserError(nothing_fits(every, used, limit))
    chosen = every.take(fits)
    on_stage(f"time of {len(chosen):,} candidates that fit")
    priced = Pricing(tables, chosen).build()
    moved_s = transfers_s(job.machine, used[fits], job.machine.devices_per_node)
    priced = replace(priced, parts=replace(priced.parts, transfers_s=moved_s))
    structures = _by_world(chosen, lambda world: float(job.batch_of(world)))
    return Found(
        candidates=chosen, considered=len(every), memory_bytes=used[fits], limit_bytes=limit[fits],
        step_s=step_seconds(priced.parts, priced.overlap), structures=structures, priced=priced, tables=tables,
    )  # fmt: skip


def _by_world(candidates: Candidates, value: Callable[[int], float]) -> Floats:
    """A number that the world size decides, of every candidate [C]."""
    first, which = candidates.keys(["world_size"])
    return np.array([value(int(candidates["world_size"][k])) for k in first.tolist()])[which]


def nothing_fits(candidates: Candidates, used: Floats, limit: Floats) -> str:
    """One sentence that names the leanest candidate and what it would take."""
    leanest = int(np.argmin(used / limit))
    words = describe(candidates, leanest)
    return (
        f"nothing fits: the leanest candidate needs {used[leanest] / 1e9:.2f} GB per rank of "
        f"{limit[leanest] / 1e9:.2f} GB ({words}): use more nodes, a smaller model, "
        "a machine with more memory per rank, or fewer ranks per node"
    )


def describe(candidates: Candidates, number: int) -> str:
    """A candidate in a few words."""
    layout, cap = candidates.layout(number), candidates.cap(number)
    words = [layout.describe()]
    words.append("no cap" if cap is None else f"cap {cap:,}")
    words += ["recompute"] if candidates["recompute"][number] else []
    if layout.expert_degree > 1:
        words.append("weights move" if candidates["expert_strategy"][number] else "tokens move")
        words += ["float16 rows"] if candidates["expert_compression"][number] else []
    if layout.shard_degree > 1 and candidates["gathered_blocks"][number] == 0:
        words.append("all blocks gathered")
    words += ["replica first"] if layout.placement == "replica_first" else []
    words += [candidates.transport(number)] if len(candidates.transports) > 1 else []
    return ", ".join(words)


def take_parts(priced: SearchParts, which: NDArray[np.generic]) -> SearchParts:
    """The parts of some candidates; arrays of one that stand for all stay."""
    count = len(priced.overlap)

    def some(array: Floats) -> Floats:
        return array[which] if len(array) == count else array

    parts = replace(
        priced.parts, **{entry.name: some(getattr(priced.parts, entry.name)) for entry in fields(StepParts)}
    )
    return replace(
        priced, parts=parts, latency_s={name: some(array) for name, array in priced.latency_s.items()},
        micro_batches=some(priced.micro_batches), overlap=some(priced.overlap),
    )  # fmt: skip


def step_seconds(parts: StepParts, overlap: Floats) -> Floats:
    """Seconds of every candidate's step [C], chunk by chunk."""
    count = len(parts.compute_s)
    return np.concatenate([
        combined(parts, overlap, slice(start, start + CHUNK)).step_s for start in range(0, max(count, 1), CHUNK)
    ])  # fmt: skip


def combined(parts: StepParts, overlap: Floats, which: slice | Ints) -> StepSeconds:
    """Seconds by phase and cause of some candidates."""
    count = len(parts.compute_s)
    some = {entry.name: getattr(parts, entry.name) for entry in fields(StepParts)}
    chosen = {name: array[which] if len(array) == count else array for name, array in some.items()}
    return combine(StepParts(**chosen), overlap[which])
