"""What a message crosses, and what software adds to it: the two things every evaluator needs to know of a machine.

It does not own how routes are found (``fabric``, ``cluster``) nor what anything costs (``closed_form``,
``flow_events``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sizes = float | NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Links crossed by M messages, in compressed rows: message i crosses ``links[offsets[i]:offsets[i + 1]]``.

    offsets: int64 [M + 1]. links: int64, indices of directed links, each at most once per message. shares: float64 like
    links, the part of the message's bytes that crosses that link (1 on a single path). latency_s: float64 [M], wire and
    switches, without software. A message of a rank to itself crosses nothing.
    """

    offsets: NDArray[np.int64]
    links: NDArray[np.int64]
    shares: NDArray[np.float64]
    latency_s: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def link_bytes(self, message_bytes: NDArray[np.float64], num_links: int) -> NDArray[np.float64]:
        """Bytes over every link [num_links] if message i has message_bytes[i]."""
        per_crossing = np.repeat(message_bytes, np.diff(self.offsets)) * self.shares
        return np.bincount(self.links, weights=per_crossing, minlength=num_links).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Transport:
    """What a communication library adds to the wire, per machine: the constants that are fitted.

    overhead_s: per message, on sender and receiver together. latency_s: per message beyond the path's own. gap_s:
    between two messages of one rank in one round. link_fraction: of the links' capacity that a stream of large messages
    reaches. reduction_bytes_per_s, copy_bytes_per_s: of one rank. rendezvous_s: handshake of a message above
    eager_bytes.

    Memory of the host, where a collective is large (the defaults change nothing): cache_bytes: of a collective's buffer
    up to which reductions run from cache; what exceeds it runs at memory_reduction_bytes_per_s. kept_bytes: work
    buffers up to this size stay mapped between calls; larger ones are given back to the system and touched anew,
    page by page, at first_touch_bytes_per_s (glibc's malloc: at most 32 MiB).
    """

    overhead_s: float = 0.0
    latency_s: float = 0.0
    gap_s: float = 0.0
    link_fraction: float = 1.0
    reduction_bytes_per_s: float = math.inf
    copy_bytes_per_s: float = math.inf
    rendezvous_s: float = 0.0
    eager_bytes: float = math.inf
    cache_bytes: float = math.inf
    memory_reduction_bytes_per_s: float = math.inf
    kept_bytes: float = math.inf
    first_touch_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        for name in ("overhead_s", "latency_s", "gap_s", "rendezvous_s", "eager_bytes", "cache_bytes", "kept_bytes"):
            assert getattr(self, name) >= 0, f"{name} {getattr(self, name)}"
        assert 0 < self.link_fraction <= 1, f"link_fraction {self.link_fraction}"
        for name in ("reduction_bytes_per_s", "copy_bytes_per_s", "memory_reduction_bytes_per_s",
                     "first_touch_bytes_per_s"):  # fmt: skip
            assert getattr(self, name) > 0, f"{name} {getattr(self, name)}"

    def reduction_s(self, reduced_bytes: Sizes, size_bytes: Sizes) -> Sizes:
        """Seconds in which one rank reduces reduced_bytes of a collective whose buffer has size_bytes (arrays alike).

        The part of the buffer beyond cache_bytes is reduced at the memory's rate: continuous and monotone in both.
        """
        in_cache = reduced_bytes / self.reduction_bytes_per_s
        if math.isinf(self.cache_bytes):
            return in_cache
        outside = np.maximum(0.0, 1.0 - self.cache_bytes / np.maximum(size_bytes, 1e-300))
        return in_cache * (1.0 - outside) + outside * reduced_bytes / self.memory_reduction_bytes_per_s

    def first_touch_s(self, buffer_bytes: Sizes) -> Sizes:
        """Seconds for the pages of a work buffer that the allocator does not keep between calls; 0 up to kept_bytes."""
        return np.where(np.asarray(buffer_bytes) > self.kept_bytes, buffer_bytes / self.first_touch_bytes_per_s, 0.0)
