"""A collective as rounds of messages: what every evaluator prices, and nothing of how long anything takes.

Bytes are fractions of the collective's size m: the buffer of one rank (all-reduce, broadcast; input of a
reduce-scatter), the gathered result (all-gather), or all that one rank sends, its own part included (all-to-all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")


@dataclass(frozen=True, kw_only=True)
class Round:
    """Messages that start together; a rank goes on when its own sends, receives and reductions are done.

    source, target: int64 [M], ranks. fraction: float64 [M], of m. reduced: float64 [M], of m, what the target reduces
    once the message is there. copied: float, of m, that every rank copies in memory in this round. repeat: how many
    times in a row. A rank may occur many times (all posted at once, in this order).
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    fraction: NDArray[np.float64]
    reduced: NDArray[np.float64]
    copied: float = 0.0
    repeat: int = 1

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One algorithm for one collective among num_ranks ranks (numbered within the group, 0 to n - 1).

    make_rounds: yields the rounds in order, anew at each call (there may be tens of thousands). num_rounds: repeats
    counted. symmetric: in every round each rank sends and receives the same, shifted: round k is a permutation of the
    ranks by one rule, so that on a fabric that looks alike from every port one rank stands for all.
    """

    collective: str
    algorithm: str
    num_ranks: int
    num_rounds: int
    make_rounds: Callable[[], Iterator[Round]]
    symmetric: bool = False

    def rounds(self) -> Iterator[Round]:
        """The rounds in order. None for one rank."""
        return self.make_rounds()
