"""Epochs, shares and the validation split: a pure function of seed and step."""

import numpy as np

from janus.layout import Layout
from janus.train.sampler import Sampler, share_out, split_validation

WORK = np.array([5, 900, 40, 41, 39, 7, 300, 12, 0, 77, 76])


def test_an_epoch_sees_every_structure_once_and_the_next_in_another_order():
    sampler = Sampler(WORK, np.arange(10), batch_structures=5, seed=1)
    first = sampler.batch(0) + sampler.batch(1)
    second = sampler.batch(2) + sampler.batch(3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [sampler.epoch_of(step) for step in range(4)] == [0, 0, 1, 1]


def test_steps_do_not_depend_on_what_was_asked_before():
    forward = [Sampler(WORK, np.arange(11), 3, seed=4).batch(step) for step in range(7)]
    sampler = Sampler(WORK, np.arange(11), 3, seed=4)
    assert [sampler.batch(step) for step in reversed(range(7))] == forward[::-1]
    assert Sampler(WORK, np.arange(11), 3, seed=5).batch(0) != forward[0]


def test_shares_of_all_ranks_are_the_global_batch_within_the_cap():
    sampler = Sampler(WORK, np.arange(11), 8, seed=0)
    shares = [sampler.share(0, Layout(replicas=3), rank, max_work=100) for rank in range(3)]
    assert sorted(index for share in shares for part in share for index in part) == sorted(sampler.batch(0))
    for part in (part for share in shares for part in share):
        assert WORK[part].sum() <= 100 or len(part) == 1


def test_a_rank_may_get_nothing():
    assert share_out(WORK, [3], 2, None) == [[[3]], []]


def test_heavy_structures_are_spread_first():
    shares = share_out(WORK, [1, 6, 9, 10, 2], 2, None)
    assert [1] in [share[0] for share in shares]  # 900 outweighs all others together


def test_validation_split_is_disjoint_and_repeatable():
    training, validation = split_validation(20, 0.25, seed=3)
    assert len(validation) == 5
    assert sorted([*training, *validation]) == list(range(20))
    assert np.array_equal(split_validation(20, 0.25, seed=3)[1], validation)
    assert not np.array_equal(split_validation(20, 0.25, seed=4)[1], validation)
    assert [len(part) for part in split_validation(20, 0.0, seed=3)] == [20, 0]
    assert [len(part) for part in split_validation(2, 0.9, seed=3)] == [1, 1]
