"""Candidates: every combination once, none that cannot run, caps from the data, the Pareto front by its definition."""

from itertools import product

import numpy as np
import pytest

from janus.errors import UserError
from janus.layout import layouts_of
from janus.presets import preset
from perfmodel.candidates import COLUMNS, Space, caps_of, enumerate_candidates, pareto_front

MOE, PLAIN = preset("matris-moe-l"), preset("matris-small")


def rows(candidates):
    return [tuple(int(candidates[name][number]) for name in COLUMNS) for number in range(len(candidates))]


@pytest.mark.parametrize(("model", "with_experts"), [(MOE, True), (PLAIN, False)])
def test_every_layout_is_there_and_nothing_twice(model, with_experts):
    found = enumerate_candidates(model, Space(world_sizes=(12,), caps=(500, None)))
    assert len(set(rows(found))) == len(found)
    layouts = {found.layout(number) for number in range(len(found))}
    plain = {layout for layout in layouts if layout.placement == "unit_first"}
    assert plain == set(layouts_of(12, with_experts=with_experts))
    assert all(layout.world_size == 12 for layout in layouts)
    assert set(found["expert_strategy"][found["expert_degree"] == 1]) == {0}, "nothing to choose where none is spread"
    assert set(found["gathered_blocks"][(found["shard_degree"] == 1) & (found["expert_degree"] == 1)]) == {2}


def test_a_placement_matters_on_several_nodes_only():
    one, many = (enumerate_candidates(MOE, Space(world_sizes=(8,), ranks_per_node=size)) for size in (8, 4))
    assert set(one["placement"]) == {0}
    both = many["placement"] == 1
    assert both.any()
    assert (many["unit"][both] > 1).all()
    assert (many["unit"][both] < 8).all()


def test_a_divided_graph_is_not_for_compat_models():
    from dataclasses import replace

    assert set(enumerate_candidates(replace(PLAIN, compat=True), Space(world_sizes=(4,)))["graph_degree"]) == {1}


def test_caps_that_cap_nothing_are_left_out():
    space = Space(world_sizes=(4,), caps=(100, 1000, None))
    found = enumerate_candidates(PLAIN, space, lambda world_size, data_degree: 2000 / data_degree)
    by_degree = {int(d): set(found["cap"][found.data_degree == d]) for d in np.unique(found.data_degree)}
    assert by_degree == {1: {0, 1, 2}, 2: {0, 2}, 4: {0, 2}}


def test_fixed_values_and_what_they_leave_nothing_of():
    fixed = {"graph_degree": (2,), "placement": ("replica_first",), "cap": (None,), "unit": (4,)}
    found = enumerate_candidates(MOE, Space(world_sizes=(8,), caps=(100, None), ranks_per_node=4, fixed=fixed))
    assert set(found["graph_degree"]) == {2}
    assert set(found["placement"]) == {1}
    assert {found.cap(number) for number in range(len(found))} == {None}
    assert set(found["unit"]) == {4}
    with pytest.raises(UserError, match="no layout of 8 ranks has graph_degree 3: give degrees that divide"):
        enumerate_candidates(MOE, Space(world_sizes=(8,), fixed={"graph_degree": (3,)}))
    asked = enumerate_candidates(MOE, Space(world_sizes=(128,), fixed={"unit": (128,), "graph_degree": (1,)}))
    assert set(asked["unit"]) == {128}, "above the largest unit only where asked for"
    with pytest.raises(UserError, match="no number of ranks is left"):
        Space(world_sizes=())


def test_keys_find_equal_candidates():
    found = enumerate_candidates(MOE, Space(world_sizes=(8, 16), caps=(100, None)))
    names = ("world_size", "graph_degree", "recompute")
    first, which = found.keys(names)
    values = [tuple(int(found[name][number]) for name in names) for number in range(len(found))]
    assert len(first) == len(set(values))
    assert [values[first[key]] for key in which] == values


def test_caps_come_from_the_distribution():
    work = np.full(100, 800)
    work[0] = 50_000
    caps = caps_of(work, largest=30_000)
    assert caps[0] == 800, "below the median structure a cap only makes micro-batches of one"
    assert caps[-1] is None
    assert list(caps[:-1]) == sorted(set(caps[:-1]))
    assert max(caps[:-1]) < 30_000
    assert len(caps_of(np.ones(10), largest=1e9)) <= 8
    assert caps_of(np.full(10, 5), largest=5) == (None,)


def test_the_front_is_what_nothing_beats():
    random = np.random.default_rng(1)
    table = random.integers(0, 12, (300, 3)).astype(float)
    table[5] = np.nan
    front = set(pareto_front(table).tolist())
    beaten = {
        one for one, other in product(range(300), repeat=2)
        if (table[other] <= table[one]).all() and (table[other] < table[one]).any()
    }  # fmt: skip
    good = {tuple(table[row]) for row in range(300) if row not in beaten and row != 5}
    assert {tuple(table[row]) for row in front} == good
    assert len(front) == len(good), "equal rows once"
    assert pareto_front(np.empty((0, 2))).tolist() == []
