"""What the catalogue shows: units by name, numbers for people, and what follows from a machine's numbers."""

import math
from dataclasses import replace

import pytest

from janus.config import read_toml
from perfmodel.machine import load_machine, machine_from_mapping, machine_path
from perfmodel.network.catalogue import bisection, derive, quantities, unit_of, with_unit


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("network.nic_bytes_per_s", "B/s"), ("device.memory_bytes_per_node", "B"), ("device.peaks.float64", "FLOP/s"),
        ("rates.a.matmul_flops_per_s", "FLOP/s"), ("fabric.switch_latency_s", "s"), ("transport.eager_bytes", "B"),
        ("rates.a.fused_s.gated_norm.forward", "s/element"), ("fabric.groups", ""), ("transport.link_fraction", ""),
        ("nodes", ""), ("rates.a.data_edge_s", "s"),
    ],
)  # fmt: skip
def test_units_are_in_the_names(name, unit):
    assert unit_of(name) == unit


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (25e9, "B/s", "25 GB/s"), (3.5e-7, "s", "350 ns"), (2e-6, "s", "2 µs"), (34359738368, "B", "34.36 GB (32 GiB)"),
        (1000, "B", "1 kB"), (999.9999999, "B/s", "1 kB/s"), (0.0, "s", "0 s"), (math.inf, "B/s", "inf B/s"),
        (4.94e18, "FLOP/s", "4.94 EFLOP/s"), (158976, "", "158,976"), (24.0, "", "24"), (0.852, "", "0.852"),
        ([24, 23, 24], "", "24 x 23 x 24"), ("adaptive", "", "adaptive"), (True, "", "True"),
        (2.3e-10, "s/element", "230 ps/element"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, unit, text):
    assert with_unit(value, unit) == text


def test_every_number_of_the_file_is_listed_once_table_by_table():
    values = read_toml(machine_path("jupiter"))
    machine = machine_from_mapping(values, "jupiter")
    listed = quantities(machine, values)
    assert sorted(number.name for number in listed) == sorted(machine.sources)
    tables = [number.name.split(".")[0] for number in listed if "." in number.name]
    assert tables == sorted(tables, key=["device", "network", "fabric", "transport", "rates"].index)
    by_name = {number.name: number for number in listed}
    assert by_name["network.nic_bytes_per_s"].text == "25 GB/s"
    assert by_name["fabric.links_per_group_pair"].assumed
    assert not by_name["fabric.groups"].assumed


def test_what_follows_from_the_numbers():
    frontier = load_machine("frontier")
    derived = derive(frontier)
    assert derived.devices == 9856 * 8
    assert derived.injection_bytes_per_s == 100e9
    # 77 groups joined by 4 cables of 25 GB/s per pair: the middle group is on either side
    assert derived.bisection_bytes_per_s == pytest.approx(38 * 39 * 4 * 25e9, rel=0.05)
    blind = derive(replace(frontier, fabric=None, peaks={}, network=replace(frontier.network, nics_per_node=None)))
    assert (blind.peak, blind.injection_bytes_per_s, blind.bisection_bytes_per_s) == (None, None, None)
    assert "no [fabric] table" in blind.bisection_note


def test_bisection_of_a_job_is_that_of_its_part():
    lineshine = load_machine("lineshine")
    assert bisection(lineshine, 64)[0] == pytest.approx(32 * 200e9)
    across, note = bisection(lineshine, 10**6)
    assert across is None
    assert "places" in note
