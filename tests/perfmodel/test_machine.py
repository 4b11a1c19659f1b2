"""Machine files: the catalogue is sound, every number has a source, errors say what to repair."""

import copy
import re
import tomllib

import pytest

from janus.config import read_toml
from janus.errors import UserError
from perfmodel.full_machine import predict_weak_scaling
from perfmodel.machine import (
    CATALOGUE,
    catalogue_names,
    load_machine,
    machine_from_mapping,
    machine_toml,
    read_machine,
    write_machine,
)
from perfmodel.network.catalogue import bisection, injection_bytes_per_s
from perfmodel.network.fitted import FITTED
from perfmodel.network.routes import Transport
from perfmodel.step_time import rates_for


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


def quantity(value, source="by hand"):
    return {"value": value, "source": source}


def test_every_number_of_the_catalogue_has_a_date():
    for name in catalogue_names():
        machine = load_machine(name)
        undated = [path for path in machine.sources if not machine.dates.get(path)]
        assert undated == [], name


def test_catalogue_has_the_machines_and_their_published_totals():
    totals = {  # devices, sum of peaks in FLOP/s, its dtype
        "frontier": (78_848, 1.888e18, "float64"), "el_capitan": (44_544, 2.731e18, "float64"),
        "jupiter": (23_536, 1.577e18, "float64_matrix"), "fugaku": (635_904, 488e15, "float64"),
        "cnis": (45_056, 2.95e18, "float32"), "lineshine": (327_680, 4.94e18, "float32"),
    }  # fmt: skip
    for name, (devices, total, dtype) in totals.items():
        machine = load_machine(name)
        assert machine.nodes * machine.devices_per_node == devices
        assert devices * machine.peak(dtype).flops_per_s == pytest.approx(total, rel=0.005), name
    wanted = {"aurora", "lumi_g", "leonardo", "alps", "perlmutter", "marenostrum5_acc", "dgx_h100_superpod",
              "gb200_nvl72", "cresco8"}  # fmt: skip
    assert wanted | set(totals) <= set(catalogue_names())


@pytest.mark.parametrize("name", catalogue_names())
def test_the_fabric_of_a_catalogued_machine_holds_all_its_nodes(name):
    across, note = bisection(load_machine(name))
    assert note == ""
    machine = load_machine(name)
    assert 0 < across <= 1.01 * machine.nodes / 2 * injection_bytes_per_s(machine), "never above half of what is sent"


def test_fabric_takes_numbers_words_and_lists_and_keeps_their_sources(values):
    values["fabric"] = {
        "family": "torus", "shape": quantity([4, 4, 2]), "link_bytes_per_s": quantity(6.8e9),
        "port_bytes_per_s": quantity(1e10, "assumed: x"), "wraps": quantity([True, True, False]),
        "wire_latency_s": quantity(0.0),
    }  # fmt: skip
    machine = machine_from_mapping(values, "file.toml")
    assert machine.fabric.family == "torus"
    assert machine.fabric.numbers["shape"] == (4, 4, 2)
    assert machine.fabric.numbers["wraps"] == (True, True, False)
    assert "fabric.port_bytes_per_s" in machine.assumptions()
    assert machine.sources["fabric.link_bytes_per_s"] == "by hand"


@pytest.mark.parametrize("value", [-1, [], [1, -2], {"a": 1}, float("nan")])
def test_fabric_refuses_other_values(values, value):
    values["fabric"] = {"family": "torus", "shape": quantity(value)}
    assert any(problem.startswith("fabric.shape has the value") for problem in read_machine(values).problems)
    values["fabric"] = {"shape": quantity(4)}
    with pytest.raises(UserError, match=r"fabric.family is None"):
        machine_from_mapping(values, "file.toml")


@pytest.mark.parametrize(
    ("family", "key", "value", "sentence"),
    [
        ("torus", "shape", [4, 2.5], r"fabric.shape is \[4, 2.5\]: it must be a whole number"),
        ("torus", "shape", "large", "fabric.shape is 'large': it must be a number"),
        ("torus", "wraps", 3.5, "fabric.wraps is 3.5: it must be true or false"),
        ("dragonfly", "groups", "a", "fabric.groups is 'a': it must be a number"),
        ("dragonfly", "groups", [4], r"fabric.groups is \[4\]: it must be one value"),
        ("dragonfly", "routing", 3, "fabric.routing is 3: it must be a word"),
        ("dragonfly", "groups", 2.5, "fabric.groups is 2.5: it must be a whole number"),
        ("dragonfly", "group", 4, "fabric.group is not a name of a machine file: did you mean 'groups'"),
        ("dragonfly", "port_bytes_per_s", None, "fabric.port_bytes_per_s is missing"),
        ("dragonflie", "groups", 4, "fabric.family: no fabric family 'dragonflie': did you mean 'dragonfly'"),
    ],
)
def test_fabric_names_what_its_family_does_not_take(values, family, key, value, sentence):
    values["fabric"] = {"family": family} | ({} if value is None else {key: quantity(value)})
    problems = read_machine(values).problems
    assert [problem for problem in problems if re.match(sentence, problem)], problems


