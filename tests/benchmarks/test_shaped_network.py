"""The collectives' benchmark on a shaped network: what of it runs without root, and the network itself with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shaped_network
from shaped import network, prediction
from shaped.launch import launcher_script
from shaped.shape import Shape

from perfmodel.network.algorithms import make_schedule
from perfmodel.network.routes import Transport

SCRIPT = Path(shaped_network.__file__)
SHAPES = [Shape(), Shape(racks=3, hosts_per_rack=3, rack_bytes_per_s=2e6, cable_delay_s=1e-3)]


@pytest.mark.parametrize("shape", SHAPES, ids=["2x2", "3x3"])
def test_the_model_sees_the_links_that_the_switch_has(shape):
    """Between all hosts: the same delays, the same slowest rate, and links shared by the same pairs."""
    pairs = [(s, t) for s in range(shape.num_hosts) for t in range(shape.num_hosts) if s != t]
    cluster = prediction.make_cluster(shape)
    routes = cluster.routes(*(np.array(ranks) for ranks in zip(*pairs, strict=True)))
    crossed = [routes.links[begin:end] for begin, end in zip(routes.offsets[:-1], routes.offsets[1:], strict=True)]
    for pair, links, latency_s in zip(pairs, crossed, routes.latency_s, strict=True):
        delay_s, byte_s = prediction.alone_s(shape, pair, 1.0)
        assert latency_s == pytest.approx(delay_s, rel=1e-12)
        assert 1 / cluster.capacity_bytes_per_s[links].min() == pytest.approx(byte_s, rel=1e-12)
    for first, first_links in zip(pairs, crossed, strict=True):
        for second, second_links in zip(pairs, crossed, strict=True):
            shared = len(set(shape.path(*first)) & set(shape.path(*second)))
            assert shared == len(set(first_links.tolist()) & set(second_links.tolist())), (first, second)


def test_racks_are_oversubscribed():
    assert Shape().oversubscription == 4.0


def messages_of(shape: Shape, transport: Transport) -> list[dict]:
    rows = []
    for pair in ([0, 1], [0, 2]):
        for size in shaped_network.MESSAGE_SIZES:
            seconds = prediction.wire_s(shape, pair, size, transport.link_fraction) + transport.overhead_s
            seconds += transport.rendezvous_s if size > transport.eager_bytes else 0.0
            rows.append({"kind": "message", "pair": pair, "size_bytes": size, "seconds": [seconds] * 3})
    return rows


@pytest.mark.parametrize("eager_bytes", [4 << 10, 16 << 10, 64 << 10])
def test_calibration_finds_the_constants_of_messages_made_with_them(eager_bytes):
    made = Transport(
        overhead_s=3e-4, rendezvous_s=5e-4, eager_bytes=eager_bytes, link_fraction=0.97, reduction_bytes_per_s=1e9
    )
    found = prediction.calibrate(Shape(), messages_of(Shape(), made), 1e9)
    for name in ("overhead_s", "rendezvous_s", "eager_bytes", "link_fraction", "reduction_bytes_per_s"):
        assert getattr(found, name) == pytest.approx(getattr(made, name), rel=1e-9), name


@pytest.mark.parametrize("setting", ["gloo", *shaped_network.MPI_SETTINGS])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_collective_of_every_setting_has_a_schedule(setting, num_ranks):
    for collective in shaped_network.COLLECTIVES:
        assert make_schedule(*prediction.ALGORITHMS[setting][collective], num_ranks).num_rounds > 0


def test_a_measurement_is_judged_by_the_prediction_of_its_own_groups():
    """Times made by the model have no error; doubled ones are predicted at half."""
    shape, made = Shape(), Transport(overhead_s=3e-4, link_fraction=0.98, reduction_bytes_per_s=1e10)
    cluster = prediction.make_cluster(shape)
    lines = [{"kind": "reduction", "bytes_per_s": 1e10}, *messages_of(shape, made)]
    for axis, groups in shaped_network.make_axes(shape).items():
        for collective, factor in (("all_gather", 1.0), ("all_to_all", 2.0)):
            scheduled = prediction.ALGORITHMS["gloo"][collective]
            seconds = factor * prediction.predict(cluster, made, scheduled, groups, 1 << 20)["events_s"]
            lines.append({
                "kind": "collective", "axis": axis, "groups": groups, "collective": collective, "size_bytes": 1 << 20,
                "seconds": [seconds, seconds, 9.0], "late_s": [0.0],
            })  # fmt: skip
    judged = shaped_network.judge(shape, "gloo", lines)
    for row in judged["rows"]:
        assert row["error"] == pytest.approx(0.0 if row["collective"] == "all_gather" else -0.5, abs=1e-9), row
    found = shaped_network.summary([judged])
    assert found["gloo"] == found["all"]
    assert (found["gloo"]["rows"], found["gloo"]["within_aim"]) == (6, 3)
    assert found["gloo"]["largest_error"] == pytest.approx(0.5)


def test_groups_across_racks_share_the_uplinks_and_groups_in_racks_do_not():
    shape = Shape()
    axes, cluster = shaped_network.make_axes(shape), prediction.make_cluster(shape)
    scheduled = ("all_to_all", "linear")
    for axis, slower in (("in racks", 1.0), ("across racks", 2.0)):
        both, one = (
            prediction.predict(cluster, Transport(), scheduled, groups, 1 << 24)["events_s"]
            for groups in (axes[axis], axes[axis][:1])
        )
        assert both / one == pytest.approx(slower, rel=2e-3), axis


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux's setpriv")
def test_hydras_words_reach_the_host_that_they_name(tmp_path):
    script = tmp_path / "on_host"
    script.write_text(launcher_script({"one": ["env", "HOST=1"], "two": ["env", "HOST=2"]}))
    run = ["sh", str(script), "-x"]
    found = subprocess.run([*run, "two", "sh", "-c", "'echo $HOST'"], capture_output=True, text=True, check=True)
    assert found.stdout == "2\n"
    lost = subprocess.run([*run, "three", "true"], capture_output=True, text=True, check=False)
    assert (lost.returncode, lost.stderr) == (1, "no host three\n")


@pytest.mark.parametrize(
    ("name", "value", "word"), [("geteuid", lambda: 1000, "root"), ("platform", "darwin", "Linux")]
)
def test_where_it_cannot_run_one_sentence_says_so(name, value, word, monkeypatch, capsys):
    monkeypatch.setattr(os if name == "geteuid" else sys, name, value)
    if name == "geteuid":
        monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick"])
    assert shaped_network.main() == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert word in output.err
    assert output.err.count("\n") == 1


def test_a_rate_beyond_what_two_cores_feed_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--host-mbit", "1000"])
    with pytest.raises(SystemExit) as ended:
        shaped_network.main()
    assert ended.value.code == 2
    assert "at most 200" in capsys.readouterr().err


ECHO = """
import socket, sys
listening = socket.create_server(("0.0.0.0", 5000))
print("ready", flush=True)
connection, _ = listening.accept()
received = b""
while len(received) < 300_000:
    received += connection.recv(1 << 16)
