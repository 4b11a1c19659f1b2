"""Prices of collectives on an axis: sizes of the ledger's bytes, measured hosts, fabrics, limits."""

from dataclasses import replace

import numpy as np
import pytest

from janus.errors import UserError
from janus.layout import Layout
from perfmodel.collective_rates import CollectiveRates
from perfmodel.machine import load_machine
from perfmodel.prices import MEETING_S, FabricPrices, HostPrices, group_array, group_size, prices_for, size_of, sizes_of
from tests.host_machine import write_host

AXES = ("shard", "graph", "expert", "shard_copies", "expert_copies", "world")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
LAYOUT = Layout(unit=4, replicas=2, shard_degree=4, graph_degree=2, expert_degree=4)


@pytest.fixture
def machine(tmp_path):
    return load_machine(write_host(tmp_path / "host.toml"))


def rates(collective, ranks, groups, latency_s=1e-4, bytes_per_s=1e9):
    return CollectiveRates(
        transport="gloo", collective=collective, ranks=ranks, groups=groups, latency_s=latency_s,
        bytes_per_s=bytes_per_s,
    )  # fmt: skip


@pytest.mark.parametrize("placement", ["unit_first", "replica_first"])
@pytest.mark.parametrize("axis", AXES)
def test_groups_are_those_of_the_layout(axis, placement):
    layout = Layout(unit=8, replicas=3, shard_degree=4, graph_degree=2, expert_degree=8, placement=placement)
    assert group_array(layout, axis).tolist() == layout.groups(axis)
    assert group_size(layout, axis) == len(layout.groups(axis)[0])


def test_sizes_are_the_ledgers_bytes_undone():
    n, m = 4, 1_000_000
    sent = {"all_gather": (n - 1) * m // n, "reduce_scatter": (n - 1) * m // n, "all_reduce": 2 * (n - 1) * m // n,
            "all_to_all": (n - 1) * m // n}  # fmt: skip
    for collective, sent_bytes in sent.items():
        row = {"collective": collective, "calls": 5, "sent_bytes": 5 * sent_bytes}
        assert sizes_of(row, n) == pytest.approx(m, abs=2)
    assert size_of("all_reduce", [0.0, 10.0], 1).tolist() == [0.0, 0.0]


def test_a_measured_collective_is_read_as_it_is(machine):
    measured = replace(machine, collectives=tuple(
        rates(collective, ranks, groups, latency_s=ranks * 1e-4, bytes_per_s=1e9 / groups)
        for collective in COLLECTIVES for ranks, groups in ((2, 1), (2, 2), (4, 1))
    ))  # fmt: skip
    prices = HostPrices(measured, machine.rates[2])
    layout = Layout(unit=2, replicas=2, shard_degree=2)
    met = MEETING_S["gloo"][1]  # four ranks share two cores
    pairs = prices.seconds(layout, "shard", "all_gather", [0.0, 1e6])
    assert pairs == pytest.approx([met / 3**0.5 + 2e-4, met / 3**0.5 + 2e-4 + 2e-3])
    assert prices.seconds(layout, "world", "all_reduce", 1e6) == pytest.approx(met + 4e-4 + 1e-3)
    roomy = HostPrices(replace(measured, devices_per_node=4), machine.rates[2])
    assert roomy.seconds(layout, "world", "all_reduce", 1e6) == pytest.approx(MEETING_S["gloo"][0] + 4e-4 + 1e-3)
    assert not prices.notes
    eight = Layout(unit=8, shard_degree=8)
    assert prices.seconds(eight, "shard", "all_gather", 1e6) > prices.seconds(layout, "world", "all_gather", 1e6)
    assert "8 ranks in 1 groups was not calibrated" in prices.notes[0]


def test_a_host_without_measured_collectives_takes_rings_and_says_so(machine):
    prices = HostPrices(machine, machine.rates[1])
    pair = Layout(unit=2, shard_degree=2)
    assert prices.seconds(pair, "world", "all_reduce", 1e6) == pytest.approx(2 * (1e-4 + 5e5 / 1e9))
    assert not prices.notes
    assert prices.seconds(pair, "shard", "all_gather", 1e6) == pytest.approx(1e-4 + 5e5 / 1e9)
    assert "gloo all_gather was not calibrated" in prices.notes[0]
    with pytest.raises(UserError, match="no all-reduce timings for 2 ranks"):
        HostPrices(machine, machine.rates[0]).seconds(pair, "world", "all_reduce", 1e6)


def test_one_rank_pays_nothing(machine):
    for prices in (HostPrices(machine, machine.rates[0]), FabricPrices(load_machine("alps"))):
        for axis in AXES:
            for collective in COLLECTIVES:
                assert prices.seconds(Layout(), axis, collective, [0.0, 1e9]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("placement", ["unit_first", "replica_first"])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_more_bytes_are_never_faster_on_a_fabric(collective, placement):
    prices = FabricPrices(load_machine("alps"))
    layout = Layout(unit=4, replicas=8, shard_degree=4, graph_degree=2, expert_degree=4, placement=placement)
    for axis in AXES:
        seconds = prices.seconds(layout, axis, collective, np.logspace(0, 9, 60))
        assert (np.diff(seconds) >= 0).all()
        assert seconds[0] > 0


def test_units_inside_nodes_are_cheaper_than_units_across():
    prices = FabricPrices(load_machine("dgx_h100_superpod"))
    near = Layout(unit=8, replicas=4, shard_degree=8)
    far = replace(near, placement="replica_first")
    assert prices.seconds(near, "shard", "all_gather", 1e8) < prices.seconds(far, "shard", "all_gather", 1e8)
    assert prices.seconds(near, "shard_copies", "all_reduce", 1e8) > prices.seconds(
        far, "shard_copies", "all_reduce", 1e8
    )


def test_what_a_machine_lacks_is_refused():
    machine = load_machine("alps")
    with pytest.raises(UserError, match=r"no \[fabric\] table"):
        prices_for(replace(machine, fabric=None), rates=None)
    with pytest.raises(UserError, match="which has"):
        FabricPrices(machine).seconds(Layout(replicas=4 * machine.nodes + 4), "world", "all_reduce", 1.0)
