"""Machine files: the catalogue is sound, every number has a source, errors say what to repair."""

import copy

import pytest

from janus.config import read_toml
from janus.errors import UserError
from perfmodel.machine import (
    CATALOGUE,
    catalogue_names,
    load_machine,
    machine_from_mapping,
    machine_toml,
    write_machine,
)


@pytest.fixture
def values():
    return copy.deepcopy(read_toml(CATALOGUE / "lineshine.toml"))


@pytest.mark.parametrize("name", catalogue_names())
def test_catalogue_loads_with_a_source_for_every_number(name):
    machine = load_machine(name)
    assert machine.name == name
    assert all(source.strip() for source in machine.sources.values())
    assert not machine.is_calibrated_host


def test_lineshine_adds_up_to_the_published_peak():
    machine = load_machine("lineshine")
    total = machine.nodes * machine.devices_per_node * machine.peak("float32").flops_per_s
    assert total == pytest.approx(4.94e18, rel=0.001)
    assert "network.fabric_latency_s" in machine.assumptions()
    assert "device.memory_bytes_per_node" not in machine.assumptions()


def test_unknown_peak_is_none():
    assert load_machine("lineshine").peak("bfloat16") is None


def test_unknown_machine_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'lineshine'"):
        load_machine("linshine")
    with pytest.raises(UserError, match="no file"):
        load_machine("nowhere/host.toml")


def test_number_without_a_source_is_refused(values):
    values["nodes"] = 20480
    with pytest.raises(UserError, match="nodes is 20480 without a source"):
        machine_from_mapping(values, "file.toml")
    values["nodes"] = {"value": 20480}
    with pytest.raises(UserError, match="nodes has no source"):
        machine_from_mapping(values, "file.toml")


@pytest.mark.parametrize("value", [-1, 0, "many", True])
def test_number_must_be_above_zero(values, value):
    values["device"]["memory_bytes_per_s"] = {"value": value, "source": "somewhere"}
    with pytest.raises(UserError, match=r"device.memory_bytes_per_s has the value"):
        machine_from_mapping(values, "file.toml")


def test_missing_number_and_wrong_schema_are_named(values):
    del values["rates"]["ranks_16_threads_38"]["op_s"]
    with pytest.raises(UserError, match=r"file.toml: rates.ranks_16_threads_38.op_s is missing"):
        machine_from_mapping(values, "file.toml")
    with pytest.raises(UserError, match="schema"):
        machine_from_mapping({"schema": "other/1"}, "file.toml")


def test_text_reads_back_equal_and_a_bad_machine_is_not_written(values, tmp_path):
    path = tmp_path / "deep" / "copy.toml"
    write_machine(path, values)
    assert machine_from_mapping(read_toml(path), "x") == machine_from_mapping(values, "x")
    assert "quality" not in machine_toml(values)
    before = path.read_text()
    del values["nodes"]
    with pytest.raises(UserError, match="nodes is missing"):
        write_machine(path, values)
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["copy.toml"]
