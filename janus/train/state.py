"""What a run saves and takes over: weights, averages and moments by pieces; constants, step count, generator as wholes.

It does not own files (``checkpoint_save.py``, ``checkpoint.py``) nor the layout that pieces come from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from janus.parallel.pieces import Piece
from janus.train.checkpoint import BUFFER, Checkpoint
from janus.train.checkpoint_save import WHOLE
from janus.train.ema import WeightAverage

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
Parts = dict[str, dict[str, Tensor]]


def state_of(
    pieces: Mapping[str, Piece], constants: Mapping[str, Tensor], optimizer: torch.optim.AdamW,
    average: WeightAverage | None,
) -> tuple[Parts, dict[str, Tensor]]:  # fmt: skip
    """``parts`` and ``whole`` for ``save_checkpoint``. Moments that do not exist yet are zero.

    constants: tensors of the model that training does not change, equal on all ranks (``DistributedModel.constants``).
    Every step updates all parameters, so one count of updates serves all.
    """
    parts = _weights_and_averages(pieces, average)
    for key in MOMENTS:
        parts[key] = {name: _moment(optimizer, piece.parameter, key) for name, piece in pieces.items()}
    steps = [float(state["step"]) for state in optimizer.state.values() if "step" in state]
    whole = {f"{BUFFER}{name}": constant for name, constant in constants.items()}
    whole |= {"generator": torch.get_rng_state(), "updates": torch.tensor(max(steps, default=0.0))}
    return parts, whole


def take_over(
    checkpoint: Checkpoint, pieces: Mapping[str, Piece], constants: Mapping[str, Tensor],
    optimizer: torch.optim.AdamW, average: WeightAverage | None,
) -> None:  # fmt: skip
    """Make everything that ``state_of`` gives as it was saved, by whatever layout; all in place. Raises UserError."""
    parts = _weights_and_averages(pieces, average)
    for key in MOMENTS:
        parts[key] = {name: torch.zeros_like(piece.parameter) for name, piece in pieces.items()}
    checkpoint.fill(pieces, parts)
    whole = checkpoint.tensors[WHOLE]
    for name, piece in pieces.items():
        moments = {key: parts[key][name] for key in MOMENTS}
        optimizer.state[piece.parameter] = {"step": whole["updates"].clone(), **moments}
    for name, constant in constants.items():
        constant.copy_(whole[f"{BUFFER}{name}"])
    torch.set_rng_state(whole["generator"])


def _weights_and_averages(pieces: Mapping[str, Piece], average: WeightAverage | None) -> Parts:
    parts = {"weights": {name: piece.parameter.detach() for name, piece in pieces.items()}}
    if average is not None:
        parts["average"] = average.tensors
    return parts


def _moment(optimizer: torch.optim.AdamW, parameter: nn.Parameter, key: str) -> Tensor:
    state = optimizer.state.get(parameter, {})
    return state[key] if key in state else torch.zeros_like(parameter)
