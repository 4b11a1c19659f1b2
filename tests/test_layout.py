"""Layouts: the arithmetic of the degrees, what is refused, what is enumerated."""

import pytest

from janus.errors import UserError
from janus.layout import Layout, divisors, layouts_of


def test_default_is_one_rank_of_pure_data_parallel():
    layout = Layout()
    assert layout.world_size == 1
    assert layout.is_pure_data_parallel
    assert layout.data_degree == 1


def test_degrees_overlay_one_unit():
    layout = Layout(unit=8, replicas=3, shard_degree=8, graph_degree=4, expert_degree=2)
    assert layout.world_size == 24
    assert layout.data_degree_in_unit == 2
    assert layout.data_degree == 6
    assert not layout.is_pure_data_parallel


def test_degree_that_does_not_divide_the_unit_is_refused_with_the_choices():
    with pytest.raises(UserError, match="expert_degree 3 does not divide the unit of 8 ranks: use one of 1, 2, 4, 8"):
        Layout(unit=8, replicas=1, expert_degree=3)


@pytest.mark.parametrize("value", [0, -2, 1.5, True, "2"])
def test_degree_must_be_a_positive_whole_number(value):
    with pytest.raises(UserError, match="replicas"):
        Layout(replicas=value)


def test_wrong_world_size_names_both_numbers_and_the_repair():
    with pytest.raises(UserError, match=r"needs 4 ranks .* but 3 were started: start 4 or plan again"):
        Layout(replicas=4).check_world_size(3)
    Layout(replicas=4).check_world_size(4)


def test_mapping_reads_back_equal():
    layout = Layout(unit=4, replicas=2, shard_degree=4, graph_degree=2)
    assert Layout(**layout.to_mapping()) == layout


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_enumeration_fills_the_world_without_repeats():
    layouts = list(layouts_of(8))
    assert layouts[0] == Layout(replicas=8)
    assert len(set(layouts)) == len(layouts)
    assert all(layout.world_size == 8 for layout in layouts)
    # unit u with all degrees dividing u and the largest equal to u: n^3 - (n-1)^3 for the n divisors of a power of 2
    assert len(layouts) == 1 + (8 - 1) + (27 - 8) + (64 - 27)


def test_enumeration_without_experts_and_with_a_limit():
    layouts = list(layouts_of(8, with_experts=False, max_unit=2))
    assert {layout.expert_degree for layout in layouts} == {1}
    assert {layout.unit for layout in layouts} == {1, 2}
    with pytest.raises(UserError, match="at least 1"):
        list(layouts_of(0))


@pytest.mark.parametrize("placement", ["unit_first", "replica_first"])
def test_ranks_and_coordinates_are_inverse(placement):
    layout = Layout(unit=4, replicas=3, shard_degree=4, graph_degree=2, expert_degree=1, placement=placement)
    for rank in range(layout.world_size):
        place = layout.coordinates(rank)
        assert layout.rank_at(place.replica, place.position) == rank
        assert 0 <= place.data < layout.data_degree
    with pytest.raises(UserError, match="rank 12 is outside"):
        layout.coordinates(12)


@pytest.mark.parametrize("placement", ["unit_first", "replica_first"])
@pytest.mark.parametrize("axis", ["shard", "shard_copies", "expert", "expert_copies", "graph", "unit", "world"])
def test_groups_partition_the_world_and_agree_with_the_coordinates(axis, placement):
    layout = Layout(unit=8, replicas=2, shard_degree=4, graph_degree=2, expert_degree=8, placement=placement)
    groups = layout.groups(axis)
    assert sorted(rank for group in groups for rank in group) == list(range(16))
    sizes = {"shard": 4, "shard_copies": 4, "expert": 8, "expert_copies": 2, "graph": 2, "unit": 8, "world": 16}
    assert {len(group) for group in groups} == {sizes[axis]}
    for group in groups:
        places = [layout.coordinates(rank) for rank in group]
        if axis in ("shard", "expert", "graph"):
            assert [getattr(place, axis) for place in places] == list(range(len(group)))
            assert len({place.replica for place in places}) == 1
        if axis == "graph":
            assert len({place.data for place in places}) == 1
        if axis.endswith("_copies"):
            assert len({getattr(place, axis.removesuffix("_copies")) for place in places}) == 1


def test_placement_decides_which_ranks_are_neighbours():
    near = Layout(unit=2, replicas=3, graph_degree=2)
    assert near.groups("graph") == [[0, 1], [2, 3], [4, 5]]
    far = Layout(unit=2, replicas=3, graph_degree=2, placement="replica_first")
    assert far.groups("graph") == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(UserError, match="placement is 'random'"):
        Layout(placement="random")


@pytest.mark.parametrize("placement", ["unit_first", "replica_first"])
@pytest.mark.parametrize("axis", ["shard", "shard_copies", "expert", "expert_copies", "graph", "unit", "world"])
def test_groups_are_ascending_as_process_groups_need_them(axis, placement):
    layout = Layout(unit=4, replicas=3, shard_degree=2, graph_degree=4, expert_degree=1, placement=placement)
    assert all(group == sorted(group) for group in layout.groups(axis))