def test_transport_has_the_constants_given_and_the_defaults_of_the_rest(values):
    del values["transport"]
    assert machine_from_mapping(values, "x").transport is None
    values["transport"] = {"overhead_s": quantity(1e-6), "link_fraction": quantity(0.9), "eager_bytes": quantity(0)}
    made = machine_from_mapping(values, "x").transport
    assert made == Transport(overhead_s=1e-6, link_fraction=0.9, eager_bytes=0.0)
    values["transport"]["reduction_bytes_per_s"] = quantity(float("inf"))
    assert machine_from_mapping(values, "x").transport == made
    values["transport"]["link_fraction"] = quantity(90)
    with pytest.raises(UserError, match=r"transport.link_fraction is 90.0: it is a fraction, at most 1"):
        machine_from_mapping(values, "x")
    values["transport"]["link_fractoin"] = values["transport"].pop("link_fraction")
    with pytest.raises(UserError, match="did you mean 'link_fraction'"):
        machine_from_mapping(values, "x")


def test_one_pass_names_every_mistake(values):
    values["nodes"] = 3
    del values["device"]["memory_bytes_per_s"]
    values["network"]["nic_byte_per_s"] = values["network"].pop("nic_bytes_per_s")
    values["device"]["peaks"]["float23"] = quantity(1e12)
    values["network"]["nics_per_node"] = quantity(1.5)
    values["network"]["node_latency_s"] = {"value": 1e-6, "source": "x", "date": "today", "sauce": "y"}
    verdict = read_machine(values)
    assert verdict.machine is None
    for part in ("nodes is 3 without a source", "device.memory_bytes_per_s is missing",
                 "network.nic_byte_per_s is not a name of a machine file: did you mean 'nic_bytes_per_s'",
                 "device.peaks.float23 is not a name", "network.nics_per_node is 1.5: it must be a whole number",
                 "network.node_latency_s has the date 'today'",
                 "network.node_latency_s has the key 'sauce'"):  # fmt: skip
        assert len([problem for problem in verdict.problems if part in problem]) == 1, part
    assert len(verdict.problems) == 7
    with pytest.raises(UserError, match=r"6 more: 'janus machines check file.toml'"):
        machine_from_mapping(values, "file.toml")


def test_dates_are_the_entrys_the_sources_or_the_files(values):
    values["date"] = "2026"
    values["nodes"] = {"value": 1, "source": "a page", "date": "2024-06"}
    values["devices_per_node"] = quantity(16, "a paper of 2021")
    machine = machine_from_mapping(values, "x")
    assert machine.dates["nodes"] == "2024-06"
    assert machine.dates["devices_per_node"] == "2021"
    assert machine.dates["device.memory_bytes_per_node"] == "2026"


def test_measured_machines_have_the_constants_that_were_fitted_to_them():
    for name, stack in {
        "leonardo": ("leonardo", "mpi-gpu"),
        "marenostrum5_acc": ("mare_nostrum", "nccl"),
        "fugaku": ("fugaku", "mpi"),
        "lumi_g": ("lumi", "crab"),
        "cresco8": ("cresco8", "crab"),
    }.items():
        fitted, own = FITTED[stack].all_scales, load_machine(name).transport
        assert own.link_fraction == pytest.approx(fitted.link_fraction, rel=0.1), name
        assert own.rendezvous_s == pytest.approx(fitted.rendezvous_s, rel=0.6), name
    unmeasured = [name for name in catalogue_names() if "transport.overhead_s" in load_machine(name).assumptions()]
    assert {"frontier", "lineshine", "cnis"} <= set(unmeasured)
    assert "leonardo" not in unmeasured


@pytest.mark.parametrize(
    "bad",
    [3, True, [], [1], {"value": 1}, {"value": "x", "source": "y"}, {"value": [1], "source": "y"},
     {"value": float("inf"), "source": "y"}, {"value": 1, "source": 3}, {"value": None, "source": "y"},
     {"value": 1, "source": "y", "quality": "z"}],
)  # fmt: skip
def test_nothing_of_another_kind_passes_anywhere_in_a_file(values, bad):
    places = [(name,) for name in values if name != "provenance"]
    places += [(table, name) for table in ("device", "network", "fabric") for name in values[table]]
    places += [("device", "peaks", "float32"), ("rates", "ranks_16_threads_38", "op_s")]
    for place in places:
        changed = copy.deepcopy(values)
        table = changed
        for name in place[:-1]:
            table = table[name]
        table[place[-1]] = bad
        if bad == {"value": "x", "source": "y"} and place == ("fabric", "routing"):
            continue  # a word: the family says which
        if bad == {"value": [1], "source": "y"} and place in (("fabric", "children"), ("fabric", "parents")):
            continue  # a list: the family says how long
        assert read_machine(changed).problems, place


def test_machine_without_rates_loads_and_says_so_when_they_are_needed(values):
    del values["rates"]
    machine = machine_from_mapping(values, "x")
    assert machine.rates == ()
    with pytest.raises(UserError, match="compute rates are n/a: add a"):
        rates_for(machine, 1)
    with pytest.raises(UserError, match="compute rates are n/a"):
        predict_weak_scaling(machine)
    values["provenance"] = {"cores": 2}
    with pytest.raises(UserError, match=r"a calibrated host has no \[rates"):
        machine_from_mapping(values, "x")


def test_lists_and_words_are_written_as_they_are_read(values, tmp_path):
    assert read_toml(CATALOGUE / "lineshine.toml") == tomllib.loads(machine_toml(values))
    values["fabric"] = {
        "family": "dragonfly", "groups": quantity(2), "switches_per_group": quantity(2), "routing": quantity("minimal"),
        "ports_per_switch": quantity(2), "links_per_group_pair": quantity(1), "port_bytes_per_s": quantity(1e9),
    }  # fmt: skip
    write_machine(tmp_path / "copy.toml", values)
    assert read_toml(tmp_path / "copy.toml")["fabric"]["routing"]["value"] == "minimal"
    assert load_machine(tmp_path / "copy.toml") == machine_from_mapping(values, "x")
