"""Rehearsals played on machines: overlap, slower ranks and depth by hand, files that are not rehearsals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from janus.config import to_mapping
from janus.errors import UserError
from janus.presets import preset
from perfmodel.machine import catalogue_names, load_machine
from perfmodel.network.noise import Noise
from perfmodel.prices import FabricPrices, Prices, size_of
from perfmodel.rehearsal import predicted_seconds, read_rehearsal, rehearsal_of, replay
from perfmodel.rehearsal_memory import rehearsal_need
from perfmodel.step_work import RunSettings
from perfmodel.traffic_parameters import trained_parameters
from tests.host_machine import write_host

MACHINE = load_machine("lineshine")
LAYOUT = {"unit": 4, "replicas": 4, "shard_degree": 4, "graph_degree": 2, "expert_degree": 4, "placement": "unit_first"}
ROWS = {"structures": 1, "atoms": 20, "edges": 900, "bonds": 200, "angles": 1500}
SENT = {"expert": 3 << 20, "shard": 6 << 20}  # bytes; one second per MiB of m


class OneSecondPerMiB(Prices):
    """A price list that can be added up by hand."""

    def _seconds(self, layout: Any, axis: Any, collective: Any, sizes: Any) -> Any:
        return sizes / 2**20


def document(*events: tuple[str, float, str | None], fewer: dict | None = None, **changes: Any) -> dict[str, Any]:
    """events: (at, seconds before it, axis); an axis's wait is for its last call that was not waited for."""
    calls: list[dict[str, Any]] = []
    rows = []
    under_way: dict[str, list[int]] = {}
    for at, seconds, axis in events:
        number = None
        if at == "start":
            assert axis is not None
            number = len(calls)
            sent = int(SENT[axis] * 3 / 4)  # (n - 1) / n of m
            calls.append({"phase": "FE", "axis": axis, "collective": "all_gather", "ranks": 4, "sent_bytes": sent,
                          "received_bytes": sent})  # fmt: skip
            under_way.setdefault(axis, []).append(number)
        elif at == "wait":
            number = under_way[axis or ""].pop(0)
        rows.append({"at": at, "call": number, "during": "FE", "compute_s": seconds})
    content = {
        "schema": "janus.rehearsal/1", "model": to_mapping(preset("matris-moe-tiny")), "layout": LAYOUT, "rank": 0,
        "settings": to_mapping(RunSettings()), "with_optimizer": True, "threads": 1, "device_name": "a processor",
        "work": {"rank": 100.0, "largest": 100.0}, "num_blocks": 2, "micro_batches": [ROWS], "fewer_blocks": fewer,
        "step": {"calls": calls, "events": rows, "phase_s": {"FE": sum(row["compute_s"] for row in rows)}},
    }  # fmt: skip
    return content | changes


def played(*events: tuple[str, float, str | None], **options: Any) -> Any:
    return replay(rehearsal_of(document(*events)), MACHINE, prices=OneSecondPerMiB(), **options)


def test_what_is_computed_meanwhile_hides_a_collective() -> None:
    found = played(("start", 1.0, "expert"), ("mark", 5.0, None), ("wait", 0.0, "expert"), ("mark", 2.0, None))
    assert found.step_s == pytest.approx(8.0)
    assert found.exposed_s == {}
    assert found.transfer_s == {"expert": pytest.approx(3.0)}


def test_what_is_left_of_it_is_exposed() -> None:
    events = (("start", 1.0, "expert"), ("wait", 1.0, "expert"), ("mark", 2.0, None))
    found = played(*events)
    assert found.step_s == pytest.approx(6.0)
    assert found.compute_s == pytest.approx(4.0)
    assert found.exposed_s == {"expert": pytest.approx(2.0)}
    assert found.phase_s["FE"] == pytest.approx(6.0)
    assert played(*events, overlap=False).exposed_s == {"expert": pytest.approx(3.0)}


def test_axes_have_streams_of_their_own_and_one_stream_queues() -> None:
    events = (("start", 0.0, "shard"), ("start", 0.0, "expert"), ("wait", 0.0, "expert"), ("wait", 0.0, "shard"))
    assert played(*events).step_s == pytest.approx(6.0)
    assert played(*events, one_stream=True).step_s == pytest.approx(9.0)
    twice = (("start", 0.0, "expert"), ("start", 0.0, "expert"), ("wait", 0.0, "expert"), ("wait", 0.0, "expert"))
    assert played(*twice).step_s == pytest.approx(6.0)


def test_a_slower_rank_is_waited_for() -> None:
    events = (("start", 2.0, "expert"), ("wait", 0.0, "expert"), ("mark", 2.0, None))
    found = played(*events, slowest_over_this=1.5)
    assert found.step_s == pytest.approx(3.0 + 3.0 + 3.0)
    assert found.exposed_s == {"expert": pytest.approx(4.0)}
    assert found.late_s == pytest.approx(1.0)
    assert found.rest_s == pytest.approx(1.0)
    content = document(*events) | {"work": {"rank": 100.0, "largest": 150.0}}
    by_work = replay(rehearsal_of(content), MACHINE, prices=OneSecondPerMiB())
    assert by_work.step_s == pytest.approx(found.step_s)
    noisy = played(*events, noise=Noise(compute_deviation=0.1))
    assert noisy.step_s > played(*events).step_s


