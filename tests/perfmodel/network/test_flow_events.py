"""Discrete events: cases solved by hand, exact limits, the order of simultaneous events, and the closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.network.algorithms import ALGORITHMS, make_schedule
from perfmodel.network.closed_form import price
from perfmodel.network.cluster import Cluster
from perfmodel.network.dragonfly import Dragonfly
from perfmodel.network.fat_tree import FatTree
from perfmodel.network.flow_events import Network, simulate
from perfmodel.network.noise import Disturbances
from perfmodel.network.routes import Transport
from perfmodel.network.schedule import Round, Schedule
from perfmodel.network.switch import SingleSwitch
from perfmodel.network.torus import Torus
from tests.perfmodel.network.small_networks import OneSwitch, Racks, one_round, schedule_of, shifts

BARE = Transport()
SOFTWARE = Transport(overhead_s=2e-6, latency_s=1e-6, gap_s=0.5e-6, link_fraction=0.8, reduction_bytes_per_s=3e9,
                     copy_bytes_per_s=7e9, rendezvous_s=4e-6, eager_bytes=50e3)  # fmt: skip


def test_one_message_is_latency_and_bytes() -> None:
    outcome = simulate(one_round(2, [(0, 1)]), OneSwitch(2), SOFTWARE, 1e6)
    assert outcome.time_s == pytest.approx(1e-6 + 2e-6 + 1e-6 + 4e-6 + 1e6 / 0.8e9, rel=1e-14)


def test_incast_of_different_sizes_by_hand() -> None:
    """1 and 3 MB into one link of 1 GB/s: together until 2 ms, then the long one alone until 4 ms."""
    schedule = one_round(3, [(1, 0), (2, 0)], [1.0, 3.0])
    outcome = simulate(schedule, OneSwitch(3, latency_s=0.0), BARE, 1e6)
    np.testing.assert_allclose(outcome.finish_s, [4e-3, 2e-3, 4e-3], rtol=1e-14)


def test_parking_lot_by_hand() -> None:
    """Rack uplinks of 1 GB/s: two flows of 1 MB leave rack 0, one of them into rack 1 where a third flow enters."""
    cluster = Racks(3, 2, taper=0.5)
    cluster.latency_s = 0.0
    schedule = one_round(6, [(0, 2), (1, 4), (5, 3)], [1.0, 1.0, 1.0])
    outcome = simulate(schedule, cluster, BARE, 1e6)
    np.testing.assert_allclose(outcome.finish_s[[0, 1, 5]], [2e-3, 2e-3, 2e-3], rtol=1e-14)
    longer = simulate(one_round(6, [(0, 2), (1, 4), (5, 3)], [1.0, 0.5, 1.0]), cluster, BARE, 1e6)
    # flow 1 ends at 1 ms; flow 0 stays at half of the downlink it shares with flow 5
    np.testing.assert_allclose(longer.finish_s[[0, 1, 5]], [2e-3, 1e-3, 2e-3], rtol=1e-14)


def test_a_message_that_starts_late_takes_its_share_from_then_on() -> None:
    """Flow 0 alone for 1 ms, then shared: 1 MB of its 2 MB left at half rate."""
    delays = Disturbances(start_delay_s=np.array([0.0, 1e-3, 0.0]))
    outcome = simulate(one_round(3, [(0, 2), (1, 2)], [2.0, 2.0]), OneSwitch(3, latency_s=0.0), BARE, 1e6,
                       disturbances=delays)  # fmt: skip
    np.testing.assert_allclose(outcome.finish_s, [3e-3, 4e-3, 4e-3], rtol=1e-14)


def test_a_rank_waits_for_its_own_messages_only() -> None:
    """Ranks 0 and 1 exchange twice while 2 and 3 are busy with a message ten times as long."""
    first = Round(source=np.array([0, 1, 2]), target=np.array([1, 0, 3]), fraction=np.array([1.0, 1.0, 10.0]),
                  reduced=np.zeros(3))  # fmt: skip
    second = Round(source=np.array([0, 1, 3]), target=np.array([1, 0, 2]), fraction=np.ones(3), reduced=np.zeros(3))
    outcome = simulate(schedule_of(4, [first, second]), OneSwitch(4, latency_s=0.0), BARE, 1e6)
    np.testing.assert_allclose(outcome.finish_s, [2e-3, 2e-3, 11e-3, 11e-3], rtol=1e-14)


def test_an_early_message_waits_to_be_reduced() -> None:
    """Rank 1 is busy until 5 ms with what rank 2 sends; rank 0's message of the next round has come by 2 ms."""
    first = Round(source=np.array([2]), target=np.array([1]), fraction=np.array([5.0]), reduced=np.array([0.0]))
    second = Round(source=np.array([0]), target=np.array([1]), fraction=np.array([1.0]), reduced=np.array([1.0]))
    transport = Transport(reduction_bytes_per_s=1e9)
    outcome = simulate(schedule_of(3, [first, second]), OneSwitch(3, latency_s=0.0), transport, 1e6)
    np.testing.assert_allclose(outcome.finish_s, [2e-3, 7e-3, 6e-3], rtol=1e-14)


