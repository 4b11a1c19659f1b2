"""The switch of the shaped network: its reckoned times are those of links with a rate, a delay and fair turns."""

import dataclasses
import os
import socket
import sys

import numpy as np
import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the switch calls Linux's C library", allow_module_level=True)

from shaped import switch
from shaped.prediction import make_cluster
from shaped.shape import STATISTICS, Shape

from perfmodel.network.algorithms import make_schedule
from perfmodel.network.flow_events import simulate
from perfmodel.network.routes import Transport

SHAPE = Shape()
PACKET = 4000
ACKNOWLEDGEMENTS = SHAPE.num_hosts**2  # what is added to a flow's number


def flow_of(source: int, target: int) -> int:
    return source * SHAPE.num_hosts + target


def carry(arrivals: list[tuple[int, int]], shape: Shape = SHAPE) -> list[tuple[float, int]]:
    """(when it is there, flow) of packets (flow, bytes) that all come at 0 s, in the order of arrival."""
    links = switch.make_links(shape)
    packets = switch.make_packets(links)
    for flow, size in arrivals:
        assert switch.admit(packets, flow, size, 0.0) >= 0
    assert switch.advance(links, packets, 1e9) == np.inf, "something still waits for a link"
    found = []
    while True:
        due_s, flow = switch.next_delivery(packets)
        if flow < 0:
            return found
        found.append((due_s, int(flow)))
        switch.release(packets, switch.take(packets, switch.MAX_HOPS, flow))


@pytest.mark.parametrize(("source", "target", "cables"), [(0, 1, 2), (3, 2, 2), (0, 2, 4), (3, 1, 4)])
def test_a_message_alone_takes_its_delays_and_its_bytes_over_the_slowest_link(source, target, cables):
    slowest = SHAPE.host_bytes_per_s if cables == 2 else SHAPE.rack_bytes_per_s
    found = carry([(flow_of(source, target), PACKET)] * 25)
    assert found[-1][0] == pytest.approx(cables * SHAPE.cable_delay_s + 25 * PACKET / slowest, rel=1e-12)
    assert len(found) == 25


def test_uplinks_faster_than_hosts_cost_at_most_a_packet():
    """A packet's head may not run ahead of its bytes, so a faster link waits for most of a packet before it begins."""
    shape = dataclasses.replace(SHAPE, rack_bytes_per_s=3 * SHAPE.host_bytes_per_s)
    found = carry([(flow_of(0, 3), PACKET)] * 5, shape)
    later_s = found[-1][0] - 4 * shape.cable_delay_s - 5 * PACKET / shape.host_bytes_per_s
    assert later_s == pytest.approx(PACKET / shape.host_bytes_per_s * (1 - 1 / 3), rel=1e-9)


def test_flows_that_share_an_uplink_take_turns():
    first, second = flow_of(0, 2), flow_of(1, 3)
    found = carry([(first, PACKET)] * 20 + [(second, PACKET)] * 20)
    order = [flow for _, flow in found]
    assert order.count(first) == order.count(second) == 20
    ahead = np.cumsum([1 if flow == first else -1 for flow in order])
    assert np.abs(ahead).max() <= 1, "one flow was served twice in a row while the other waited"
    assert found[-1][0] == pytest.approx(4 * SHAPE.cable_delay_s + 40 * PACKET / SHAPE.rack_bytes_per_s, rel=1e-12)


def test_both_ways_of_a_cable_are_links_of_their_own():
    alone = carry([(flow_of(0, 1), PACKET)] * 10)
    both = carry([(flow_of(0, 1), PACKET)] * 10 + [(flow_of(1, 0), PACKET)] * 10)
    assert [time for time, flow in both if flow == flow_of(0, 1)] == [time for time, _ in alone]


def test_acknowledgements_go_first():
    data, acknowledgement = flow_of(0, 2), flow_of(0, 2) + ACKNOWLEDGEMENTS
    found = carry([(data, PACKET)] * 5 + [(acknowledgement, 52)])
    assert found[0][1] == acknowledgement


