"""Provenance of an attempt: complete as it is written, and each field missed when it is not there."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from janus.host_facts import NOT_APPLICABLE, not_applicable
from perfmodel.machine import load_machine
from scaling_studies.cells import resolve_cells
from scaling_studies.measured import Host, measured_record
from scaling_studies.provenance import MEANINGS, NOT_LOOKED_INTO, REQUIRED, missing, of_attempt
from scaling_studies.records import DONE, INVALID
from tests.host_machine import write_host
from tests.studies.attempt_folders import running_record, write_attempt
from tests.study_cases import data, weak

# Required field -> where an attempt's folder holds it: file, then keys.
PLACES = {
    "code_revision": ("begin.json", "code", "revision"),
    "code_diff": ("begin.json", "code", "diff"),
    "code_version": ("run/run.json", "provenance", "code_version"),
    "lock_digest": ("begin.json", "code", "distributions"),
    "modules": ("begin.json", "modules"),
    "environment": ("run/run.json", "provenance", "settings"),
    "host": ("begin.json", "host"),
    "node_list": ("begin.json", "node_list"),
    "operating_system": ("run/run.json", "provenance", "host_facts", "here", "operating_system"),
    "devices": ("run/run.json", "provenance", "device_names"),
    "clocks": ("run/run.json", "provenance", "host_facts", "here", "clocks"),
    "driver": ("run/run.json", "provenance", "device_per_rank"),
    "library_versions": ("run/run.json", "provenance", "versions"),
    "placement": ("run/run.json", "provenance", "placement"),
    "seeds": ("run/run.json", "seeds", "data"),
    "job_id": ("begin.json", "job_id"),
    "start": ("begin.json", "utc"),
    "end": ("end.json", "utc"),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Host:
    return Host(machine=load_machine(write_host(tmp_path_factory.mktemp("machine") / "host.toml")))


def measure(study: Path, host: Host, *, file: str = "", keys: tuple[str, ...] = (), value: object = None):
    """The record of an attempt after one value of a file of its folder was replaced."""
    cell = resolve_cells(weak(ranks=(2,)), data())[0]
    folder = write_attempt(study, cell)
    if file:
        values = json.loads((folder / file).read_text())
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / file).write_text(json.dumps(values))
    return measured_record(cell, running_record(cell), folder, host)


def test_a_good_attempt_misses_nothing(tmp_path, host):
    record = measure(tmp_path, host)
    assert record.state == DONE
    assert missing(record.provenance) == []
    assert set(MEANINGS) <= set(record.provenance)


@pytest.mark.parametrize("name", [name for name in REQUIRED if name not in ("resolved_config", "seeds")])
def test_an_attempt_without_a_field_is_invalid_and_names_it(tmp_path, host, name):
    file, *keys = PLACES[name]
    if (file, name) == ("begin.json", "code_revision"):
        keys, value = ["code"], {"version": "of other sources", "distributions": "d", "diff": "d"}
    else:
        value = None
    record = measure(tmp_path, host, file=file, keys=tuple(keys), value=value)
    assert record.state == INVALID
    assert "provenance is missing" in record.reason
    assert any(gap.split(".")[0] == name for gap in missing(record.provenance))
    assert name in record.reason


@pytest.fixture(scope="module")
def complete(tmp_path_factory, host):
    return measure(tmp_path_factory.mktemp("study"), host).provenance


@pytest.mark.parametrize("value", [None, "", "n/a", "unknown", "Unknown ", NOT_APPLICABLE, [None], {"part": "n/a"}])
def test_words_for_no_value_are_missing(complete, value):
    is_text = value is None or isinstance(value, str)
    for name in REQUIRED if is_text else sorted(set(REQUIRED) - set(NOT_LOOKED_INTO)):
        assert [gap.split(".")[0] for gap in missing({**complete, name: value})] == [name]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_field_that_is_gone_is_missing(name, complete):
    assert missing({key: value for key, value in complete.items() if key != name}) == [name]


def test_what_cannot_exist_is_no_gap(complete):
    for name in REQUIRED:
        assert missing({**complete, name: not_applicable("there is none here")}) == []


def test_none_loaded_is_known(complete):
    assert missing({**complete, "modules": [], "environment": {}}) == []
    assert missing({**complete, "placement": [], "resolved_config": {}}) == ["placement", "resolved_config"]


def host_facts_of(node: int) -> dict[str, object]:
    clocks = {"source": "cpufreq", "governors": ["performance"], "scaling_max_mhz": [3000 + node, 3000 + node],
              "scaling_cur_mhz": [2000, 2900]}  # fmt: skip
    return {"clocks": clocks, "driver": "550.54", "operating_system": {"kernel": "Linux 6"}}


RUN = {
    "seeds": {"run": 1, "data": 2},
    "provenance": {
        "device_per_rank": ["cuda:0", "cuda:0"], "device_names": ["H100"],
        "host_facts": {f"n{node}": host_facts_of(node) for node in (1, 2)},
    },
}  # fmt: skip


def gather(run=RUN, begin=None):
    gpus = [{"index": str(place), "name": "H100", "clocks.sm": f"{1200 + place} MHz", "power.limit": "700 W"}
            for place in range(2)]  # fmt: skip
    begin = {"gpus": gpus, "driver": "550.54", **(begin or {})}
    return of_attempt(run, {}, begin, {}, {}, order_seed=3)


def test_facts_of_many_hosts_become_one():
    found = gather()
    assert found["operating_system"] == {"kernel": "Linux 6"}
    assert found["clocks"]["cpu"] == {
        "source": "cpufreq",
        "governors": ["performance"],
        "scaling_max_mhz": [3001, 3002],
    }
    assert found["seeds"] == {"run": 1, "data": 2, "order": 3}


def test_hosts_that_differ_are_all_told():
    run = copy.deepcopy(RUN)
    run["provenance"]["host_facts"]["n2"] |= {"driver": "535.1", "operating_system": {"kernel": "Linux 5"}}
    found = gather(run)
    assert found["operating_system"] == {"kernel": ["Linux 5", "Linux 6"]}
    assert found["driver"] == "535.1, 550.54"


def test_a_gpu_run_needs_driver_and_clocks_of_its_gpus():
    assert gather()["clocks"]["gpu"] == [{"name": "H100", "power.limit": "700 W"}]  # alike, but for readings
    run = copy.deepcopy(RUN)
    for facts in run["provenance"]["host_facts"].values():
        facts["driver"] = not_applicable("no GPU driver on this host")
    found = gather(run, {"gpus": [], "driver": not_applicable("no GPU driver on this host")})
    assert {"clocks.gpu", "driver"} <= set(missing(found))