def test_a_rendezvous_waits_for_the_receiver() -> None:
    delays = Disturbances(start_delay_s=np.array([0.0, 3e-3]))
    cluster, schedule = OneSwitch(2, latency_s=0.0), one_round(2, [(0, 1)])
    eager = simulate(schedule, cluster, BARE, 1e6, disturbances=delays)
    waits = simulate(schedule, cluster, Transport(eager_bytes=1e5), 1e6, disturbances=delays)
    np.testing.assert_allclose(eager.finish_s, [1e-3, 3e-3], rtol=1e-14)
    np.testing.assert_allclose(waits.finish_s, [4e-3, 4e-3], rtol=1e-14)


def test_exact_limits() -> None:
    ring = make_schedule("all_reduce", "ring", 8)
    assert simulate(make_schedule("all_reduce", "ring", 1), OneSwitch(1), SOFTWARE, 1e6).time_s == 0
    assert simulate(ring, OneSwitch(8), SOFTWARE, 0).time_s == 0
    latency_s = 1e-6 + 2e-6
    quick = simulate(ring, OneSwitch(8, np.inf), Transport(overhead_s=2e-6), 1e9)
    assert quick.time_s == pytest.approx(14 * latency_s, rel=1e-13)
    wide = simulate(ring, OneSwitch(8, 1e9, 0.0), BARE, 1e9)
    assert wide.time_s == pytest.approx(14 / 8, rel=1e-13)
    empty = schedule_of(4, shifts(4, 0.0, [1, 2]))
    assert simulate(empty, OneSwitch(4), BARE, 1e6).time_s == pytest.approx(2e-6, rel=1e-13)


def test_more_bytes_never_take_less_time() -> None:
    schedule = make_schedule("all_to_all", "pairwise", 12)
    times = [simulate(schedule, Racks(3, 4, 0.25), SOFTWARE, size).time_s for size in 10.0 ** np.arange(2, 9)]
    assert np.all(np.diff(times) > 0)


EVERY_ALGORITHM = [(collective, name) for collective, names in ALGORITHMS.items() for name in names]


@pytest.mark.parametrize(("collective", "algorithm"), EVERY_ALGORITHM)
def test_the_order_of_simultaneous_events_does_not_matter(collective: str, algorithm: str) -> None:
    """Messages of a round listed backwards: the same time (posting order plays no role without gaps)."""
    schedule = make_schedule(collective, algorithm, 8)
    backwards = replace(schedule_of(8, [
        replace(entry, source=entry.source[::-1], target=entry.target[::-1], fraction=entry.fraction[::-1],
                reduced=entry.reduced[::-1])
        for entry in schedule.rounds()
    ]))  # fmt: skip
    transport = replace(SOFTWARE, gap_s=0.0)
    cluster = Racks(4, 2, 0.3)
    one, other = (simulate(entry, cluster, transport, 3e6) for entry in (schedule, backwards))
    np.testing.assert_allclose(one.finish_s, other.finish_s, rtol=1e-12)


@pytest.mark.parametrize(("collective", "algorithm"), EVERY_ALGORITHM)
@pytest.mark.parametrize("num_ranks", [2, 8])
def test_equals_the_closed_form_where_nothing_contends(collective: str, algorithm: str, num_ranks: int) -> None:
    """One switch, a power of two. With gaps only where no rank has two messages in a round: those spread them out."""
    cluster = OneSwitch(num_ranks)
    schedule = make_schedule(collective, algorithm, num_ranks)
    crowded = any(np.bincount(ends).max() > 1 for entry in schedule.rounds() if len(entry)
                  for ends in (entry.source, entry.target))  # fmt: skip
    transport = replace(SOFTWARE, gap_s=0.0) if crowded else SOFTWARE
    sizes = np.array([1e3, 1e5, 1e7])
    formula = price(schedule, cluster).time_s(sizes, transport)
    played = [simulate(schedule, cluster, transport, size).time_s for size in sizes]
    np.testing.assert_allclose(played, formula, rtol=1e-12)


def test_records_hold_every_message() -> None:
    outcome = simulate(make_schedule("all_gather", "ring", 4), OneSwitch(4), SOFTWARE, 4e6, record=True)
    records = outcome.records
    assert records is not None
    assert len(records.source) == 12
    assert np.all(records.target == (records.source + 1) % 4)
    assert np.all(records.begun_s - records.posted_s == pytest.approx(8e-6, rel=1e-9))
    assert records.ended_s.max() == outcome.time_s
    assert records.message_bytes.sum() == pytest.approx(12e6)


def test_groups_share_the_uplinks_and_one_alone_does_not() -> None:
    cluster = Racks(2, 4, taper=0.25)
    cluster.latency_s = 0.0
    schedule = make_schedule("all_gather", "ring", 2)
    pairs = [np.array([rank, rank + 4]) for rank in range(4)]
    alone = simulate(schedule, cluster, BARE, 2e6, group=pairs[0])
    together = simulate(schedule, cluster, BARE, 2e6, groups=pairs)
    assert alone.time_s == pytest.approx(1e-3, rel=1e-12)
    assert together.finish_s.shape == (4, 2)
    np.testing.assert_allclose(together.finish_s, 4e-3, rtol=1e-12)


