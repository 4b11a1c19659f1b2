"""Collectives along the dimensions of a torus, one after the other: the bucket algorithm.

It owns their messages, not their price. Ranks are numbered with the last dimension fastest, as a job's nodes are on
``torus`` and ``tofu_d``; then all messages go to neighbours and no two share a link.

Source: Jain and Sabharwal 2010 ("Optimal bucket algorithms for large MPI collectives on torus interconnects", ICS), in
one direction and on one port at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from perfmodel.network import algorithms_gather as gather
from perfmodel.network import algorithms_reduce as reduce
from perfmodel.network.algorithms_steps import Ints, Recipe, in_sequence, nothing, within_groups


def _phase(recipe: Recipe, coordinates: Ints, axis: int, shape: Sequence[int]) -> Recipe:
    """A ring recipe along every line of an axis, on the blocks whose owners agree with the line in the axes before."""
    ranks = np.arange(len(coordinates), dtype=np.int64).reshape(shape)
    lines = np.moveaxis(ranks, axis, -1).reshape(-1, shape[axis])
    fixed = coordinates[:, :axis]

    def blocks_of(line: int, place: int) -> Ints:
        agree = (fixed == fixed[lines[line, 0]]).all(axis=1) & (coordinates[:, axis] == place)
        return np.flatnonzero(agree).astype(np.int64)

    scale = 1 / math.prod(shape[:axis])
    return within_groups(recipe, lines, blocks_of, num_blocks=len(coordinates), scale=scale)


def _phases(num_ranks: int, shape: Sequence[int], *, reduces: bool) -> Recipe:
    """Reduce-scatter along the first axis, then the next, ...; the all-gather is the same backwards."""
    shape = tuple(shape) or (num_ranks,)
    coordinates = np.stack(np.unravel_index(np.arange(num_ranks), shape), axis=1).astype(np.int64)
    make = reduce.ring_reduce_scatter if reduces else gather.ring
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1]
    phases = [_phase(make(shape[axis]), coordinates, axis, shape) for axis in axes]
    return in_sequence(num_ranks, *(phases if reduces else reversed(phases))) if phases else nothing(num_ranks)


def reduce_scatter(num_ranks: int, *, shape: tuple[int, ...] = ()) -> Recipe:
    """Rings along each dimension, what is left shrinking: sum of (k_i - 1) rounds, (n-1)/n m."""
    return _phases(num_ranks, shape, reduces=True)


def all_gather(num_ranks: int, *, shape: tuple[int, ...] = ()) -> Recipe:
    """Rings along each dimension, the last first: sum of (k_i - 1) rounds, (n-1)/n m."""
    return _phases(num_ranks, shape, reduces=False)


def all_reduce(num_ranks: int, *, shape: tuple[int, ...] = ()) -> Recipe:
    """Reduce-scatter, then all-gather: 2 sum of (k_i - 1) rounds, 2(n-1)/n m."""
    return in_sequence(num_ranks, reduce_scatter(num_ranks, shape=shape), all_gather(num_ranks, shape=shape))
