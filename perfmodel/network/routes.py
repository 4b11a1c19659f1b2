"""What a message crosses, and what software adds to it: the two things every evaluator needs to know of a machine.

It does not own how routes are found (``fabric``, ``cluster``) nor what anything costs (``closed_form``,
``flow_events``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    between two messages of one rank in one round. entry_s: skew with which ranks enter a collective, per doubling of
    their number (they leave the step before it, a barrier in benchmarks, at different times). link_fraction: of the
    links' capacity that a stream of large messages reaches; contended_fraction: the part of that which is left on a
    link that messages of several senders share (1: perfect flow control; less: blocked heads of line).
    rendezvous_s: handshake of a message above eager_bytes; messages up to that go through buffers of the library at
    eager_copy_bytes_per_s, all but the last of a rank while others are on the wire. Two ranks that exchange messages
    above exchange_bytes with each other reach only exchange_fraction of the link each way (1: full duplex; measured
    about 1/2 on InfiniBand through UCX, 1 on Tofu).

    Memory of the host (the defaults change nothing): reduction_bytes_per_s, copy_bytes_per_s: of one rank, in cache.
    cache_bytes: of a collective's buffer that runs from cache; what exceeds it runs at memory_reduction_bytes_per_s
    and memory_copy_bytes_per_s. Work buffers above kept_bytes, or several of one call that together exceed trim_bytes,
    are given back to the system after each call and touched anew, page by page, at first_touch_bytes_per_s (glibc:
    mmap threshold, at most 32 MiB, and trim threshold).
    """

    overhead_s: float = 0.0
    latency_s: float = 0.0
    gap_s: float = 0.0
    entry_s: float = 0.0
    link_fraction: float = 1.0
    contended_fraction: float = 1.0
    reduction_bytes_per_s: float = math.inf
    copy_bytes_per_s: float = math.inf
    rendezvous_s: float = 0.0
    eager_bytes: float = math.inf
    eager_copy_bytes_per_s: float = math.inf
    exchange_fraction: float = 1.0
    exchange_bytes: float = math.inf
    cache_bytes: float = math.inf
    memory_reduction_bytes_per_s: float = math.inf
    memory_copy_bytes_per_s: float = math.inf
    kept_bytes: float = math.inf
    trim_bytes: float = math.inf
    first_touch_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            assert value >= 0, f"{name} {value}"
            assert value > 0 or not name.endswith("_per_s"), f"{name} {value}"
        for name in ("link_fraction", "contended_fraction", "exchange_fraction"):
            assert 0 < getattr(self, name) <= 1, f"{name} {getattr(self, name)}"

    def software_s(self, message_bytes: Sizes, num_messages: Sizes = 1.0) -> Sizes:
        """Seconds beside path and wire until a rank's num_messages of one round, message_bytes each, are through.

        overhead_s + latency_s + (num_messages - 1) gap_s, and the handshake of a long message or the copy of a short
        one.
        """
        posting = self.overhead_s + self.latency_s + (num_messages - 1.0) * self.gap_s
        copies = message_bytes / self.eager_copy_bytes_per_s
        return posting + np.where(np.asarray(message_bytes) > self.eager_bytes, self.rendezvous_s, copies)

    def wire_s_per_byte(self, load_s_per_byte: Sizes, shared_load_s_per_byte: Sizes) -> Sizes:
        """Seconds per byte of m of a round whose fullest link, and fullest link that several ranks send over, would be
        busy so long at full capacity."""
        return np.maximum(load_s_per_byte, shared_load_s_per_byte / self.contended_fraction) / self.link_fraction

    def exchange_s(self, message_bytes: Sizes, wire_s: Sizes) -> Sizes:
        """Seconds that two ranks exchanging messages of message_bytes lose beside the wire_s of one direction alone."""
        return np.where(np.asarray(message_bytes) > self.exchange_bytes, wire_s * (1 / self.exchange_fraction - 1), 0.0)

    def skew_s(self, num_ranks: int) -> float:
        """Seconds between the first and the last rank's entry into a collective of num_ranks; 0 for one rank."""
        return self.entry_s * math.log2(num_ranks)

    def reduction_s(self, reduced_bytes: Sizes, size_bytes: Sizes) -> Sizes:
        """Seconds in which one rank reduces reduced_bytes of a collective whose buffer has size_bytes (arrays alike).

        The part of the buffer beyond cache_bytes is reduced at the memory's rate: continuous and monotone in both.
        """
        outside = self._outside_cache(size_bytes)
        return reduced_bytes * (
            (1.0 - outside) / self.reduction_bytes_per_s + outside / self.memory_reduction_bytes_per_s
        )

    def copy_s(self, copied_bytes: Sizes, size_bytes: Sizes) -> Sizes:
        """Seconds in which one rank copies copied_bytes in memory; like ``reduction_s``."""
        outside = self._outside_cache(size_bytes)
        return copied_bytes * ((1.0 - outside) / self.copy_bytes_per_s + outside / self.memory_copy_bytes_per_s)

    def _outside_cache(self, size_bytes: Sizes) -> Sizes:
        if math.isinf(self.cache_bytes):
            return 0.0
        return np.maximum(0.0, 1.0 - self.cache_bytes / np.maximum(size_bytes, np.finfo(float).tiny))

    def first_touch_s(self, buffer_bytes: Sequence[Sizes]) -> Sizes:
        """Seconds for the pages of a call's work buffers, where the allocator does not keep them between calls."""
        if not buffer_bytes:
            return 0.0
        sizes = [np.asarray(one, dtype=np.float64) for one in buffer_bytes]
        trimmed = np.asarray(len(sizes) > 1) & (np.sum(sizes, axis=0) > self.trim_bytes)
        touched = np.sum([np.where(trimmed | (one > self.kept_bytes), one, 0.0) for one in sizes], axis=0)
        return np.asarray(touched / self.first_touch_bytes_per_s)
