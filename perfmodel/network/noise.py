"""What disturbs a machine: seeded draws of compute noise, stragglers, degraded links, latencies and late entries.

It owns the distributions. It does not own what they do to a collective (``flow_events``) or a step (``streams``).

Every kind of disturbance has random numbers of its own, made of the seed and its name: changing one leaves the others
as they were, and the first n of a longer draw are the draw of n. Factors that say so have mean 1, so that turning noise
on does not change the work. The distributions are choices, nothing is fitted here; measured spreads of collectives are
in Hoefler et al. 2010 (10.1109/SC.2010.12), of machines' links in De Sensi et al. 2024 (arXiv 2408.14090).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Disturbances:
    """One draw, as a collective sees it. Arrays by link [L] and by rank [ranks of the cluster]; None: nothing.

    link_factor: of the links' capacity; start_delay_s: how much later a rank enters the collective; latency_deviation:
    every message's latency part is multiplied by a draw of mean 1 and this deviation (repeats of a round have one).
    """

    link_factor: Floats | None = None
    start_delay_s: Floats | None = None
    latency_deviation: float = 0.0
    seed: int = 0

    def latency_factor(self, num_messages: int) -> Floats:
        """[M], mean 1."""
        return scattered(num_messages, self.latency_deviation, _generator(self.seed, "latency"))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much a machine is disturbed. All deviations are relative; the defaults disturb nothing.

    compute_deviation: of a rank's compute in one step, lognormal of mean 1; straggler_fraction of the ranks computes
    straggler_slowdown times as long (not mean-preserving); degraded_links: this fraction of the links keeps
    degraded_capacity of its capacity; latency_deviation: of messages' latency parts, lognormal of mean 1; entry_s: mean
    of the exponential delay with which a rank enters a collective. Raises UserError for impossible numbers.
    """

    compute_deviation: float = 0.0
    straggler_fraction: float = 0.0
    straggler_slowdown: float = 1.0
    degraded_links: float = 0.0
    degraded_capacity: float = 1.0
    latency_deviation: float = 0.0
    entry_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("compute_deviation", "latency_deviation", "entry_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"noise {name} is {getattr(self, name)}: it must be 0 or a positive number")
        for name in ("straggler_fraction", "degraded_links"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"noise {name} is {getattr(self, name)}: it must be between 0 and 1")
        if not 1 <= self.straggler_slowdown < math.inf:
            raise UserError(f"noise straggler_slowdown is {self.straggler_slowdown}: it must be at least 1")
        if not 0 < self.degraded_capacity <= 1:
            raise UserError(f"noise degraded_capacity is {self.degraded_capacity}: it must be above 0 and at most 1")

    def compute_factor(self, num_ranks: int, step: int = 0) -> Floats:
        """Compute seconds over those of the quiet machine, [R]; stragglers are the same ranks in every step."""
        factor = scattered(num_ranks, self.compute_deviation, _generator(self.seed, "compute", step))
        slow = _generator(self.seed, "stragglers").random(num_ranks) < self.straggler_fraction
        return np.where(slow, factor * self.straggler_slowdown, factor)

    def link_factor(self, num_links: int) -> Floats:
        """Capacity over that of the healthy machine, [L]."""
        hit = _generator(self.seed, "links").random(num_links) < self.degraded_links
        return np.where(hit, self.degraded_capacity, 1.0)

    def disturbances(self, num_ranks: int, num_links: int) -> Disturbances:
        """One draw for a collective."""
        return Disturbances(
            link_factor=self.link_factor(num_links),
            start_delay_s=_generator(self.seed, "entry").exponential(1.0, num_ranks) * self.entry_s,
            latency_deviation=self.latency_deviation, seed=self.seed,
        )  # fmt: skip


def scattered(count: int, deviation: float, generator: np.random.Generator) -> Floats:
    """Lognormal factors [count] of mean 1 and standard deviation ``deviation``; exactly 1 without deviation."""
    width = math.sqrt(math.log1p(deviation**2))
    return np.exp(width * generator.standard_normal(count) - width**2 / 2)


def _generator(seed: int, kind: str, step: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), step])
