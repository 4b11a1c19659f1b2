"""Memory of one rank: what it keeps of the parameters, what is alive at every moment of a step, and the peak.

It owns the bytes by cause and phase; which rows autograd keeps is in ``live_rows``, what a rank keeps of the parameters
in ``traffic_parameters``, what a device has in ``machine`` and which part lies in which of two memories in
``memory_tiers``. All bytes are affine in the rows of the largest micro-batch (``memory_coefficients``), so that a
search prices many candidates at once; the peak is the largest of the moments.

    moment      beside values, moments (2) and average of what is kept, batches and work tensors
    FE, FF      rows kept so far, gathered blocks and root, gradients of earlier micro-batches
    BF, BE      rows of ``live_rows``, whole gradients that wait for BE, gathered blocks, buffers of reduce-scatters
    sync        gradients of what is kept, and the largest bucket of undivided ones, flattened
    optimizer   gradients, and two temporaries of the largest tensor
    between     gradients

Whole gradients: without recomputation autograd holds those that BF has made of every block, whole even where parameters
are sharded, until BE reaches the block (docs/parallel.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.layout import Layout
from janus.placement import Strategy
from perfmodel.live_rows import ROW_KINDS, LiveRows, live_rows, row_vector
from perfmodel.machine import Machine
from perfmodel.memory_tiers import Tiers, place_in_tiers, used_bytes
from perfmodel.products import Counts, RowKind
from perfmodel.step_work import RunSettings, StepWork
from perfmodel.traffic_parameters import (
    ROOT,
    block_of,
    gradient_buckets,
    is_routed,
    kept_pieces,
    sharded_units,
    trained_parameters,
)
from perfmodel.workload import ITEM_BYTES
from perfmodel.workload_moe import experts_of

__all__ = [
    "CAUSES", "MEMORY_PHASES", "MemoryCoefficients", "MemoryPrediction", "Tiers", "fullest_memory",
    "memory_coefficients", "place_in_tiers", "predict_rank_memory", "resident_of",
]  # fmt: skip

Floats = NDArray[np.float64]
MEMORY_PHASES = ("FE", "FF", "BF", "BE", "sync", "optimizer", "between")
CAUSES = ("parameters", "moments", "average", "gradients", "gathered", "buffers", "activations", "work", "batches")
OPTIMIZER_STATES = 2  # AdamW: first and second moment
AVERAGE_STATES = 1  # exponential moving average of the weights

# Of the process before a model is built. Measured on x86-64 Linux with torch 2.13, CPU build (benchmarks/memory.py).
BASE_BYTES = 420e6  # resident: interpreter, torch, compiled loops

# Bytes of a loaded micro-batch per row, and what reading it takes beside: counted from janus/model/batch.py and
# janus/train/loader.py for float32 (8-byte indices; labels in float64; the elements that each structure contains).
BATCH_BYTES: dict[RowKind, float] = {
    "structures": 235.0, "atoms": 53.0, "edges": 36.0, "edge_pairs": 8.0, "bonds": 16.0, "bond_pairs": 8.0,
    "angles": 32.0,
}  # fmt: skip
LOADING = 1.5  # times a loaded micro-batch: its graphs and arrays in float64 while it is made; assumed
HELD = 2  # micro-batches: the one in use and the one that the loader's thread has ready

# The trainer's pool of work memory (janus/kernels/pool.py) lends blocks larger than what was asked for: rounded up by
# eighths of an octave, and up to four times larger where one waits. Fitted to one model's data-parallel layouts
# (benchmarks/memory.py); seen elsewhere: 0.02 to 0.35. The share of rows' bytes that the pool serves was counted.
POOL_EXCESS = 0.18
POOL_SHARE = {"matris": 0.79, "matris-moe": 0.28}
# Resident over allocated bytes: of the pool's blocks, and of all else, of which the C library keeps what was freed.
RESIDENT_POOL, RESIDENT_HEAP = 1.02, 1.38

LENT_EXPERTS = 1.0  # lent to a rank per layer and step where experts are replicated; docs/parallel.md has 8 to 11 per 8


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction:
    """Bytes of one rank. cause_bytes: at the peak; phase_bytes: the most of each of ``MEMORY_PHASES``, base included.

    peak: the moment at which they are most. resident_bytes: what the operating system sees (freed memory that the C
    library keeps included).
    """

    base_bytes: float
    cause_bytes: dict[str, float]
    phase_bytes: dict[str, float]
    peak: str
    resident_bytes: float

    @property
    def total_bytes(self) -> float:
        """Allocated at the peak."""
        return self.base_bytes + sum(self.cause_bytes.values())

    @property
    def states_bytes(self) -> float:
        """At the peak: all that does not depend on the batch."""
        names = ("parameters", "moments", "average", "gradients", "gathered")
        return sum(self.cause_bytes[name] for name in names)

    @property
    def activation_bytes(self) -> float:
        """At the peak: rows alive."""
        return self.cause_bytes["activations"]

    @property
    def batch_bytes(self) -> float:
        """At the peak: batches."""
        return self.cause_bytes["batches"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryCoefficients:
    """Bytes of every moment and cause: constant [M,C] + per_row [M,C,K] x the rows of the largest micro-batch [K].

    moments: (name, phase) of each; K as ``live_rows.ROW_KINDS``, C as ``CAUSES``. Allocated bytes without the base.
    pool_share: of the rows' bytes, what is resident as the pool's blocks are; with recomputation, where blocks of many
    sizes come and go, they keep as much as the heap does.
    """

    moments: tuple[tuple[str, str], ...]
    constant: Floats
    per_row: Floats
    pool_share: float
    totals: Floats = field(init=False)  # [M,K+1], summed over causes, the constant last
    resident_totals: Floats = field(init=False)  # the same of resident bytes

    def __post_init__(self) -> None:
        everything = np.concatenate([self.per_row, self.constant[:, :, None]], axis=2)
        factors = np.full(len(CAUSES), RESIDENT_HEAP)
        pooled = self.pool_share * (1 + POOL_EXCESS) / (1 + self.pool_share * POOL_EXCESS)
        factors[CAUSES.index("activations")] = pooled * RESIDENT_POOL + (1 - pooled) * RESIDENT_HEAP
        object.__setattr__(self, "totals", everything.sum(axis=1))
        object.__setattr__(self, "resident_totals", np.einsum("mck,c->mk", everything, factors))

    def peak_bytes(self, rows: Floats) -> Floats:
        """Allocated peaks [N] of rows [N,K]."""
        return (rows @ self.totals[:, :-1].T + self.totals[:, -1]).max(axis=1)

    def resident_bytes(self, rows: Floats) -> Floats:
        """Resident peaks [N] of rows [N,K]."""
        return (rows @ self.resident_totals[:, :-1].T + self.resident_totals[:, -1]).max(axis=1)


@dataclass(frozen=True, kw_only=True)
class _Parameters:
    """Numbers of trained parameters, seen from one rank of a layout.

    kept: on this rank; tensors' largest; whole, shard [L+1]: of each block and then the root what is gathered (or kept
    whole where nothing is sharded), and this rank's part of it; spread [L]: of experts spread over ranks, kept here.
    """

    kept: float
    largest: float
    whole: Floats
    shard: Floats
    spread: Floats
    bucket: float
    is_sharded: bool


@lru_cache(maxsize=4096)
def _parameters(model: ModelConfig, layout: Layout, rank: int, strategy: Strategy, bucket_bytes: int) -> _Parameters:
    blocks = model.num_blocks
    whole, spread, largest = np.zeros(blocks + 1), np.zeros(blocks), 0.0
    for name, numel in trained_parameters(model).items():
        divided = layout.shard_degree
        if layout.expert_degree > 1 and is_routed(name):
            spread[block_of(name)] += numel / layout.expert_degree
            divided = layout.expert_degree
        else:
            whole[ROOT if name.endswith(".gate.table") else block_of(name)] += numel
        largest = max(largest, numel / divided)
    units = sharded_units(model, layout)
    shard = np.array([units[block] for block in (*range(blocks), ROOT)], dtype=float) if units else whole
    place = layout.coordinates(rank)
    buckets = gradient_buckets(
        model, layout, place.expert, strategy=strategy, item_bytes=4, bucket_bytes=bucket_bytes
    ) if layout.world_size > 1 else []  # fmt: skip
    copies = {"world": layout.world_size, "expert_copies": layout.world_size // layout.expert_degree}
    return _Parameters(
        kept=float(kept_pieces(model, layout, rank, strategy)[0]), largest=largest, whole=whole, shard=shard,
        spread=spread, bucket=float(max((b.numel for b in buckets if copies.get(b.axis, 1) > 1), default=0)),
        is_sharded=bool(units),
    )  # fmt: skip


class _Ledger:
    """Constant and per-row bytes of one moment, by cause."""

    def __init__(self) -> None:
        self.constant, self.per_row = np.zeros(len(CAUSES)), np.zeros((len(CAUSES), len(ROW_KINDS)))

    def add(self, cause: str, constant: float = 0.0, per_row: Floats | None = None) -> None:
        self.constant[CAUSES.index(cause)] += constant
        if per_row is not None:
            self.per_row[CAUSES.index(cause)] += per_row


class _Step:
    """The moments of a step of one rank."""

    def __init__(
        self, model: ModelConfig, layout: Layout, settings: RunSettings, rank: int, micro_batches: int, loads: bool
    ) -> None:
        self.model, self.layout, self.settings = model, layout, settings
        self.item = ITEM_BYTES[settings.dtype]
        self.parameters = _parameters(model, layout, rank, settings.expert_strategy, settings.bucket_bytes)
        self.rows: LiveRows = live_rows(model, recompute=settings.recompute)
        self.micro_batches, self.loads = micro_batches, loads
        self.moments: list[tuple[str, str]] = []
        self.ledgers: list[_Ledger] = []

    def coefficients(self) -> MemoryCoefficients:
        for name, rows in (("FE", self.rows.after_energies), ("FF", self.rows.after_forces)):
            self._inside(f"end of {name}", name, rows, 0)
        for (name, phase, blocks), rows in zip(self.rows.moments, self.rows.numbers, strict=True):
            self._inside(name, phase, rows, blocks)
        self._outside("sums of gradients", "sync", buffers=self.parameters.bucket * self.item)
        self._outside("optimizer", "optimizer", buffers=self.parameters.largest * 2 * self.item)
        self._outside("between steps", "between")
        return MemoryCoefficients(
            moments=tuple(self.moments), constant=np.stack([ledger.constant for ledger in self.ledgers]),
            per_row=np.stack([ledger.per_row for ledger in self.ledgers]),
            pool_share=0.0 if self.settings.recompute else POOL_SHARE[self.model.family],
        )  # fmt: skip

    def _new(self, name: str, phase: str) -> _Ledger:
        """A moment with what is there always."""
        ledger, kept = _Ledger(), self.parameters.kept * self.item
        ledger.add("parameters", kept)
        ledger.add("moments", OPTIMIZER_STATES * kept)
        ledger.add("average", AVERAGE_STATES * kept if self.settings.averages else 0.0)
        batch = np.array([BATCH_BYTES.get(kind, 0.0) for kind in ROW_KINDS])
        held = HELD + LOADING if self.loads else self.micro_batches
        ledger.add("batches", per_row=held * batch)
        ledger.add("work", per_row=self.rows.scratch * self.item)
        self.moments.append((name, phase))
        self.ledgers.append(ledger)
        return ledger

    def _outside(self, name: str, phase: str, buffers: float = 0.0) -> None:
        ledger = self._new(name, phase)
        ledger.add("gradients", self.parameters.kept * self.item)
        ledger.add("buffers", buffers)

    def _inside(self, name: str, phase: str, rows: Floats, blocks: int) -> None:
        """A moment of FE to BE, in which the gradients of ``blocks`` blocks wait."""
        ledger, parameters, item = self._new(name, phase), self.parameters, self.item
        ledger.add("activations", per_row=rows * self._row_bytes())
        ledger.add("gradients", item * (self._earlier() + self._waiting(phase, blocks)))
        ledger.add("gathered", self._gathered())
        reduces = phase == "BE" or (phase == "BF" and self.settings.recompute)
        if parameters.is_sharded and reduces:  # one under way: its input, and the copy that gloo makes of it
            copies = 2 if self.settings.transport == "gloo" else 1
            ledger.add("buffers", copies * parameters.whole[:-1].max(initial=0.0) * item)
        elif phase == "BE":
            ledger.add("buffers", parameters.bucket * item)
        ledger.add("buffers", per_row=self._travelling())

    def _row_bytes(self) -> Floats:
        """Bytes of one number of a row [K], with what the pool lends beyond what was asked for."""
        return np.full(len(ROW_KINDS), self.item * (1 + POOL_SHARE[self.model.family] * POOL_EXCESS))

    def _earlier(self) -> float:
        """Gradients that are there when a micro-batch begins: of earlier ones; sharded units keep their buffer."""
        if self.micro_batches > 1:
            return self.parameters.kept
        return float(self.parameters.shard.sum()) if self.parameters.is_sharded else 0.0

    def _waiting(self, phase: str, blocks: int) -> float:
        """Gradients made in this micro-batch, of the first ``blocks`` blocks; whole unless recomputed and sharded."""
        parameters = self.parameters
        spread = float(parameters.spread[:blocks].sum())
        if not (parameters.is_sharded and self.settings.recompute):
            root = parameters.whole[-1] if phase == "BE" else 0.0
            return spread + float(parameters.whole[:blocks].sum() + root)
        return spread + (float(parameters.whole[:-1].max(initial=0.0)) if phase in ("BF", "BE") else 0.0)

    def _gathered(self) -> float:
        """Bytes of gathered blocks, the root, and experts' weights that travel."""
        parameters, blocks = self.parameters, self.model.num_blocks
        keep = min(self.settings.gathered_blocks or blocks, blocks)
        gathered = parameters.whole[-1] + np.sort(parameters.whole[:-1])[-keep:].sum() if parameters.is_sharded else 0.0
        return float(gathered + keep * self._restored_experts()) * self.item

    def _restored_experts(self) -> float:
        """Numbers of the experts restored on a rank for one block."""
        if self.model.experts is None or self.layout.expert_degree == 1:
            return 0.0
        experts = experts_of(self.model)
        each = 3 * self.model.width * (experts.message_hidden + experts.feature_hidden)
        if self.settings.expert_strategy == "weights":
            return each * float(experts.num_experts)
        return each * LENT_EXPERTS / 2 if self.settings.expert_replication else 0.0

    def _travelling(self) -> Floats:
        """Bytes per row of the largest all-to-all of rows: what is sent and what arrives."""
        per_row = np.zeros(len(ROW_KINDS))
        width = self.model.width * self.item
        ranks = self.layout.expert_degree
        if self.model.experts is not None and ranks > 1 and self.settings.expert_strategy == "tokens":
            receivers = ranks * (1 - (1 - 1 / ranks) ** self.model.experts.top_k)
            per_row[ROW_KINDS.index("edges")] += 2 * receivers * width
        if self.layout.graph_degree > 1:
            per_row[_GHOSTS] += 4 * width
        return per_row


