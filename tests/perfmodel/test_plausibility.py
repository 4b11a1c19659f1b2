"""Warnings about odd numbers: each rule fires on its own mistake and on nothing in the catalogue."""

import copy

import pytest

from janus.config import read_toml
from perfmodel.machine import CATALOGUE, catalogue_names, machine_from_mapping
from perfmodel.plausibility import warnings


def warned(values):
    return warnings(machine_from_mapping(values, "file.toml"), values)


@pytest.fixture
def values():
    return copy.deepcopy(read_toml(CATALOGUE / "frontier.toml"))


@pytest.mark.parametrize("name", catalogue_names())
def test_nothing_in_the_catalogue_looks_odd(name):
    assert warned(read_toml(CATALOGUE / f"{name}.toml")) == []


@pytest.mark.parametrize(
    ("path", "value", "source", "sentence"),
    [
        ("network.nic_bytes_per_s", 200e9, "page: 200 Gb/s", "bits? 2.5e+10 bytes"),
        ("network.nic_bytes_per_s", 800e9, "page", "no NIC is that fast"),
        ("network.nic_bytes_per_s", 25, "page", "it is in bytes per second, a GB/s is 1e9"),
        ("network.nic_bytes_per_s", 1e13, "page", "faster than the node's memory"),
        ("network.fabric_latency_s", 2.0, "page", "a microsecond is 1e-6"),
        ("network.node_bytes_per_s", 9e12, "page", "faster than device.memory_bytes_per_s"),
        ("device.memory_bytes_per_node", 512 * 2**30, "page: 512 GB", "GB is 1e9 bytes, so 5.12e+11"),
        ("device.memory_bytes_per_node", 512e9, "page: 512 GiB", "GiB is 2^30 bytes"),
        ("device.memory_bytes_per_node", 512, "page", "it is in bytes, a GB is 1e9"),
        ("device.memory_bytes_per_s", 40e12, "page", "it is of one device, not of a node"),
        ("device.peaks.float32", 24, "page", "a TFLOP/s is 1e12"),
        ("device.peaks.float32", 10e12, "page", "below device.peaks.float64"),
        ("device.peaks.bfloat16", 20e12, "page", "below device.peaks.float32"),
        ("device.peaks.float64_matrix", 20e12, "page", "below device.peaks.float64 "),
        ("fabric.switch_latency_s", 350.0, "page", "it is in seconds"),
        ("fabric.port_bytes_per_s", 25e9, "page: 25 Gb/s", "bits? 3.125e+09 bytes"),
    ],
)
def test_one_odd_number_is_named(values, path, value, source, sentence):
    *tables, name = path.split(".")
    table = values
    for part in tables:
        table = table[part]
    table[name] = {**table[name], "value": value, "source": source}
    found = warned(values)
    assert [warning for warning in found if sentence in warning and path.rsplit(".", 1)[0] in warning], found


def test_missing_dates_are_counted(values):
    del values["date"]
    assert any("have no date" in warning for warning in warned(values))
