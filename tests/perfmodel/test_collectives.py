"""Closed forms of collectives: exact limits, bounds and monotony."""

import math

import pytest

from perfmodel.collectives import (
    Link,
    all_reduce_lower_bound_s,
    pairwise_all_to_all_s,
    ring_all_gather_s,
    ring_all_reduce_s,
    ring_reduce_scatter_s,
    tree_all_reduce_s,
    two_level_all_reduce_s,
)

LINK = Link(latency_s=1e-5, bytes_per_s=1e9)
FORMS = [ring_all_reduce_s, ring_all_gather_s, ring_reduce_scatter_s, pairwise_all_to_all_s, tree_all_reduce_s]


@pytest.mark.parametrize("form", FORMS)
def test_one_rank_and_no_bytes_cost_nothing(form):
    assert form(LINK, 1, 1e6) == 0
    assert form(LINK, 8, 0) == 0


@pytest.mark.parametrize("form", FORMS)
def test_monotone_in_bytes_and_ranks(form):
    assert form(LINK, 8, 2e6) > form(LINK, 8, 1e6)
    assert form(LINK, 16, 1e6) > form(LINK, 8, 1e6)


def test_infinite_bandwidth_leaves_latency_and_no_latency_leaves_bandwidth():
    assert ring_all_reduce_s(Link(latency_s=1e-5, bytes_per_s=math.inf), 4, 1e9) == pytest.approx(6e-5)
    assert ring_all_reduce_s(Link(latency_s=0, bytes_per_s=1e9), 4, 1e9) == pytest.approx(1.5)


def test_all_reduce_is_reduce_scatter_and_all_gather():
    parts = ring_reduce_scatter_s(LINK, 6, 3e6) + ring_all_gather_s(LINK, 6, 3e6)
    assert ring_all_reduce_s(LINK, 6, 3e6) == pytest.approx(parts)


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 1000])
@pytest.mark.parametrize("message_bytes", [8, 1e4, 1e8])
def test_never_below_the_lower_bound(num_ranks, message_bytes):
    bound = all_reduce_lower_bound_s(LINK, num_ranks, message_bytes)
    assert ring_all_reduce_s(LINK, num_ranks, message_bytes) >= bound * (1 - 1e-12)
    assert tree_all_reduce_s(LINK, num_ranks, message_bytes) >= bound * (1 - 1e-12)


def test_two_levels_fall_back_to_one():
    fabric = Link(latency_s=3e-6, bytes_per_s=1e8)
    one_node = two_level_all_reduce_s(LINK, fabric, ranks_per_node=4, num_nodes=1, message_bytes=1e6)
    assert one_node == pytest.approx(ring_all_reduce_s(LINK, 4, 1e6))
    one_each = two_level_all_reduce_s(LINK, fabric, ranks_per_node=1, num_nodes=4, message_bytes=1e6)
    assert one_each == pytest.approx(tree_all_reduce_s(fabric, 4, 1e6))


def test_spanning_two_nodes_is_never_priced_at_the_in_node_speed():
    slow = Link(latency_s=1e-5, bytes_per_s=1e7)
    two_nodes = two_level_all_reduce_s(LINK, slow, ranks_per_node=4, num_nodes=2, message_bytes=1e6)
    assert two_nodes > two_level_all_reduce_s(LINK, slow, ranks_per_node=8, num_nodes=1, message_bytes=1e6)
