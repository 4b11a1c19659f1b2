"""Remembers which digests occurred before, in 24 bytes each, so that a data set larger than memory can be checked.

It does not own what is digested.
"""

from __future__ import annotations

import hashlib

import numpy as np

RECENT_LIMIT = 1 << 15


def digest_of(*parts: bytes) -> int:
    """64-bit digest: 1e8 items collide by chance with a probability of 3e-4."""
    joined = hashlib.blake2b(digest_size=8)
    for part in parts:
        joined.update(len(part).to_bytes(8, "little"))
        joined.update(part)
    return int.from_bytes(joined.digest(), "little")


class SeenDigests:
    """Map from digest to the (ordinal, value) it first came with: a small dict, emptied into sorted arrays."""

    def __init__(self) -> None:
        self._recent: dict[int, tuple[int, float]] = {}
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def find(self, digest: int) -> tuple[int, float] | None:
        """Ordinal and value of the first occurrence, None if there was none."""
        if digest in self._recent:
            return self._recent[digest]
        key = np.uint64(digest)
        for digests, ordinals, values in self._runs:
            place = int(np.searchsorted(digests, key))
            if place < len(digests) and digests[place] == key:
                return int(ordinals[place]), float(values[place])
        return None

    def add(self, digest: int, ordinal: int, value: float = 0.0) -> None:
        """Remember a digest that ``find`` does not know."""
        self._recent[digest] = (ordinal, value)
        if len(self._recent) >= RECENT_LIMIT:
            self._move_recent()

    def _move_recent(self) -> None:
        run = (
            np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)),
            np.array([ordinal for ordinal, _ in self._recent.values()], dtype=np.int64),
            np.array([value for _, value in self._recent.values()], dtype=np.float64),
        )
        self._recent.clear()
        # runs at least double in length towards the front, so there are few of them
        while self._runs and len(self._runs[-1][0]) <= len(run[0]):
            earlier = self._runs.pop()
            run = tuple(np.concatenate(pair) for pair in zip(earlier, run, strict=True))  # type: ignore[assignment]
        order = np.argsort(run[0])
        self._runs.append((run[0][order], run[1][order], run[2][order]))
