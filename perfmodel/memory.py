"""Peak memory of one rank: states of the parameters, and what the double backward keeps alive.

It owns the coefficients, fitted to and checked against measured peaks (docs/prediction.md); it does not own what a
device has (``machine``).

At the peak (early in BF) everything that FE and FF saved is alive: FE keeps inputs, FF keeps their gradients, and the
running backward holds a few more. So
bytes = base + item x (states x parameters + sum over row kinds of rows x kept(kind)), kept in channels per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus.config import ModelConfig
from perfmodel.products import Counts, RowKind
from perfmodel.workload import ITEM_BYTES, gradient_bytes, operators_of, products_of

OPTIMIZER_STATES = 2  # AdamW: first and second moment
AVERAGE_STATES = 1  # exponential moving average of the weights
BASE_BYTES = 420e6  # assumed: interpreter, torch, compiled loops; seen on x86-64 Linux with torch 2.13, CPU build

# Tensors per line kept alive at the peak: per product (mean of its input's and output's width; fused operators keep
# the same tensors) and per array that plain arithmetic touches in its backward. Fitted to measured peaks of
# matris-tiny, matris-small and matris-moe-tiny at two sizes (docs/prediction.md has the errors, held-out ones too).
KEPT_BY_PRODUCT = 0.55
KEPT_BY_PLAIN_ARRAY = 1.1
RECOMPUTED_BLOCK = 1.3  # a block made again inside the backward is alive with its own backward's temporaries: fitted
INDEX_BYTES: dict[RowKind, float] = {
    "edges": 8 * 6 + 8 * 4,
    "bonds": 8 * 3,
    "angles": 8 * 4,
}  # int64 indices, image and cosine of a batch


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction:
    """Bytes of one rank at the peak of a step, by cause."""

    base_bytes: float
    states_bytes: float
    activation_bytes: float
    batch_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.base_bytes + self.states_bytes + self.activation_bytes + self.batch_bytes


def states_bytes(model: ModelConfig, dtype: str = "float32", *, average: bool = True) -> float:
    """Parameters, gradients, optimizer and (``average``) weight average, plus one flattened gradient bucket."""
    gradients = gradient_bytes(model, dtype)
    states = 2 + OPTIMIZER_STATES + (AVERAGE_STATES if average else 0)
    return gradients * states + min(gradients, 25 * 1024**2)


def kept_channels(model: ModelConfig, *, inside_blocks: bool | None = None) -> dict[RowKind, float]:
    """Channels per row that FE and FF keep alive for the second backward, by row kind.

    inside_blocks: only what the blocks keep (True) or only the rest (False); None: everything.
    """
    kept: dict[RowKind, float] = {}
    for product in products_of(model):
        if inside_blocks is None or product.part.startswith("block") == inside_blocks:
            channels = (product.inputs + product.outputs) / 2 * KEPT_BY_PRODUCT * product.copies * product.top_k
            kept[product.rows] = kept.get(product.rows, 0.0) + channels * product.reaches_loss
    for operator in operators_of(model):
        if inside_blocks is None or operator.part.startswith("block") == inside_blocks:
            tensors = operator.arrays[1] * KEPT_BY_PLAIN_ARRAY
            channels = tensors * operator.channels * operator.copies * operator.top_k * operator.reaches_loss
            kept[operator.rows] = kept.get(operator.rows, 0.0) + channels
    return kept


def activation_bytes(model: ModelConfig, counts: Counts, *, recompute: bool, dtype: str = "float32") -> float:
    """Bytes that the double backward of one micro-batch keeps alive at its peak.

    recompute: between blocks only the blocks' inputs stay, and one block at a time is alive whole.
    """
    item = ITEM_BYTES[dtype]
    if not recompute:
        return item * sum(counts.rows(kind) * channels for kind, channels in kept_channels(model).items())
    outside = kept_channels(model, inside_blocks=False)
    one_block = {kind: value / model.num_blocks for kind, value in kept_channels(model, inside_blocks=True).items()}
    d = model.width
    stream: dict[RowKind, float] = {"atoms": d}  # inputs of a block and their gradients, kept for every block
    if model.family == "matris":
        stream |= {"edge_pairs": d, "angles": d}
    else:
        stream |= {"edges": d}
    kept = [(outside, 1.0), (one_block, RECOMPUTED_BLOCK), (stream, 2.0 * model.num_blocks)]
    return item * sum(counts.rows(kind) * channels * times for part, times in kept for kind, channels in part.items())


def batch_bytes(counts: Counts) -> float:
    """Index arrays of a micro-batch; the loader holds those of the next step too."""
    return 2.0 * sum(counts.rows(kind) * each for kind, each in INDEX_BYTES.items())


def predict_memory(
    model: ModelConfig, micro_batches: Sequence[Counts], *, recompute: bool, dtype: str = "float32"
) -> MemoryPrediction:
    """Peak of a rank that works on these micro-batches one after the other: the largest one decides."""
    largest = max(
        (activation_bytes(model, part, recompute=recompute, dtype=dtype) for part in micro_batches), default=0
    )
    return MemoryPrediction(
        base_bytes=BASE_BYTES,
        states_bytes=states_bytes(model, dtype),
        activation_bytes=largest,
        batch_bytes=sum(batch_bytes(part) for part in micro_batches),
    )
