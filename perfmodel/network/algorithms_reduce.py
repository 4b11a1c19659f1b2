"""Reduce-scatters and all-reduces on one level: ring, halving, doubling, Rabenseifner, pairwise, binomial.

It owns their messages, not their price. m is the input buffer of one rank.

Sources: Thakur, Rabenseifner, Gropp 2005 (10.1177/1094342005051521); Rabenseifner 2004 (10.1007/978-3-540-24685-5_1);
numbers of ranks that are no power of two as Open MPI 4.1 and MPICH treat them: the first 2(n - 2^k) ranks work in
pairs, one of each taking part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from perfmodel.network import algorithms_gather as gather
from perfmodel.network.algorithms_steps import (
    Ints,
    Recipe,
    Step,
    block_range,
    in_sequence,
    nothing,
    power_below,
    ranges,
    rounds_of_doubling,
    same,
    shift_step,
    singles,
    uniform_step,
)


def ring_reduce_scatter(num_ranks: int) -> Recipe:
    """n-1 rounds of m/n to the next rank, each reduced on arrival."""
    n = num_ranks
    if n == 1:
        return nothing()

    def steps() -> Iterator[Step]:
        yield shift_step(n, 1, 1 / n, lambda k, rank: np.array([(rank - 1 - k) % n]), reduces=True, repeat=n - 1)

    return Recipe(num_blocks=n, num_rounds=n - 1, steps=steps, symmetric=True)


def pairwise_reduce_scatter(num_ranks: int) -> Recipe:
    """n-1 rounds: in round k rank r sends its part of block r+k to rank r+k (MPICH, long messages)."""
    n = num_ranks
    if n == 1:
        return nothing()

    def step(shift: int) -> Step:
        return shift_step(n, shift, 1 / n, lambda _, rank: np.array([(rank + shift) % n]), reduces=True)

    return Recipe(
        num_blocks=n, num_rounds=n - 1, steps=lambda: (step(shift) for shift in range(1, n)), shift=step, symmetric=True
    )


def _paired(num_ranks: int) -> tuple[Ints, Ints, Ints]:
    """For n no power of two: (ranks that stand aside, ranks they pair with, ranks that take part, in order)."""
    extra = num_ranks - power_below(num_ranks)
    evens = np.arange(0, 2 * extra, 2, dtype=np.int64)
    active = np.concatenate([evens + 1, np.arange(2 * extra, num_ranks, dtype=np.int64)])
    return evens, evens + 1, active


def recursive_halving_reduce_scatter(num_ranks: int) -> Recipe:
    """log2 n rounds of m/2, m/4, ...: the far half first. Other n: pairs first (m) and last (m/n)."""
    n = num_ranks
    if n == 1:
        return nothing()
    aside, partners, active = _paired(n)
    power = len(active)
    owned = [np.array([r - 1, r]) if r in set(partners.tolist()) else np.array([r]) for r in active.tolist()]
    starts = np.concatenate([[0], np.cumsum([len(blocks) for blocks in owned])]).astype(np.int64)
    everything = np.arange(n, dtype=np.int64)

    def halving(mask: int) -> Step:
        new = np.arange(power, dtype=np.int64)
        begins = (new ^ mask) & ~np.int64(mask - 1)
        low, high = starts[begins], starts[begins + mask]
        return Step(
            source=active, target=active[new ^ mask], fraction=(high - low) / n, reduces=True,
            carried=lambda _: [np.arange(b, e, dtype=np.int64) for b, e in zip(low, high, strict=True)],
        )  # fmt: skip

    def steps() -> Iterator[Step]:
        if len(aside):
            yield uniform_step(aside, partners, 1.0, same(everything, len(aside)), reduces=True)
        mask = power >> 1
        while mask:
            yield halving(mask)
            mask >>= 1
        if len(aside):
            yield uniform_step(partners, aside, 1 / n, singles(aside))

    rounds = power.bit_length() - 1 + (2 if len(aside) else 0)
    return Recipe(num_blocks=n, num_rounds=rounds, steps=steps)


def ring(num_ranks: int) -> Recipe:
    """Reduce-scatter and all-gather on the ring: 2(n-1) rounds of m/n."""
    return in_sequence(num_ranks, ring_reduce_scatter(num_ranks), gather.ring(num_ranks))


def segmented_ring(num_ranks: int, *, num_segments: int = 1) -> Recipe:
    """The ring with its reduce-scatter done segment by segment (each block cut in num_segments), as Open MPI does."""
    n = num_ranks
    if n == 1:
        return nothing()

    def reduction(segment: int) -> Step:
        return shift_step(
            n, 1, 1 / n / num_segments, lambda k, rank: np.array([(rank - 1 - k) % n * num_segments + segment]),
            reduces=True, repeat=n - 1,
        )  # fmt: skip

    def steps() -> Iterator[Step]:
        yield from (reduction(segment) for segment in range(num_segments))
        yield shift_step(
            n, 1, 1 / n, lambda k, rank: block_range((rank - k) % n * num_segments, num_segments, n * num_segments),
            repeat=n - 1,
        )  # fmt: skip

    return Recipe(
        num_blocks=n * num_segments, num_rounds=(n - 1) * (num_segments + 1), steps=steps, symmetric=True
    )  # fmt: skip


def recursive_doubling(num_ranks: int) -> Recipe:
    """log2 n rounds of the whole buffer with rank XOR 2^k; other n: pairs before and after, m each."""
    new = np.arange(power_below(num_ranks), dtype=np.int64)
    return doubling(num_ranks, [new ^ (1 << k) for k in range(len(new).bit_length() - 1)])


def doubling(num_ranks: int, pairings: list[Ints]) -> Recipe:
    """The whole buffer to each round's partner. pairings: [2^k] each, partners among the ranks that take part."""
    n = num_ranks
    if n == 1:
        return nothing()
    aside, partners, active = _paired(n)
    buffer = np.array([0])

    def steps() -> Iterator[Step]:
        if len(aside):
            yield uniform_step(aside, partners, 1.0, same(buffer, len(aside)), reduces=True)
        for pairing in pairings:
            yield uniform_step(active, active[pairing], 1.0, same(buffer, len(active)), reduces=True)
        if len(aside):
            yield uniform_step(partners, aside, 1.0, same(buffer, len(aside)))

    return Recipe(num_blocks=1, num_rounds=len(pairings) + (2 if len(aside) else 0), steps=steps)


