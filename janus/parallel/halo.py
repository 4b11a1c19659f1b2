"""What the ranks of a graph group send each other while they work on parts of one micro-batch, twice differentiable.

A rank owns atoms; edges, bonds and angles belong to the owner of their centre. Ghosts are neighbours owned elsewhere. A
pair (bonded or not) whose two atoms have different owners exists on both, its sharers. Four movements of rows, any
number of them in one all-to-all over the graph axis:

    ghosts         rows [N,W] of owned atoms -> [N+H,W], those of the ghosts behind them
    owners         rows [N+H,W] -> [N,W], the ghosts' rows added to those of their owners (the adjoint of ghosts)
    pairs          rows [U,W] -> [U,W], summed over a pair's sharers (its own adjoint)
    bonded_pairs   rows [P,W] -> [P,W], the same for bonded pairs

Messages of one micro-batch, per rank, with S rows of owned atoms sent as ghosts (once per receiver), H ghosts, V shared
pairs, Q shared bonded pairs, C = width, B blocks, b bytes per number (all-to-all unless said otherwise; the all-reduce
is one of [G,10] float64, energies and derivatives by the strain):

    all models     FE   1 call       3 S b             positions of ghosts
    MatRIS         FE   4 B - 1      per block: (4 Q + S) C b, (2 H + V) C b, (Q + S) C b, V C b (not in the last)
                   FF   those of FE with S and H exchanged, positions included; and the all-reduce
                   BF   those of FE and the all-reduce again;  BE  those of FF without the all-reduce
    MatRIS-MoE     FE   B            S C b per block
                   FF   B - 1 of H C b (the first block's atoms do not depend on positions), positions, all-reduce
                   BF   B - 1 of S C b, positions, all-reduce;  BE  B of H C b, positions

With recomputation, let F and A be the blocks' messages of FE and BE: FF sends F and A; BF sends each twice, but for one
V C b of every block but the last (MatRIS) and one S C b (MatRIS-MoE); BE sends F and A. Positions and all-reduces stay
as they are. (Counted so where blocks are run by ``sharding.py``; plain ``recomputed`` does not know its phase.)

The compat models, whose softmax needs a maximum over a segment, are not divided. It does not own which rank has which
atom (``partition.py``) nor the cutting of batches (``local_graph.py``).

Legend: N owned atoms, H ghosts, U pairs, P bonded pairs, W channels of a movement, n ranks of the graph group.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from janus.kernels import operators
from janus.parallel import collectives
from janus.parallel.axis import Axis

Movement = Literal["ghosts", "owners", "pairs", "bonded_pairs"]
Part = tuple[Movement, Tensor]


@dataclass(frozen=True)
class UnderWay:
    """An exchange that has begun: its parts, and the column of numbers that arrives."""

    parts: tuple[Part, ...]
    arriving: collectives.Started


@dataclass(frozen=True, kw_only=True)
class Halo:
    """Who sends which rows to whom, seen from one rank of a graph group. Rows are grouped by rank, in rank order.

    owned [N]: the owned atoms' places in the whole batch; boundary [S]: owned atoms to send, boundary_counts [n] of
    them to each rank; ghost_counts [n]: ghosts from each rank; shared_pairs [V] and shared_bonded_pairs [Q]: local
    pairs, with pair_counts, bonded_pair_counts [n]; both sharers have them in the same order.
    """

    axis: Axis
    owned: Tensor
    boundary: Tensor
    boundary_counts: tuple[int, ...]
    ghost_counts: tuple[int, ...]
    shared_pairs: Tensor
    pair_counts: tuple[int, ...]
    shared_bonded_pairs: Tensor
    bonded_pair_counts: tuple[int, ...]

    @property
    def num_owned(self) -> int:
        return len(self.owned)

    @property
    def num_ghosts(self) -> int:
        return sum(self.ghost_counts)

    def to(self, device: torch.device | str) -> Halo:
        """The same halo with its index lists on a device."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in moved.items() if isinstance(x, Tensor)})

    def exchange(self, *parts: Part) -> list[Tensor]:
        """The movements of all parts (rows of one dtype) in one all-to-all; results in the order of the parts."""
        return self.finish(self.start(*parts))

    def start(self, *parts: Part) -> UnderWay:
        """Begin an exchange. What is computed before ``finish`` may run beside it."""
        sent_counts = [self._counts(movement)[0] for movement, _ in parts]
        received_counts = [self._counts(movement)[1] for movement, _ in parts]
        widths = [rows.shape[1] for _, rows in parts]
        sent = [_column(self._sent(movement, rows)) for movement, rows in parts]
        column = _by_rank_first(sent, sent_counts, widths)
        arriving = collectives.start_all_to_all(
            column, self.axis, _sums(received_counts, widths), _sums(sent_counts, widths)
        )
        return UnderWay(parts, arriving)

    def finish(self, under_way: UnderWay) -> list[Tensor]:
        """Wait for an exchange; the results in the order of its parts."""
        parts = under_way.parts
        counts = [self._counts(movement)[1] for movement, _ in parts]
        column = collectives.finish(under_way.arriving)
        arrived = _by_part_first(column, counts, [rows.shape[1] for _, rows in parts])
        return [self._merged(movement, rows, new) for (movement, rows), new in zip(parts, arrived, strict=True)]

    def sum_over_group(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks of the group, the same on all."""
        return collectives.all_reduce(tensor, self.axis)

    def _counts(self, movement: Movement) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows sent to and received from each rank."""
        if movement == "ghosts":
            return self.boundary_counts, self.ghost_counts
        if movement == "owners":
            return self.ghost_counts, self.boundary_counts
        counts = self.pair_counts if movement == "pairs" else self.bonded_pair_counts
        return counts, counts

    def _index(self, movement: Movement) -> Tensor:
        if movement in ("ghosts", "owners"):
            return self.boundary
        return self.shared_pairs if movement == "pairs" else self.shared_bonded_pairs

    def _sent(self, movement: Movement, rows: Tensor) -> Tensor:
        if movement == "owners":
            assert len(rows) == self.num_owned + self.num_ghosts, (len(rows), self.num_owned, self.num_ghosts)
            return rows[self.num_owned :]
        return operators.gathered(rows, self._index(movement))

    def _merged(self, movement: Movement, rows: Tensor, arrived: Tensor) -> Tensor:
        if movement == "ghosts":
            return torch.cat([rows, arrived])
        kept = rows[: self.num_owned] if movement == "owners" else rows
        return kept.index_add(0, self._index(movement), arrived)


def _sums(counts: Sequence[Sequence[int]], widths: Sequence[int]) -> list[int]:
    """Numbers per rank of parts [*][n] with their widths."""
    return [sum(c * w for c, w in zip(column, widths, strict=True)) for column in zip(*counts, strict=True)]


def _column(rows: Tensor) -> Tensor:
    """rows [R,W] -> [R W, 1]. Not [R W]: the derivative of joining empty vectors is cut off in torch, of rows not."""
    return rows.reshape(-1, 1)


def _by_rank_first(columns: Sequence[Tensor], counts: Sequence[Sequence[int]], widths: Sequence[int]) -> Tensor:
    """Parts as columns, each grouped by rank -> one column grouped by rank, and by part inside."""
    if len(columns) == 1:
        return columns[0]
    pieces = [column.split([c * w for c in each]) for column, each, w in zip(columns, counts, widths, strict=True)]
    return torch.cat(list(itertools.chain.from_iterable(zip(*pieces, strict=True))))


def _by_part_first(column: Tensor, counts: Sequence[Sequence[int]], widths: Sequence[int]) -> list[Tensor]:
    """The inverse of ``_by_rank_first``, with rows [*,W] restored."""
    if len(counts) == 1:
        return [column.view(-1, widths[0])]
    sizes = [c * w for each in zip(*counts, strict=True) for c, w in zip(each, widths, strict=True)]
    pieces = column.split(sizes)
    return [torch.cat(pieces[part :: len(widths)]).view(-1, width) for part, width in enumerate(widths)]
