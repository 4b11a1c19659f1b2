"""The switch of the shaped network: packets of every host's TUN device, through links of limited rate, with delay.

A link serves the flows (source, target) that wait for it one packet each in turn, as a switch without losses does, and
passes a packet on as soon as its head is there (cut-through), so a message alone takes its path's delays plus its bytes
over the slowest link (and part of a packet's time more where uplinks are faster than hosts). Bare acknowledgements go
first: behind data they would hold up the data of the other way, which is TCP's doing and no fabric's. Times of packets
are reckoned, not waited for: a process that wakes late delivers late, but no link loses rate by it. Nothing is dropped
until ``NUM_SLOTS`` packets wait.

It does not own the shape (``shape.py``) nor devices and namespaces (``network.py``). Started by ``network.py`` as a
process of its own: ``python -m shaped.switch SHAPE FD... STATISTICS_FD``.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shaped.shape import STATISTICS, Shape

NUM_SLOTS = 8192
MAX_HOPS = 4
LONGEST_SLEEP_S = 0.2

_libc = ctypes.CDLL(None, use_errno=True)
_size, _int = ctypes.c_size_t, ctypes.c_int
_read, _write, _ppoll, _clock_gettime = _libc.read, _libc.write, _libc.ppoll, _libc.clock_gettime
_read.argtypes, _read.restype = [_int, _size, _size], ctypes.c_ssize_t
_write.argtypes, _write.restype = [_int, _size, _size], ctypes.c_ssize_t
_ppoll.argtypes, _ppoll.restype = [_size, _size, _size, _size], _int
_clock_gettime.argtypes, _clock_gettime.restype = [_int, _size], _int


class Links(NamedTuple):
    """What stays: L links, F = 2 H H flows (source * H + target, and behind them the same for acknowledgements)."""

    bytes_per_s: NDArray[np.float64]  # [L]
    delay_s: NDArray[np.float64]  # [L]
    path: NDArray[np.int64]  # [F, MAX_HOPS], -1 behind the end
    users: NDArray[np.int64]  # [L, F] flows over the link, -1 behind the end


class Packets(NamedTuple):
    """What waits. A slot holds one packet; slots are chained in queues, one per hop and flow, and in a free list."""

    size: NDArray[np.int64]  # [slots] bytes
    time_s: NDArray[np.float64]  # [slots] at the head of its link, or at its target
    following: NDArray[np.int64]  # [slots] next slot of the queue or of the free list
    head: NDArray[np.int64]  # [MAX_HOPS + 1, F]; behind a flow's last hop: on its way to the target
    tail: NDArray[np.int64]  # like head
    free: NDArray[np.int64]  # [1] first free slot
    link_free_s: NDArray[np.float64]  # [L]
    turn: NDArray[np.int64]  # [L] place among the users that was served last


def make_links(shape: Shape) -> Links:
    hosts = shape.num_hosts
    flows = 2 * hosts * hosts
    path = np.full((flows, MAX_HOPS), -1, dtype=np.int64)
    users = np.full((shape.num_links, flows), -1, dtype=np.int64)
    for flow in range(flows):
        source, target = divmod(flow % (hosts * hosts), hosts)
        for hop, link in enumerate(shape.path(source, target) if source != target else []):
            path[flow, hop] = link
            users[link, np.argmin(users[link])] = flow
    return Links(np.array(shape.rates()), np.array(shape.delays()), path, users)


def make_packets(links: Links, slots: int = NUM_SLOTS) -> Packets:
    flows = len(links.path)
    return Packets(
        size=np.zeros(slots, dtype=np.int64), time_s=np.zeros(slots),
        following=np.append(np.arange(1, slots), -1), head=np.full((MAX_HOPS + 1, flows), -1, dtype=np.int64),
        tail=np.full((MAX_HOPS + 1, flows), -1, dtype=np.int64), free=np.zeros(1, dtype=np.int64),
        link_free_s=np.zeros(len(links.bytes_per_s)), turn=np.zeros(len(links.bytes_per_s), dtype=np.int64),
    )  # fmt: skip


@njit(cache=True)
def append(packets, hop, flow, slot):
    packets.following[slot] = -1
    if packets.head[hop, flow] < 0:
        packets.head[hop, flow] = slot
    else:
        packets.following[packets.tail[hop, flow]] = slot
    packets.tail[hop, flow] = slot


@njit(cache=True)
def take(packets, hop, flow):
    slot = packets.head[hop, flow]
    packets.head[hop, flow] = packets.following[slot]
    return slot


@njit(cache=True)
def admit(packets, flow, size, now_s):
    """A packet at its source's link; the slot that its bytes go to, -1 where none is free."""
    slot = packets.free[0]
    if slot < 0:
        return slot
    packets.free[0] = packets.following[slot]
    packets.size[slot] = size
    packets.time_s[slot] = now_s
    append(packets, 0, flow, slot)
    return slot