connection.sendall(received[::-1])
"""
ASK = """
import json, socket
sent = bytes(range(256)) * 1172
sent = sent[:300_000]
connection = socket.create_connection(("shaped3", 5000))
connection.sendall(sent)
received = b""
while len(received) < len(sent):
    received += connection.recv(1 << 16)
print(json.dumps({"right": received == sent[::-1], "host": socket.gethostname()}))
"""


@pytest.mark.slow  # compiles the switch's loop
@pytest.mark.skipif(network.why_not() is not None, reason=str(network.why_not()))
def test_hosts_reach_each_other_through_the_switch_alone_and_nothing_stays():
    with network.ShapedNetwork(Shape()) as made:
        server = made.start(3, [sys.executable, "-c", ECHO], {}, subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        asker = made.start(0, [sys.executable, "-c", ASK], {}, subprocess.PIPE)
        answer = json.loads(asker.communicate(timeout=60)[0])
        assert answer == {"right": True, "host": "shaped0"}
        assert made.statistics()["bytes"] > 600_000
        assert made.statistics()["dropped"] == 0
        forgotten = made.start(2, ["sleep", "1000"], {}, subprocess.DEVNULL)
        assert forgotten.pid in made.residents()
        folder = made.folder
    assert forgotten.wait(timeout=10) == -9
    assert not folder.exists()
    assert server.wait(timeout=10) == 0
    server.stdout.close()
