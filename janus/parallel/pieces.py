"""What a rank stores of each parameter: the piece that it keeps, updates and writes to checkpoints.

One process holds one piece per parameter, which is all of it. It does not own how pieces arise (``sharding.py``,
``experts.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from janus.parallel.axis import Axis


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part of one parameter. name: in the undistributed model; shape: of the whole parameter there.

    parameter: the leaf that the optimizer updates, any shape; its elements in order are those of ``chunks``.
    chunks: (start, stop) ranges of the flattened whole parameter.
    owners: the axis over which the whole parameter is divided (size 1: this rank holds it all).
    copies: the axis of the ranks that hold an equal piece: gradients are summed over it, its first rank writes.
    """

    name: str
    shape: tuple[int, ...]
    parameter: nn.Parameter
    chunks: tuple[tuple[int, int], ...]
    owners: Axis
    copies: Axis

    def __post_init__(self) -> None:
        total = sum(stop - start for start, stop in self.chunks)
        assert total == self.parameter.numel(), (self.name, total, self.parameter.numel())

    @property
    def is_matrix(self) -> bool:
        """Decayed by AdamW; vectors (biases, norms) are not."""
        return len(self.shape) > 1


def leaves(pieces: Mapping[str, Piece]) -> dict[str, nn.Parameter]:
    """What the optimizer and the average work on, by the parameter's name."""
    return {name: piece.parameter for name, piece in pieces.items()}