def rabenseifner(num_ranks: int) -> Recipe:
    """Halving of the buffer with near partners first, then doubling back: 2 log2 n rounds, 2(n-1)/n m.

    n no power of two (Open MPI, Rabenseifner): the pairs reduce one half each, the odd rank hands its half to the even
    one, which takes part and sends the result (m) at the end.
    """
    n = num_ranks
    if n == 1:
        return nothing()
    odds, evens, power, active = _halved_pairs(n)
    new = np.arange(power, dtype=np.int64)
    lower, upper = np.arange(power // 2, dtype=np.int64), np.arange(power // 2, power, dtype=np.int64)

    def before() -> Iterator[Step]:
        pairs = len(odds)
        source, target = np.concatenate([evens, odds]), np.concatenate([odds, evens])
        yield uniform_step(source, target, 0.5, lambda _: [upper] * pairs + [lower] * pairs, reduces=True)
        yield uniform_step(odds, evens, 0.5, same(upper, pairs))

    def exchange(k: int, *, halving: bool) -> Step:
        """Round with the rank 2^k away; blocks that rank (halving) or this rank (doubling) is to hold after k+1."""
        size = power >> (k + 1)
        begins = _bit_reversed_begin(new ^ (1 << k) if halving else new, k, power)
        return uniform_step(
            active, active[new ^ (1 << k)], size / power,
            ranges(begins, size, power), reduces=halving,
        )  # fmt: skip

    def steps() -> Iterator[Step]:
        levels = power.bit_length() - 1
        if len(odds):
            yield from before()
        for k in range(levels):
            yield exchange(k, halving=True)
        for k in reversed(range(levels)):
            yield exchange(k, halving=False)
        if len(odds):
            yield uniform_step(evens, odds, 1.0, same(np.arange(power, dtype=np.int64), len(odds)))

    return Recipe(num_blocks=power, num_rounds=2 * (power.bit_length() - 1) + (3 if len(odds) else 0), steps=steps)


def _halved_pairs(num_ranks: int) -> tuple[Ints, Ints, int, Ints]:
    """(ranks that stand aside, ranks they pair with, number that take part, ranks that take part)."""
    odds_partners, odds, _ = _paired(num_ranks)
    power = power_below(num_ranks)
    active = np.concatenate([odds_partners, np.arange(2 * len(odds), num_ranks, dtype=np.int64)])
    return odds, odds_partners, power, active


def _bit_reversed_begin(new: Ints, last_bit: int, power: int) -> Ints:
    """First block after halving by bits 0 to last_bit of the rank: bit k chooses the half of size power/2^(k+1)."""
    begins = np.zeros_like(new)
    for k in range(last_bit + 1):
        begins += ((new >> k) & 1) * (power >> (k + 1))
    return begins


def _binomial_levels(num_ranks: int) -> list[tuple[Ints, Ints]]:
    """(parents, children) of the binomial tree from rank 0, the farthest children first."""
    levels = []
    for k in reversed(range(rounds_of_doubling(num_ranks))):
        parents = np.arange(0, num_ranks - (1 << k), 2 << k, dtype=np.int64)
        levels.append((parents, parents + (1 << k)))
    return levels


def reduce_broadcast(num_ranks: int) -> Recipe:
    """Binomial reduction to rank 0, then binomial broadcast: 2 ceil(log2 n) rounds of the whole buffer."""
    n = num_ranks
    if n == 1:
        return nothing()
    buffer = np.array([0])
    levels = _binomial_levels(n)

    def steps() -> Iterator[Step]:
        for parents, children in reversed(levels):
            yield uniform_step(children, parents, 1.0, same(buffer, len(children)), reduces=True)
        for parents, children in levels:
            yield uniform_step(parents, children, 1.0, same(buffer, len(children)))

    return Recipe(num_blocks=1, num_rounds=2 * len(levels), steps=steps)


def linear(num_ranks: int) -> Recipe:
    """All buffers to rank 0 at once, which adds them up, and the result to all (Open MPI's basic linear)."""
    n = num_ranks
    if n == 1:
        return nothing()
    others, root, buffer = np.arange(1, n, dtype=np.int64), np.zeros(n - 1, dtype=np.int64), np.array([0])

    def steps() -> Iterator[Step]:
        yield uniform_step(others, root, 1.0, same(buffer, n - 1), reduces=True)
        yield uniform_step(root, others, 1.0, same(buffer, n - 1))

    return Recipe(num_blocks=1, num_rounds=2, steps=steps)


def reduce_then_scatter(num_ranks: int) -> Recipe:
    """Binomial reduction of m to rank 0, which hands out the blocks one by one (Open MPI's non-overlapping)."""
    n = num_ranks
    if n == 1:
        return nothing()
    everything, others = np.arange(n, dtype=np.int64), np.arange(1, n, dtype=np.int64)
    levels = _binomial_levels(n)

    def steps() -> Iterator[Step]:
        for parents, children in reversed(levels):
            yield uniform_step(children, parents, 1.0, same(everything, len(children)), reduces=True)
        yield uniform_step(np.zeros(n - 1, dtype=np.int64), others, 1 / n, singles(others))

    return Recipe(num_blocks=n, num_rounds=len(levels) + 1, steps=steps)


def allgather_reduce(num_ranks: int) -> Recipe:
    """Every rank gathers all n buffers (as all_gather recursive_doubling, m each) and adds them up itself.

    Here block r is rank r's whole buffer: it is gathered, and counted as reduced where it arrives.
    """
    inner = gather.recursive_doubling(num_ranks)

    def steps() -> Iterator[Step]:
        for step in inner.steps():
            yield replace(step, fraction=step.fraction * num_ranks, copied=0.0, adds_on_arrival=True)

    return replace(inner, steps=steps, gathers_buffers=True)
