"""Initial weights of spread experts without those that live elsewhere: only what this rank keeps is ever in memory.

Inside ``LeanExperts`` the numbers of all experts are drawn as ever, one expert after the other, so that every weight of
the model is what its seed gives; those of other ranks are thrown away at once. The rest of each whole matrix is memory
that was never written to, which the system does not provide. It does not own which experts a rank keeps
(``janus/placement.py``) nor the dividing (``experts.py``). On the CPU in float32, as models are initialised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from janus.config import ExpertConfig, ModelConfig
from janus.placement import Strategy, blocks


class LeanExperts(TorchFunctionMode):
    """Around the building of a model whose experts are spread over num_ranks ranks, of which this is number index."""

    def __init__(self, model: ModelConfig, strategy: Strategy, num_ranks: int, index: int) -> None:
        super().__init__()
        assert model.experts is not None, "a model without experts"
        self._strategy, self._num_ranks, self._index = strategy, num_ranks, index
        self._shapes = set(_matrices(model.experts, model.width))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.uniform_ and tuple(args[0].shape) in self._shapes and not args[0].is_meta:
            return self._draw(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _draw(self, whole: Tensor, low: float, high: float) -> Tensor:
        """The numbers of a matrix of all experts [X, a, b]; only this rank's are written."""
        rows = whole.flatten(1)
        scratch = rows.new_empty(rows.shape[1])
        first, stop = self._range(len(rows) if self._strategy == "tokens" else rows.shape[1])
        for expert, row in enumerate(rows):
            scratch.uniform_(low, high)
            if self._strategy == "weights":
                row[first:stop] = scratch[first:stop]
            elif first <= expert < stop:
                row.copy_(scratch)
        return whole

    def _range(self, number: int) -> tuple[int, int]:
        first, stop = blocks(number, self._num_ranks)[self._index : self._index + 2].tolist()
        return first, stop


def _matrices(experts: ExpertConfig, width: int) -> Iterator[tuple[int, int, int]]:
    for hidden in (experts.message_hidden, experts.feature_hidden):
        yield experts.num_experts, 2 * hidden, width
        yield experts.num_experts, width, hidden
