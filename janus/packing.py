"""Shares indivisible items of known work out to bins (ranks) and to micro-batches. Pure NumPy, never imports torch.

It does not own what work is: callers pass one number per item (for structures: directed edges + angles).
"""

from __future__ import annotations

import heapq

import numpy as np

from janus.errors import UserError


def _checked_work(work: np.ndarray) -> np.ndarray:
    """Work as a float64 vector. Raises UserError on anything that is not a vector of finite numbers >= 0."""
    values = np.asarray(work, dtype=np.float64)
    if values.ndim != 1:
        raise UserError(f"work has shape {values.shape}: pass one number per item")
    if len(values) and not (np.isfinite(values).all() and values.min() >= 0):
        worst = int(np.flatnonzero(~(np.isfinite(values) & (values >= 0)))[0])
        raise UserError(f"work of item {worst} is {values[worst]}: it must be finite and not negative")
    return values


def _heaviest_first(work: np.ndarray) -> np.ndarray:
    """Indices by descending work; equal work keeps ascending index, so that results never depend on the platform."""
    return np.argsort(-work, kind="stable")


def pack_longest_first(work: np.ndarray, num_bins: int) -> list[list[int]]:
    """Share items out so that bins carry nearly equal work: each item, heaviest first, goes to the lightest bin.

    Arguments: work [S], any unit, >= 0; num_bins >= 1. Of equally light bins the one with fewest items, then the
    lowest number, gets the item. Returns num_bins lists of ascending item indices, empty ones only if S < num_bins.
    Source: R. L. Graham, SIAM J. Appl. Math. 17 (1969) 416: the heaviest bin is at most 4/3 - 1/(3 num_bins) times
    the optimal one.
    """
    if num_bins < 1:
        raise UserError(f"num_bins is {num_bins}: it must be at least 1")
    values = _checked_work(work)
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    lightest = [(0.0, 0, number) for number in range(num_bins)]
    for item in _heaviest_first(values).tolist():
        load, count, number = heapq.heappop(lightest)
        bins[number].append(item)
        heapq.heappush(lightest, (load + float(values[item]), count + 1, number))
    return [sorted(items) for items in bins]


def split_by_cap(work: np.ndarray, cap: float) -> list[list[int]]:
    """Split items into micro-batches whose work stays within a cap; an item above the cap gets one of its own.

    Arguments: work [S], any unit, >= 0; cap > 0 in the same unit. Items go, heaviest first, into the first
    micro-batch with room (first-fit decreasing: at most 11/9 of the optimal number plus 6/9, Dosa 2007).
    Returns lists of ascending item indices, none of them empty.
    """
    if not cap > 0:
        raise UserError(f"the work cap is {cap}: it must be above 0")
    values = _checked_work(work)
    batches: list[list[int]] = []
    room: list[float] = []
    smallest, first = values.min(initial=np.inf), 0  # batches before ``first`` have room for nothing more
    for item in _heaviest_first(values).tolist():
        need = float(values[item])
        while first < len(room) and room[first] < smallest:
            first += 1
        place = next((number for number in range(first, len(room)) if need <= room[number]), len(batches))
        if place == len(batches):
            batches.append([])
            room.append(float(cap))
        batches[place].append(item)
        room[place] -= need
    return [sorted(items) for items in batches]


def packing_efficiency(work: np.ndarray, bins: list[list[int]]) -> float:
    """Mean over maximal work of the bins, 0..1: the share of time in which ranks work, if time follows work."""
    values = _checked_work(work)
    loads = np.array([values[items].sum() for items in bins])
    return float(loads.mean() / loads.max()) if len(loads) and loads.max() > 0 else 1.0


def step_balance(work: np.ndarray, num_ranks: int, structures_per_rank: int, *, seed: int = 0) -> dict[str, float]:
    """Efficiency over one shuffled epoch of longest-first packing and of a fixed number of structures per rank.

    Every global step holds num_ranks * structures_per_rank structures (the last one what is left over) and lasts as
    long as its heaviest rank.
    Returns {"longest_first": 0..1, "fixed_count": 0..1, "num_steps": n}: sum of mean over sum of maximal work.
    """
    if num_ranks < 1 or structures_per_rank < 1:
        raise UserError(f"{num_ranks} ranks with {structures_per_rank} structures each: both must be at least 1")
    values = _checked_work(work)
    order = np.random.default_rng(seed).permutation(len(values))
    size = num_ranks * structures_per_rank
    mean_work = longest_first = fixed_count = 0.0
    starts = range(0, len(order), size)
    for start in starts:
        step = values[order[start : start + size]]
        mean_work += step.sum() / num_ranks
        longest_first += max(step[items].sum() for items in pack_longest_first(step, num_ranks))
        fixed_count += max(share.sum() for share in np.array_split(step, num_ranks))
    return {
        "longest_first": float(mean_work / longest_first) if longest_first else 1.0,
        "fixed_count": float(mean_work / fixed_count) if fixed_count else 1.0,
        "num_steps": float(len(starts)),
    }