@njit(cache=True)
def release(packets, slot):
    packets.following[slot] = packets.free[0]
    packets.free[0] = slot


@njit(cache=True)
def hop_of(links, flow, link):
    hop = 0
    while links.path[flow, hop] != link:
        hop += 1
    return hop


@njit(cache=True)
def next_start(links, packets, link):
    """When the link next takes a packet [s], infinity where none waits or comes."""
    earliest_s = np.inf
    for place in range(links.users.shape[1]):
        flow = links.users[link, place]
        if flow < 0:
            break
        slot = packets.head[hop_of(links, flow, link), flow]
        if slot >= 0 and packets.time_s[slot] < earliest_s:
            earliest_s = packets.time_s[slot]
    return max(earliest_s, packets.link_free_s[link])


@njit(cache=True)
def next_to_serve(links, packets, link, start_s):
    """Place among the link's users of the flow whose turn it is and that has a packet; acknowledgements first."""
    num_users = 0
    while num_users < links.users.shape[1] and links.users[link, num_users] >= 0:
        num_users += 1
    first_of_acknowledgements = len(links.path) // 2
    for urgent in (True, False):
        for step in range(1, num_users + 1):
            place = (packets.turn[link] + step) % num_users
            flow = links.users[link, place]
            slot = packets.head[hop_of(links, flow, link), flow]
            if (flow >= first_of_acknowledgements) == urgent and slot >= 0 and packets.time_s[slot] <= start_s:
                return place
    return -1


@njit(cache=True)
def serve_link(links, packets, link, start_s):
    """Send the packet whose flow's turn it is; it goes to the queue of its next hop."""
    place = next_to_serve(links, packets, link, start_s)
    flow = links.users[link, place]
    if flow < len(links.path) // 2:
        packets.turn[link] = place  # acknowledgements take no turn
    hop = hop_of(links, flow, link)
    slot = take(packets, hop, flow)
    send_s = packets.size[slot] / links.bytes_per_s[link]
    packets.link_free_s[link] = start_s + send_s
    following_link = links.path[flow, hop + 1] if hop + 1 < MAX_HOPS else -1
    wait_s = send_s  # the target has a packet once its last byte is there
    if following_link >= 0:
        wait_s = max(0.0, send_s - packets.size[slot] / links.bytes_per_s[following_link])
    packets.time_s[slot] = start_s + links.delay_s[link] + wait_s
    append(packets, hop + 1 if following_link >= 0 else MAX_HOPS, flow, slot)


@njit(cache=True)
def advance(links, packets, now_s):
    """Everything that links do until now; when the next thing happens on a link [s]."""
    while True:
        first_s, first_link = np.inf, -1
        for link in range(len(links.bytes_per_s)):
            start_s = next_start(links, packets, link)
            if start_s < first_s:
                first_s, first_link = start_s, link
        if first_s > now_s:
            return first_s
        serve_link(links, packets, first_link, first_s)


@njit(cache=True)
def next_delivery(packets):
    """When the next packet reaches its target [s], and its flow."""
    first_s, first_flow = np.inf, -1
    for flow in range(packets.head.shape[1]):
        slot = packets.head[MAX_HOPS, flow]
        if slot >= 0 and packets.time_s[slot] < first_s:
            first_s, first_flow = packets.time_s[slot], flow
    return first_s, first_flow


@njit  # calls the C library: cannot be cached
def clock(timespec):
    """Seconds of the monotonic clock. timespec: int64 [2]."""
    _clock_gettime(1, timespec.ctypes.data)
    return timespec[0] + 1e-9 * timespec[1]


