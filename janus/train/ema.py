"""Exponential moving average of the parameters. It does not own when it is used: evaluation prefers it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of named parameters; decay starts low and rises: min(decay, (1 + step) / (10 + step)).

    A rank that keeps pieces averages those (``janus.parallel.pieces.leaves``); averages are made outside of steps, so
    whatever is gathered afterwards holds the values that are in place then.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters as they are after ``step``."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages = list(self.tensors.values())
        torch._foreach_lerp_(averages, [p.detach() for p in self._parameters.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model computes with the averages."""
        raw = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._copy(self.tensors)
        try:
            yield
        finally:
            self._copy(raw)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
