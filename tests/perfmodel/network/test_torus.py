"""Tori, meshes and Tofu-D: shortest ways, both ways at equal distance, bisection, folds."""

import numpy as np
import pytest

from perfmodel.network.tofu import TofuD
from perfmodel.network.torus import Torus, job_block
from tests.perfmodel.network.small_fabrics import all_pairs, hops, link_load, message_of_crossings, shortest_hops


def torus(*shape, **changes):
    numbers = {"num_ports": int(np.prod(shape)), "shape": shape, "link_bytes_per_s": 1.0, "port_bytes_per_s": 100.0}
    return Torus(**numbers | changes)


def fugaku(num_nodes, **changes):
    numbers = {"num_ports": num_nodes, "machine_shape": (24, 23, 24), "link_bytes_per_s": 6.8e9,
               "port_bytes_per_s": 40.8e9}  # fmt: skip
    return TofuD(**numbers | changes)


@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 3), (3, 2, 5), (2, 2, 2, 2)])
def test_every_path_is_a_shortest_one(shape, wraps):
    """Links times shares are the hops of each way, so their sum is the shortest distance."""
    fabric = torus(*shape, wraps=wraps)
    source, target = all_pairs(fabric)
    routes = fabric.routes(source, target)
    length = np.bincount(message_of_crossings(routes), weights=routes.shares, minlength=len(routes))
    np.testing.assert_allclose(length, shortest_hops(fabric)[source, target], atol=1e-12)


def test_both_ways_share_at_equal_distance():
    routes = torus(6).routes(np.array([0]), np.array([3]))
    assert hops(routes)[0] == 8
    assert sorted(routes.shares) == [0.5] * 6 + [1.0] * 2


def test_all_to_all_loads_all_links_of_a_torus_alike():
    """Ring of n: each link carries n^2 / 8 messages one way, the textbook's figure for even n."""
    fabric = torus(8, 4)
    load = link_load(fabric, *all_pairs(fabric))[2 * fabric.num_ports :]
    assert set(load[:64]) == {4 * 8**2 / 8}
    assert set(load[64:]) == {8 * 4**2 / 8}


@pytest.mark.parametrize(("shape", "cut"), [((8,), 2), ((4, 4), 8), ((8, 4, 4), 32), ((2, 2, 2), 8)])
def test_bisection_of_even_tori(shape, cut):
    """Two cables per ring that is cut: 2 x prod(shape) / longest side."""
    assert torus(*shape).bisection_bytes_per_s() == cut == 2 * np.prod(shape) / max(shape)
    assert torus(*shape, wraps=False).bisection_bytes_per_s() == cut / 2


@pytest.mark.parametrize(
    ("num_nodes", "block"), [(1, (1, 1, 1)), (8, (2, 2, 2)), (64, (4, 4, 4)), (512, (8, 8, 8)), (17, (2, 3, 3))]
)
def test_jobs_get_compact_blocks(num_nodes, block):
    assert job_block("torus", num_nodes, (48, 69, 48), None) == block


@pytest.mark.parametrize("num_nodes", [8, 512, 1000, 16384, 65536, 158_000, 158_976])
def test_jobs_of_all_sizes_fold_into_tofu(num_nodes):
    fabric = fugaku(num_nodes)
    assert num_nodes <= np.prod(fabric.job_shape) < 1.1 * num_nodes + 8
    assert len(set(fabric.router_of(np.arange(num_nodes)))) == num_nodes


def test_a_block_is_a_mesh_unless_it_spans_the_machine():
    assert torus(8, 8, num_ports=32, job_shape=(8, 4)).wraps == (True, False)


def test_a_virtual_torus_is_folded_so_that_neighbours_are_neighbours():
    fabric = fugaku(4 * 6 * 4, job_shape=(4, 6, 4))
    place = np.array(np.unravel_index(np.arange(96), (4, 6, 4)))
    for axis, size in enumerate((4, 6, 4)):
        onward = place.copy()
        onward[axis] = (onward[axis] + 1) % size
        there = np.ravel_multi_index(tuple(onward), (4, 6, 4))
        assert set(hops(fabric.routes(np.arange(96), there))) == {3}, f"axis {axis}"


def test_tofu_has_ten_cables_per_node():
    """Ajima et al. 2018: ten ports; a full block that spans the machine in X, Y and Z uses all of them."""
    fabric = TofuD(num_ports=12 * 27, machine_shape=(3, 3, 3), link_bytes_per_s=1.0, port_bytes_per_s=1.0)
    degree = np.bincount(fabric.link_source[2 * 324 :] - 324)
    assert set(degree) == {10}


@pytest.mark.parametrize(("num_nodes", "all_to_all_s"), [(64, 39.5e-3), (512, 79e-3)])
def test_fugaku_bisection_bound_of_an_all_to_all(num_nodes, all_to_all_s):
    """512 MiB per node on 4x4x4 and 8x8x8: the bounds that its measurements (54.3 and 138 ms) are compared with."""
    fabric = fugaku(num_nodes)
    assert len(set(fabric.job_shape)) == 1
    crossing_bytes = num_nodes / 2 * 512 * 2**20 / 2
    assert crossing_bytes / fabric.bisection_bytes_per_s() == pytest.approx(all_to_all_s, rel=2e-3)


def test_all_of_fugaku():
    assert fugaku(158_976).job_shape == (48, 69, 48)