@njit  # calls the C library: cannot be cached
def wait_for_packets(devices, ready, timespec, sleep_s):
    """Sleep until a device has a packet, at most sleep_s. ready: struct pollfd [devices] as int32 [devices, 2]."""
    for host in range(len(devices)):
        ready[host, 0], ready[host, 1] = devices[host], 1  # POLLIN, nothing happened yet
    timespec[0] = int(sleep_s)
    timespec[1] = int((sleep_s - int(sleep_s)) * 1e9)
    return _ppoll(ready.ctypes.data, len(devices), timespec.ctypes.data, 0)


@njit  # calls the C library: cannot be cached
def deliver(packets, memory, devices, now_s, statistics):
    """Write what has reached its target by now."""
    hosts = len(devices)
    while True:
        due_s, flow = next_delivery(packets)
        if due_s > now_s:
            return due_s
        slot = take(packets, MAX_HOPS, flow)
        _write(devices[flow % hosts], memory[slot].ctypes.data, packets.size[slot])
        release(packets, slot)
        statistics[0] += 1
        statistics[1] += packets.size[slot]
        statistics[3] = max(statistics[3], now_s - due_s)


@njit(cache=True)
def is_acknowledgement(packet, size):
    """Whether an IPv4 packet is TCP's with the flag ACK alone and no bytes."""
    header = np.int64(packet[0] & 15) * 4
    if packet[9] != 6 or size < header + 20:
        return False
    return packet[header + 13] == 0x10 and size == header + np.int64(packet[header + 12] >> 4) * 4


@njit  # calls the C library: cannot be cached
def collect(packets, memory, devices, host, incoming, now_s, statistics):
    """Read what a host has sent. Its last byte of the IPv4 target address names the target."""
    hosts = len(devices)
    while True:
        size = _read(devices[host], incoming.ctypes.data, len(incoming))
        if size < 20:
            return
        target = np.int64(incoming[19]) - 1
        if incoming[0] >> 4 != 4 or not 0 <= target < hosts or target == host:
            continue  # neighbour discovery of IPv6 and the like
        flow = host * hosts + target + (hosts * hosts if is_acknowledgement(incoming, size) else 0)
        slot = admit(packets, flow, size, now_s)
        if slot < 0:
            statistics[2] += 1
            continue
        memory[slot, :size] = incoming[:size]


@njit  # calls the C library: cannot be cached
def switch_packets(links, packets, memory, devices, statistics, until_s):
    """Carry packets between the devices until the clock shows until_s."""
    ready, timespec = np.zeros((len(devices), 2), dtype=np.int32), np.zeros(2, dtype=np.int64)
    incoming = np.zeros(memory.shape[1], dtype=np.uint8)
    woke_s = clock(timespec)
    while woke_s < until_s:
        link_s = advance(links, packets, woke_s)
        due_s = deliver(packets, memory, devices, woke_s, statistics)
        now_s = clock(timespec)
        statistics[4] += now_s - woke_s
        next_s = min(link_s, due_s)
        found = 0
        if next_s > now_s:
            found = wait_for_packets(devices, ready, timespec, min(next_s - now_s, LONGEST_SLEEP_S))
        woke_s = clock(timespec)
        if found > 0:
            for host in range(len(devices)):
                if ready[host, 1] >> 16 != 0:
                    collect(packets, memory, devices, host, incoming, woke_s, statistics)


def main() -> None:
    shape = Shape(**json.loads(sys.argv[1]))
    devices = np.array([int(word) for word in sys.argv[2:-1]], dtype=np.int32)
    for device in devices:
        os.set_blocking(int(device), False)
    statistics = np.frombuffer(mmap.mmap(int(sys.argv[-1]), 8 * len(STATISTICS)), dtype=np.float64)
    links = make_links(shape)
    packets = make_packets(links)
    memory = np.zeros((NUM_SLOTS, shape.packet_bytes), dtype=np.uint8)
    switch_packets(links, packets, memory, devices, statistics, 0.0)  # compiles
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))  # ranks that poll would starve it
    print("ready", flush=True)
    switch_packets(links, packets, memory, devices, statistics, np.inf)


if __name__ == "__main__":
    main()
