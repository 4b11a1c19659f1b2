"""Plays rounds of messages on a platform of explicit links and routes in SimGrid; runs under the Python that has it.

Standard input: JSON with capacity_bytes_per_s, latency_s [L], routes [M] (links of each message), rounds [R] (source,
target, bytes, route of each message), num_ranks. Standard output: JSON with time_s (simulated) and wall_s (of the
simulation alone, without building the platform). A rank posts all of a round's messages and waits for all of them.
"""

import json
import sys
import time

from simgrid import Actor, Comm, Engine, LinkInRoute, Mailbox, NetZone

SETTINGS = [
    "--cfg=network/model:CM02",
    "--cfg=network/TCP-gamma:0",
    "--cfg=network/crosstraffic:0",
    "--log=root.thres:critical",
]


def build(case):
    """A zone with one host per rank, the links, and one route for every pair that exchanges something."""
    zone = NetZone.create_full_zone("platform")
    hosts = [zone.create_host(f"rank {rank}", 1e9).seal() for rank in range(case["num_ranks"])]
    links = [
        zone.create_link(f"link {number}", capacity).set_latency(latency).seal()
        for number, (capacity, latency) in enumerate(zip(case["capacity_bytes_per_s"], case["latency_s"], strict=True))
    ]
    for source, target, crossed in case["routes"]:
        ends = hosts[source].netpoint, hosts[target].netpoint
        zone.add_route(*ends, None, None, [LinkInRoute(links[link]) for link in crossed], False)
    zone.seal()
    return hosts


def rank_main(rounds):
    """One rank: per round a list of (mailbox to send to, bytes) and of mailboxes to receive from."""
    for sends, receives in rounds:
        received = [mailbox.get_async() for mailbox in receives]  # communication and payload: both kept
        sent = [mailbox.put_async(0, size) for mailbox, size in sends]
        Comm.wait_all([communication for communication, _ in received] + sent)


def programs(case):
    """For every rank the rounds in which it takes part."""
    work = [[] for _ in range(case["num_ranks"])]
    for number, messages in enumerate(case["rounds"]):
        here = {}
        for source, target, size in messages:
            mailbox = Mailbox.by_name(f"{number} {source} {target}")
            here.setdefault(source, ([], []))[0].append((mailbox, size))
            here.setdefault(target, ([], []))[1].append(mailbox)
        for rank, posted in here.items():
            work[rank].append(posted)
    return work


def main():
    case = json.load(sys.stdin)
    engine = Engine([sys.argv[0], *SETTINGS])
    hosts = build(case)
    for rank, rounds in enumerate(programs(case)):
        Actor.create(f"rank {rank}", hosts[rank], rank_main, rounds)
    start = time.perf_counter()
    engine.run()
    wall_s = time.perf_counter() - start
    print(json.dumps({"time_s": Engine.clock, "wall_s": wall_s}))


main()