@pytest.mark.parametrize(("collective", "algorithm"), [("all_to_all", "linear"), ("all_to_all", "pairwise")])
def test_a_round_of_messages_ends_when_the_model_of_fair_links_says(collective, algorithm):
    """Packets in turns are max-min fair flows but for a packet or two: here 2 of 100 per message."""
    packets_each = 100
    schedule = make_schedule(collective, algorithm, SHAPE.num_hosts)
    cluster, wire = make_cluster(SHAPE), Transport()
    size_bytes = float(packets_each * PACKET * SHAPE.num_hosts)
    total_s = 0.0
    for one in schedule.rounds():
        arrivals = [(flow_of(s, t), PACKET) for s, t in zip(one.source, one.target, strict=True)]
        total_s += carry(arrivals * packets_each)[-1][0]
    predicted_s = simulate(schedule, cluster, wire, size_bytes).time_s
    assert total_s == pytest.approx(predicted_s, rel=0.02)


def test_slots_are_few_and_come_back():
    links = switch.make_links(SHAPE)
    packets = switch.make_packets(links, slots=3)
    flow = flow_of(0, 1)
    assert [switch.admit(packets, flow, 100, 0.0) >= 0 for _ in range(4)] == [True, True, True, False]
    switch.advance(links, packets, 1.0)
    switch.release(packets, switch.take(packets, switch.MAX_HOPS, flow))
    assert switch.admit(packets, flow, 100, 1.0) >= 0


def packet(target: int, payload: bytes, *, protocol: int = 6, flags: int = 0x10) -> bytes:
    """IPv4 with a header of TCP's form; checksums are nobody's concern here."""
    ip = bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, target + 1])
    tcp = bytes([0] * 12 + [0x50, flags] + [0] * 6)
    return ip + tcp + payload


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (packet(1, b""), True), (packet(1, b"x"), False), (packet(1, b"", flags=0x11), False),
        (packet(1, b"", flags=0x18), False), (packet(1, b"", protocol=17), False), (packet(1, b"")[:24], False),
    ],
    ids=["bare", "with bytes", "FIN", "PSH", "UDP", "cut"],
)  # fmt: skip
def test_only_bare_acknowledgements_count_as_such(content, expected):
    assert switch.is_acknowledgement(np.frombuffer(content, np.uint8), len(content)) == expected


@pytest.mark.slow  # compiles the loop, which calls the C library and so cannot be kept compiled
def test_packets_come_out_where_they_are_addressed_to_and_in_order():
    """Through the loop itself, with sockets that keep packets apart in place of TUN devices."""
    ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(SHAPE.num_hosts)]
    inside = np.array([first.fileno() for first, _ in ends], dtype=np.int32)
    for first, second in ends:
        first.setblocking(False)
        second.setblocking(False)
    sent = [packet(3, bytes([number])) for number in range(5)]
    for content in (*sent, packet(0, b"to itself"), b"\x60" + bytes(60), packet(9, b"to nobody")):
        ends[0][1].send(content)
    links = switch.make_links(SHAPE)
    packets = switch.make_packets(links)
    statistics = np.zeros(len(STATISTICS))
    memory = np.zeros((switch.NUM_SLOTS, SHAPE.packet_bytes), dtype=np.uint8)
    for _ in range(100):  # 5 s at most; the first call takes none of it: it compiles
        until_s = switch.clock(np.zeros(2, dtype=np.int64)) + 0.05
        switch.switch_packets(links, packets, memory, inside, statistics, until_s)
        if statistics[0] == len(sent):
            break
    assert [os.read(ends[3][1].fileno(), 100) for _ in sent] == sent
    assert statistics[2] == 0
    for _, second in ends[:3]:
        with pytest.raises(BlockingIOError):
            second.recv(100)
    for pair in ends:
        for one in pair:
            one.close()
