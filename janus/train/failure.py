"""Numbers that are not finite: the search for the structures behind them, and the sentence that names those.

It does not own how ranks are stopped (``janus/parallel/job.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from janus.train.config import LossConfig
from janus.train.loss import Labels, batch_loss, denominators_of_labels

if TYPE_CHECKING:
    from janus.data.store import StructureStore
    from janus.train.loader import BatchLoader


def find_offenders(
    model: nn.Module, store: StructureStore, loader: BatchLoader, indices: list[int], loss_config: LossConfig
) -> list[str]:
    """Structures whose own loss or gradient is not finite, as "index NAME (what)"; evaluated one by one."""
    offenders = []
    for index in indices:
        what = _what_is_not_finite(model, loader, index, loss_config)
        if what is not None:
            offenders.append(f"{index} {store.name_of(index)!r} ({what})")
    return offenders


def _what_is_not_finite(model: nn.Module, loader: BatchLoader, index: int, loss_config: LossConfig) -> str | None:
    from janus.model.potential import evaluate_potential

    micro_batch = loader.load_micro_batch([index]).to(loader.device)
    labels: Labels = micro_batch.labels
    for name in ("energy", "forces", "stress"):
        if not torch.isfinite(getattr(labels, name)).all():
            return f"{name} label"
    prediction = evaluate_potential(model, micro_batch.batch, create_graph=True)
    for name in ("energy", "forces", "stress"):
        if not torch.isfinite(getattr(prediction, name)).all():
            return f"predicted {name}"
    loss, _ = batch_loss(prediction, labels, denominators_of_labels(labels), loss_config)
    if not torch.isfinite(loss):
        return "loss"
    if loss.requires_grad:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
            return "gradient"
    return None


def non_finite_sentence(step: int, what: str, offenders: list[str], last_checkpoint: str | None) -> str:
    """One sentence for a run stopped by numbers that are not finite."""
    if offenders:
        shown = ", ".join(offenders[:5]) + (f" and {len(offenders) - 5} more" if len(offenders) > 5 else "")
        cause = f"in structure{'s' if len(offenders) > 1 else ''} {shown}"
    else:
        cause = "in no single structure of the batch but in their sum"
    kept = f"checkpoint {last_checkpoint} is kept" if last_checkpoint else "there is no checkpoint yet"
    return f"{what} of step {step} is not finite, {cause}; {kept}"
