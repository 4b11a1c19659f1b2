"""Numbers that are not finite: the search for the structures behind them, and the sentence that names those.

It does not own how ranks are stopped (``janus/parallel/job.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from janus.parallel.fs3d import DistributedModel
from janus.train.config import LossConfig
from janus.train.loader import BatchLoader, MicroBatch
from janus.train.loss import Denominators, Labels, batch_loss

if TYPE_CHECKING:
    from janus.data.store import StructureStore

# every term of the loss on every rank, whatever labels it has: they run the same backward
ALIKE = Denominators(energies=1, force_components=1, stress_components=1)


def find_offenders(
    distributed: DistributedModel, store: StructureStore, loader: BatchLoader, shares: list[list[int]],
    loss_config: LossConfig,
) -> list[str]:  # fmt: skip
    """Structures whose own loss or gradient is not finite, as "index NAME (what)", of those this rank takes part in.

    shares: micro-batches of at most one structure each, as many on all ranks of a unit, which evaluate together. A
    gradient is the unit's: with sharded parameters it is blamed on every structure that was evaluated at that time.
    """
    offenders = []
    for indices in shares:
        distributed.zero_gradients()
        what = _what_is_not_finite(distributed, loader.load_micro_batch(indices).to(loader.device), loss_config)
        if what is not None and indices:
            offenders.append(f"{indices[0]} {store.name_of(indices[0])!r} ({what})")
    distributed.zero_gradients()
    return offenders


def _what_is_not_finite(distributed: DistributedModel, micro_batch: MicroBatch, loss_config: LossConfig) -> str | None:
    labels: Labels = micro_batch.labels
    with distributed.step():
        prediction = distributed.evaluate(micro_batch.batch, create_graph=True)
        loss, _ = batch_loss(prediction, labels, ALIKE, loss_config)
        distributed.backward(loss, is_last=False)
    for kind, owner in (("label", labels), ("predicted", prediction)):
        for name in ("energy", "forces", "stress"):
            if not torch.isfinite(getattr(owner, name)).all():
                return f"{name} label" if kind == "label" else f"predicted {name}"
    if not torch.isfinite(loss):
        return "loss"
    gradients = [piece.parameter.grad for piece in distributed.pieces.values()]
    if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
        return "gradient"
    return None


def non_finite_sentence(step: int, what: str, offenders: list[str] | None, last_checkpoint: str | None) -> str:
    """One sentence for a run stopped by numbers that are not finite. offenders None: they could not be looked for."""
    if offenders is None:
        cause = "and the weights were updated before that was known (set optimizer.clip_norm to have the cause named)"
    elif offenders:
        shown = ", ".join(offenders[:5]) + (f" and {len(offenders) - 5} more" if len(offenders) > 5 else "")
        cause = f"in structure{'s' if len(offenders) > 1 else ''} {shown}"
    else:
        cause = "in no single structure of the batch but in their sum"
    kept = f"checkpoint {last_checkpoint} is kept" if last_checkpoint else "there is no checkpoint yet"
    return f"{what} of step {step} is not finite, {cause}; {kept}"