_GHOSTS = ROW_KINDS.index("ghosts")


@lru_cache(maxsize=4096)
def _coefficients(
    model: ModelConfig, layout: Layout, settings: RunSettings, rank: int, micro_batches: int, loads: bool
) -> MemoryCoefficients:
    return _Step(model, layout, settings, rank, micro_batches, loads).coefficients()


def memory_coefficients(
    model: ModelConfig, layout: Layout, settings: RunSettings, *, rank: int = 0, micro_batches: int = 1,
    loads: bool = True,
) -> MemoryCoefficients:  # fmt: skip
    """What the memory of a rank is affine in. micro_batches: of a step.

    loads: they come from the trainer's loader, one by one; if not, the whole step's are there.
    """
    position = layout.coordinates(rank).position
    plain = replace(layout, replicas=min(layout.replicas, 2), placement="unit_first")  # more change nothing
    return _coefficients(model, plain, settings, position, micro_batches, loads)


def predict_rank_memory(
    model: ModelConfig, micro_batches: Sequence[Counts], layout: Layout, settings: RunSettings, *, rank: int = 0,
    loads: bool = True,
) -> MemoryPrediction:  # fmt: skip
    """Peak of a rank that works on these micro-batches (its rows) one after the other: the largest one decides."""
    coefficients = memory_coefficients(
        model, layout, settings, rank=rank, micro_batches=max(1, len(micro_batches)), loads=loads
    )
    rows = np.stack([row_vector(model, counts) for counts in micro_batches] or [np.zeros(len(ROW_KINDS))])
    largest = rows[int(coefficients.peak_bytes(rows).argmax())]
    by_cause = coefficients.constant + coefficients.per_row @ largest
    totals = by_cause.sum(axis=1)
    peak = int(totals.argmax())
    phases = [phase for _, phase in coefficients.moments]
    return MemoryPrediction(
        base_bytes=BASE_BYTES,
        cause_bytes=dict(zip(CAUSES, by_cause[peak].tolist(), strict=True)),
        phase_bytes={
            phase: BASE_BYTES + max(float(total) for total, one in zip(totals, phases, strict=True) if one == phase)
            for phase in MEMORY_PHASES
        },
        peak=coefficients.moments[peak][0],
        resident_bytes=BASE_BYTES + float(coefficients.resident_bytes(largest[None])[0]),
    )


def fullest_memory(work: StepWork, machine: Machine | None = None) -> MemoryPrediction:
    """The memory of the fullest of the ranks worked out, by what counts on the machine (``used_bytes``)."""
    return max(
        (predict_rank_memory(work.model, [batch.counts for batch in rank.micro_batches], work.layout, work.settings,
                             rank=rank.rank) for rank in work.ranks),
        key=lambda one: used_bytes(one, machine),
    )  # fmt: skip


def resident_of(allocated: Floats | float) -> Floats | float:
    """Resident bytes beside the base of memory that the C library gives; activations keep less (``resident_bytes``)."""
    return allocated * RESIDENT_HEAP
