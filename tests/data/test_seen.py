"""The memory of digests: what was added is found, across the move from the dict into sorted arrays."""

from __future__ import annotations

import numpy as np

from janus.data.seen import RECENT_LIMIT, SeenDigests, digest_of


def test_every_digest_is_found_with_its_first_ordinal_and_no_other():
    digests = np.random.default_rng(0).integers(0, 2**64, size=3 * RECENT_LIMIT + 1000, dtype=np.uint64)
    digests = np.unique(digests)
    np.random.default_rng(1).shuffle(digests)
    known, unknown = digests[:-500].tolist(), digests[-500:].tolist()
    seen = SeenDigests()
    for ordinal, digest in enumerate(known):
        seen.add(digest, ordinal, -ordinal / 2)
    for ordinal in range(0, len(known), 97):
        assert seen.find(known[ordinal]) == (ordinal, -ordinal / 2)
    assert all(seen.find(digest) is None for digest in unknown)


def test_digests_depend_on_the_parts_and_on_where_they_end():
    assert digest_of(b"ab", b"c") == digest_of(b"ab", b"c")
    assert len({digest_of(b"ab", b"c"), digest_of(b"a", b"bc"), digest_of(b"abc"), digest_of(b"abc", b"")}) == 4
    assert 0 <= digest_of(b"") < 2**64