def test_a_degraded_link_slows_what_crosses_it() -> None:
    factor = np.ones(4)
    factor[0] = 0.5
    outcome = simulate(one_round(2, [(0, 1), (1, 0)]), OneSwitch(2, latency_s=0.0), BARE, 1e6,
                       disturbances=Disturbances(link_factor=factor))  # fmt: skip
    assert outcome.time_s == pytest.approx(2e-3, rel=1e-13)


def contended_networks(num_ranks: int) -> dict[str, Network]:
    wires = {"wire_latency_s": 1e-7, "switch_latency_s": 3e-7}
    tree = {"children": (4, 8), "parents": (1, 4), "link_bytes_per_s": 25e9, **wires}
    fabrics = {
        "one switch": SingleSwitch(num_ports=num_ranks, port_bytes_per_s=25e9, **wires),
        "tapered tree, static": FatTree(num_ports=num_ranks, taper=4.0, routing="d-mod-k", **tree),
        "tapered tree, spread": FatTree(num_ports=num_ranks, taper=2.0, routing="spread", **tree),
        "dragonfly": Dragonfly(num_ports=num_ranks, groups=4, switches_per_group=2, ports_per_switch=2,
                               links_per_group_pair=1, port_bytes_per_s=25e9, routing="minimal", **wires),
        "torus": Torus(num_ports=num_ranks, shape=(3, 4), port_bytes_per_s=25e9, link_bytes_per_s=25e9, **wires),
    }  # fmt: skip
    return {
        name: Cluster(num_nodes=num_ranks, ranks_per_node=1, fabric=fabric, nics_per_node=1, node_bytes_per_s=1e11,
                      node_latency_s=1e-6)
        for name, fabric in fabrics.items()
    }  # fmt: skip


CONTENDED = contended_networks(12)


@pytest.mark.parametrize("network", CONTENDED)
@pytest.mark.parametrize("rendezvous", [False, True])
def test_bounds_of_the_closed_form_where_messages_contend(network: str, rendezvous: bool) -> None:
    """docs/discrete_events.md: events over closed form from 0.68 to 1.71, to 1.13 where receivers are waited for."""
    transport = Transport(overhead_s=1e-6, reduction_bytes_per_s=20e9, rendezvous_s=1e-6,
                          eager_bytes=8192 if rendezvous else np.inf)  # fmt: skip
    cluster, sizes, ratios = CONTENDED[network], np.array([1e3, 1e6]), {}
    for collective, algorithm in EVERY_ALGORITHM:
        try:
            schedule = make_schedule(collective, algorithm, 12)
        except UserError:  # needs another number of ranks
            continue
        formula = price(schedule, cluster).time_s(sizes, transport)
        for size, expected in zip(sizes, formula, strict=True):
            outcome = simulate(schedule, cluster, transport, size)
            ratios[collective, algorithm, size] = outcome.time_s / expected
            assert outcome.time_s >= busiest_link_s(schedule, cluster, size) * (1 - 1e-9)
    assert len(ratios) > 60
    assert min(ratios.values()) >= 0.68, min(ratios, key=ratios.__getitem__)
    assert max(ratios.values()) <= (1.13 if rendezvous else 1.71), max(ratios, key=ratios.__getitem__)


def busiest_link_s(schedule: Schedule, cluster: Network, size_bytes: float) -> float:
    """All bytes of all rounds over the fullest link: nothing is faster."""
    loads = np.zeros(len(cluster.capacity_bytes_per_s))
    for entry in schedule.rounds():
        routes = cluster.routes(entry.source, entry.target)
        loads += entry.repeat * routes.link_bytes(entry.fraction * size_bytes, len(loads))
    return float((loads / cluster.capacity_bytes_per_s).max())


@pytest.mark.parametrize("network", CONTENDED)
def test_a_tolerance_saves_batches_and_moves_the_result_little(network: str) -> None:
    schedule, transport = make_schedule("all_to_all", "pairwise", 12), Transport(overhead_s=1e-6)
    exact = simulate(schedule, CONTENDED[network], transport, 12e6)
    rough = simulate(schedule, CONTENDED[network], transport, 12e6, tolerance=0.01)
    assert rough.batches <= exact.batches
    assert 0.95 * exact.time_s <= rough.time_s <= 1.02 * exact.time_s


def test_all_to_all_is_never_faster_than_the_bisection() -> None:
    for cluster in CONTENDED.values():
        assert isinstance(cluster, Cluster)
        outcome = simulate(make_schedule("all_to_all", "linear", 12), cluster, BARE, 12e6)
        assert outcome.time_s >= 6 * 6 * 1e6 / cluster.bisection_bytes_per_s() * (1 - 1e-9)
