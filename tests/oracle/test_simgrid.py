"""Discrete events of flows beside SimGrid's flow model: the same links, routes and messages.

Without latency both share links max-min fairly, so the times are equal to round-off of SimGrid's own precision; with
latency SimGrid's CM02 favours flows of short paths where paths of different length meet, and 5 % are allowed.
"""

import importlib.util
from pathlib import Path

import pytest

from perfmodel.network.cluster import Cluster
from perfmodel.network.fabric import build_fabric
from perfmodel.network.flow_events import simulate

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "simgrid.py"
spec = importlib.util.spec_from_file_location("simgrid_benchmark", SCRIPT)  # by path: SimGrid's module has its name
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

MISSING = script.simgrid_missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]
every_case = pytest.mark.parametrize(
    ("fabric", "traffic"), [(f, t) for f in script.FABRICS["small"] for t in script.TRAFFIC]
)


@every_case
def test_times_without_latency_are_equal(fabric, traffic):
    row = script.compare("small", fabric, traffic)
    assert row["time_s"] == pytest.approx(row["simgrid_time_s"], rel=1e-5)


@every_case
def test_times_with_latency_are_within_five_percent(fabric, traffic):
    row = script.compare("small", fabric, traffic, latency=True)
    assert row["time_s"] == pytest.approx(row["simgrid_time_s"], rel=0.05)


def test_ranks_that_share_a_node_and_a_nic():
    numbers = {"children": (4, 4), "parents": (1, 2), "link_bytes_per_s": 10e9, "routing": "d-mod-k"}
    cluster = Cluster(
        num_nodes=12, ranks_per_node=3, nics_per_node=1, node_bytes_per_s=40e9, node_latency_s=0.0,
        fabric=build_fabric("fat_tree", numbers, num_nodes=12, nics_per_node=1),
    )  # fmt: skip
    for traffic in ("pairwise all-to-all", "posted all-to-all", "random permutation"):
        schedule, size_bytes = script.make_traffic(traffic, 36), 36.0 * script.MESSAGE_BYTES
        theirs = script.play_in_simgrid(script.simgrid_case(schedule, cluster, size_bytes))
        ours = simulate(schedule, cluster, script.TRANSPORT, size_bytes)
        assert ours.time_s == pytest.approx(theirs["time_s"], rel=1e-5), traffic


def test_the_comparison_notices_another_platform():
    """One uplink at half of its rate in SimGrid only: the times no longer agree."""
    cluster, size_bytes = script.make_cluster("small", "fat tree", latency=False), 64.0 * script.MESSAGE_BYTES
    schedule = script.make_traffic("pairwise all-to-all", 64)
    case = script.simgrid_case(schedule, cluster, size_bytes)
    used = next(links for _, _, links in case["routes"] if len(links) == 4)[1]
    case["capacity_bytes_per_s"][used] /= 2
    theirs = script.play_in_simgrid(case)["time_s"]
    assert theirs > 1.05 * simulate(schedule, cluster, script.TRANSPORT, size_bytes).time_s


def test_routes_over_several_paths_are_refused():
    """SimGrid has one route per pair; a fabric that spreads messages is not handed over as if it did not."""
    numbers = {"shape": (4,), "link_bytes_per_s": 1e9, "port_bytes_per_s": 1e9}
    cluster = Cluster(
        num_nodes=4, ranks_per_node=1, nics_per_node=1, node_bytes_per_s=1e12, node_latency_s=0.0,
        fabric=build_fabric("torus", numbers, num_nodes=4, nics_per_node=1),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="one route per pair"):
        script.simgrid_case(script.make_traffic("pairwise all-to-all", 4), cluster, 4.0 * script.MESSAGE_BYTES)