def test_depths_are_drawn_out_in_a_straight_line() -> None:
    deep = document(
        ("start", 4.0, "expert"), ("wait", 0.0, "expert"), ("start", 4.0, "expert"), ("wait", 1.0, "expert")
    )
    shallow = document(("start", 4.0, "expert"), ("wait", 0.0, "expert"))
    deep |= {"model": to_mapping(replace(preset("matris-moe-tiny"), num_blocks=5)),
             "fewer_blocks": shallow | {"num_blocks": 1}}  # fmt: skip
    found = replay(rehearsal_of(deep), MACHINE, prices=OneSecondPerMiB())
    assert found.extrapolated
    assert found.step_s == pytest.approx(14.0 + 3 * 7.0)
    assert found.compute_s == pytest.approx(9.0 + 3 * 5.0)
    assert found.exposed_s == {"expert": pytest.approx(5.0 + 3 * 2.0)}
    assert any("drawn out from rehearsals of 1 and 2" in note for note in found.notes)
    deep["fewer_blocks"] = document(("mark", 20.0, None)) | {"num_blocks": 1}
    with pytest.raises(UserError, match="the host was busy"):
        replay(rehearsal_of(deep), MACHINE, prices=OneSecondPerMiB())


def test_compute_of_the_target_machine() -> None:
    """modelled: each phase as the machine's rates predict; scaled on the host itself: as measured."""
    recorded = rehearsal_of(document(("mark", 4.0, None)))
    rates = MACHINE.require_rates()[0]
    modelled = replay(recorded, MACHINE, compute="modelled", prices=OneSecondPerMiB())
    assert modelled.phase_s["FE"] == pytest.approx(predicted_seconds(recorded, rates)["FE"])
    scaled = replay(recorded, MACHINE, compute="scaled", host=MACHINE, prices=OneSecondPerMiB())
    assert scaled.step_s == pytest.approx(4.0)
    with pytest.raises(UserError, match="pass it with --host"):
        replay(recorded, MACHINE, compute="scaled", prices=OneSecondPerMiB())


def test_collectives_cost_what_the_fabric_says() -> None:
    recorded = rehearsal_of(document(("start", 0.0, "shard"), ("wait", 0.0, "shard")))
    wanted = FabricPrices(MACHINE).seconds(
        recorded.layout, "shard", "all_gather", size_of("all_gather", np.array([SENT["shard"] * 3 / 4]), 4)
    )
    found = replay(recorded, MACHINE)
    assert found.step_s == pytest.approx(float(wanted[0]))
    [row] = found.collectives
    assert (row["axis"], row["calls"], row["sent_bytes"]) == ("shard", 1, SENT["shard"] * 3 // 4)
    assert row["seconds"] == pytest.approx(float(wanted[0]))


@pytest.mark.parametrize("name", catalogue_names())
def test_every_machine_of_the_catalogue_can_play_it(name: str) -> None:
    """Measured compute needs no rates of the machine; modelled compute does."""
    recorded, machine = rehearsal_of(document(("start", 1.0, "expert"), ("wait", 0.0, "expert"))), load_machine(name)
    found = replay(recorded, machine)
    assert 1.0 < found.step_s < 1.1
    if not machine.rates:
        with pytest.raises(UserError, match="rates"):
            replay(recorded, machine, compute="modelled")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"schema": "janus.plan/1"})])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match="make it again with 'janus rehearse'"):
        read_rehearsal(tmp_path / "r.json")


def test_a_file_without_a_part_is_refused() -> None:
    content = document(("mark", 1.0, None))
    del content["layout"]
    with pytest.raises(UserError, match="lacks 'layout'"):
        rehearsal_of(content)


def test_memory_needed_for_a_shard_is_a_fraction_of_the_model() -> None:
    """matris-moe-l over 8 ranks: at least its values and gradients, less than one whole model of values."""
    model, recorded = preset("matris-moe-l"), rehearsal_of(document(("mark", 1.0, None)))
    layout = replace(recorded.layout, unit=8, shard_degree=8, graph_degree=8, expert_degree=8)
    values = 4 * sum(trained_parameters(model).values())
    needs = {on: rehearsal_need(model, layout, 3, recorded.micro_batches, RunSettings(), with_optimizer=on)
             for on in (True, False)}  # fmt: skip
    assert 2 * values / 8 < needs[False].total_bytes < values < needs[True].total_bytes
    few = rehearsal_need(replace(model, num_blocks=1), layout, 3, recorded.micro_batches, RunSettings())
    assert few.total_bytes < needs[True].total_bytes / 3
    assert few.building_bytes < needs[True].building_bytes < values


def test_the_host_of_a_scaled_replay_is_the_one_that_rehearsed(tmp_path) -> None:
    recorded = rehearsal_of(document(("mark", 4.0, None)))
    host = replace(load_machine(write_host(tmp_path / "host.toml")), provenance={"cpu": "another processor"})
    with pytest.raises(UserError, match="give the machine file of the host that rehearsed"):
        replay(recorded, MACHINE, compute="scaled", host=host, prices=OneSecondPerMiB())
