"""All-gathers on one level: ring, recursive doubling, Bruck, neighbour exchange, sparbit, linear.

It owns their messages, not their price. m is the gathered result; block r is what rank r brings.

Sources: Thakur, Rabenseifner, Gropp 2005 (10.1177/1094342005051521); Bruck et al. 1997 (10.1109/71.642949); neighbour
exchange: Chen et al. 2005 (10.1109/HPCASIA.2005.75); sparbit: Loch and Koslovski 2021 (arXiv 2109.08751); which of
them is used for which number of ranks: Open MPI 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from perfmodel.network.algorithms_steps import (
    Ints,
    Recipe,
    Step,
    block_range,
    nothing,
    ranges,
    rounds_of_doubling,
    same,
    shift_step,
    singles,
    uniform_step,
)


def ring(num_ranks: int) -> Recipe:
    """n-1 rounds of m/n to the next rank."""
    n = num_ranks
    if n == 1:
        return nothing()

    def steps() -> Iterator[Step]:
        yield shift_step(n, 1, 1 / n, lambda k, rank: np.array([(rank - k) % n]), repeat=n - 1)

    return Recipe(num_blocks=n, num_rounds=n - 1, steps=steps, symmetric=True)


def recursive_doubling(num_ranks: int) -> Recipe:
    """log2 n rounds with rank XOR 2^k of m 2^k/n; Bruck's for other numbers of ranks (as Open MPI does)."""
    n = num_ranks
    if n & (n - 1):
        return bruck(n)
    ranks = np.arange(n, dtype=np.int64)

    def step(k: int) -> Step:
        size = 1 << k
        begins = ranks & ~np.int64(size - 1)
        return uniform_step(ranks, ranks ^ size, size / n, ranges(begins, size, n))

    rounds = rounds_of_doubling(n)
    return Recipe(num_blocks=n, num_rounds=rounds, steps=lambda: (step(k) for k in range(rounds)))


def bruck(num_ranks: int, *, radix: int = 2) -> Recipe:
    """ceil(log_k n) rounds: the blocks r, r+1, ... that rank r has go to up to k-1 ranks at once; m is put in order.

    radix: k; each round rank r, with c blocks, sends to ranks r - c, r - 2c, ... r - (k-1)c.
    """
    n = num_ranks
    if n == 1:
        return nothing()
    held = [1]
    while held[-1] * radix < n:
        held.append(held[-1] * radix)
    ranks = np.arange(n, dtype=np.int64)

    def step(have: int) -> Step:
        hops = np.arange(1, radix, dtype=np.int64) * have
        hops = hops[hops < n]
        counts = np.tile(np.minimum(have, n - hops), n)
        source = np.repeat(ranks, len(hops))
        return Step(
            source=source, target=(source - np.tile(hops, n)) % n, fraction=counts / n,
            carried=lambda _: [block_range(int(s), int(c), n) for s, c in zip(source, counts, strict=True)],
            copied=1.0 if have == held[-1] else 0.0,
        )  # fmt: skip

    return Recipe(num_blocks=n, num_rounds=len(held), steps=lambda: (step(have) for have in held), symmetric=True)


def linear(num_ranks: int) -> Recipe:
    """One round: every rank sends its block to all others, nearest higher rank first."""
    n = num_ranks
    if n == 1:
        return nothing()

    def steps() -> Iterator[Step]:
        shifts = np.arange(1, n, dtype=np.int64)
        source = np.repeat(np.arange(n, dtype=np.int64), n - 1)
        target = (source + np.tile(shifts, n)) % n
        yield uniform_step(source, target, 1 / n, singles(source))

    return Recipe(num_blocks=n, num_rounds=1, steps=steps, symmetric=True)


def neighbor_exchange(num_ranks: int) -> Recipe:
    """n/2 rounds with the left and right neighbour in turn: m/n first, then 2m/n. The ring where n is odd."""
    n = num_ranks
    if n % 2:
        return ring(n)
    ranks = np.arange(n, dtype=np.int64)
    even = ranks % 2 == 0

    def target(k: int) -> Ints:
        return np.where(even, ranks + (1 if k % 2 == 0 else -1), ranks - (1 if k % 2 == 0 else -1)) % n

    def pairs() -> list[Ints]:
        """The first block of the pair that each rank sends in round k (from 1 on): what it got in the round before."""
        sent = [ranks - ranks % 2]
        for k in range(1, n // 2 - 1):
            sent.append(sent[-1][target(k)])
        return sent

    def steps() -> Iterator[Step]:
        yield uniform_step(ranks, target(0), 1 / n, singles(ranks))
        for k, begins in enumerate(pairs() if n > 2 else [], start=1):
            yield uniform_step(ranks, target(k), 2 / n, ranges(begins, 2, n))

    return Recipe(num_blocks=n, num_rounds=n // 2, steps=steps)


def sparbit(num_ranks: int) -> Recipe:
    """ceil(log2 n) rounds, far partners first; each block is a message of its own."""
    n = num_ranks
    if n == 1:
        return nothing()
    rounds = rounds_of_doubling(n)
    trailing = (n & -n).bit_length() - 1
    skip = (~(n >> trailing) | 1) << trailing
    ranks = np.arange(n, dtype=np.int64)

    def steps() -> Iterator[Step]:
        held = 1
        for k in range(rounds):
            distance = 1 << (rounds - 1 - k)
            left_out = int((distance & skip) == distance)
            count = held - left_out
            source = np.repeat(ranks, count)
            blocks = (source - 2 * distance * np.tile(np.arange(count, dtype=np.int64), n)) % n
            yield uniform_step(source, (source + distance) % n, 1 / n, singles(blocks))
            held = 2 * held - left_out

    return Recipe(num_blocks=n, num_rounds=rounds, steps=steps, symmetric=True)


def gather_broadcast(num_ranks: int) -> Recipe:
    """Binomial gather to rank 0, then binomial broadcast of m."""
    n = num_ranks
    rounds = rounds_of_doubling(n)
    everything = np.arange(n, dtype=np.int64)

    def pairs(k: int) -> tuple[Ints, Ints]:
        low = np.arange(0, n - (1 << k), 2 << k, dtype=np.int64)
        return low, low + (1 << k)

    def up(k: int) -> Step:
        low, high = pairs(k)
        counts = np.minimum(1 << k, n - high)
        return Step(
            source=high, target=low, fraction=counts / n,
            carried=lambda _: [np.arange(h, h + c, dtype=np.int64) for h, c in zip(high, counts, strict=True)],
        )  # fmt: skip

    def steps() -> Iterator[Step]:
        yield from (up(k) for k in range(rounds))
        for k in reversed(range(rounds)):
            low, high = pairs(k)
            yield uniform_step(low, high, 1.0, same(everything, len(low)))

    return Recipe(num_blocks=n, num_rounds=2 * rounds, steps=steps)
