"""All-to-alls on one level, even and from a traffic matrix: pairwise, linear, windowed linear, Bruck.

It owns their messages, not their price. m is what one rank sends in all, its own part included; with a traffic matrix
[n, n] (row: sender; any unit) m is the largest row sum.

Sources: Thakur, Rabenseifner, Gropp 2005 (10.1177/1094342005051521); Bruck et al. 1997 (10.1109/71.642949); windowed
linear ("linear_sync"): Open MPI 4.1.
"""

from __future__ import annotations

import numpy as np

from perfmodel.network.algorithms_steps import (
    Floats,
    Ints,
    Recipe,
    Step,
    nothing,
    rounds_of_doubling,
    singles,
)


def normalised(traffic_matrix: Floats) -> Floats:
    """The matrix in units of its largest row sum."""
    return traffic_matrix / traffic_matrix.sum(axis=1).max()


def _direct_step(num_ranks: int, source: Ints, target: Ints, matrix: Floats | None) -> Step:
    """Messages that go straight to where they belong; empty ones are left out."""
    n = num_ranks
    fraction = np.full(len(source), 1 / n) if matrix is None else matrix[source, target]
    if matrix is not None:
        kept = fraction > 0
        source, target, fraction = source[kept], target[kept], fraction[kept]
    blocks = source * n + target
    return Step(source=source, target=target, fraction=fraction, carried=singles(blocks))


def pairwise(num_ranks: int, *, order: str = "shift", traffic_matrix: Floats | None = None) -> Recipe:
    """n-1 rounds of m/n: in round k with rank r+k (and r-k), or r XOR k where order is "xor" (n a power of two)."""
    n = num_ranks
    if n == 1:
        return nothing()
    ranks = np.arange(n, dtype=np.int64)
    xor = order == "xor"

    def step(shift: int) -> Step:
        return _direct_step(n, ranks, ranks ^ shift if xor else (ranks + shift) % n, traffic_matrix)

    return Recipe(
        num_blocks=n * n, num_rounds=n - 1, steps=lambda: (step(shift) for shift in range(1, n)), shift=step,
        symmetric=traffic_matrix is None and not xor,
    )  # fmt: skip


def linear_sync(num_ranks: int, *, window: int = 32, traffic_matrix: Floats | None = None) -> Recipe:
    """All-posted exchange with at most ``window`` messages of a rank under way: ceil((n-1)/window) rounds."""
    n = num_ranks
    if n == 1:
        return nothing()
    rounds = -(-(n - 1) // window)

    def step(k: int) -> Step:
        shifts = np.arange(1 + k * window, min(n, 1 + (k + 1) * window), dtype=np.int64)
        source = np.repeat(np.arange(n, dtype=np.int64), len(shifts))
        return _direct_step(n, source, (source + np.tile(shifts, n)) % n, traffic_matrix)

    return Recipe(
        num_blocks=n * n, num_rounds=rounds, steps=lambda: (step(k) for k in range(rounds)),
        shift=pairwise(n, traffic_matrix=traffic_matrix).shift, window=window, symmetric=traffic_matrix is None,
    )  # fmt: skip


def linear(num_ranks: int, *, traffic_matrix: Floats | None = None) -> Recipe:
    """One round: every rank posts all its n-1 messages, the next higher rank first."""
    return linear_sync(num_ranks, window=max(1, num_ranks - 1), traffic_matrix=traffic_matrix)


def bruck(num_ranks: int, *, traffic_matrix: Floats | None = None) -> Recipe:
    """ceil(log2 n) rounds: in round k all blocks whose distance to go has bit k set move 2^k ranks on.

    Copies of m in memory before and after (rotations), and of what is packed and unpacked in each round.
    """
    n = num_ranks
    if n == 1:
        return nothing()
    rounds = rounds_of_doubling(n)
    ranks = np.arange(n, dtype=np.int64)

    def blocks_of(k: int, rank: int) -> Ints:
        distances = np.arange(n, dtype=np.int64)
        distances = distances[(distances >> k) & 1 == 1]
        source = (rank - (distances & ((1 << k) - 1))) % n
        return source * n + (source + distances) % n

    def fractions(k: int) -> Floats:
        if traffic_matrix is None:
            return np.full(n, np.count_nonzero((ranks >> k) & 1) / n)
        return np.array([traffic_matrix.ravel()[blocks_of(k, rank)].sum() for rank in range(n)])

    def step(k: int) -> Step:
        fraction = fractions(k)
        ends = (1.0 if k == 0 else 0.0) + (1.0 if k == rounds - 1 else 0.0)
        return Step(
            source=ranks, target=(ranks + (1 << k)) % n, fraction=fraction,
            carried=lambda _: [blocks_of(k, rank) for rank in range(n)], copied=2 * float(fraction.max()) + ends,
        )  # fmt: skip

    return Recipe(
        num_blocks=n * n, num_rounds=rounds, steps=lambda: (step(k) for k in range(rounds)),
        symmetric=traffic_matrix is None,
    )  # fmt: skip
