"""Schedules executed symbolically: every rank ends with what the collective defines, each contribution once."""

from pathlib import Path

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.network.algorithms import ALGORITHMS, make_schedule, options_of
from perfmodel.network.algorithms_steps import power_below, rounds_of_doubling
from perfmodel.network.algorithms_tree import depths, double_tree_parents
from perfmodel.network.cluster import Cluster
from perfmodel.network.fabric import build_fabric
from tests.perfmodel.network.small_fabrics import TORUS

SIZES = [*range(1, 18), 32]


def start(schedule):
    """What each rank holds: block -> contributions (ranks, or the block's origin)."""
    num_ranks, num_blocks = schedule.num_ranks, schedule.num_blocks
    collective = "all_gather" if schedule.gathers_buffers else schedule.collective
    part = num_blocks // num_ranks
    if collective in ("all_reduce", "reduce_scatter"):
        return [{block: frozenset([rank]) for block in range(num_blocks)} for rank in range(num_ranks)]
    if collective == "all_gather":
        return [{rank * part + k: frozenset([rank]) for k in range(part)} for rank in range(num_ranks)]
    if collective == "all_to_all":
        return [{rank * num_ranks + k: frozenset([rank]) for k in range(num_ranks)} for rank in range(num_ranks)]
    return [dict.fromkeys(range(num_blocks), frozenset([0])) if rank == 0 else {} for rank in range(num_ranks)]


def block_fraction(schedule, traffic_matrix=None):
    if schedule.collective == "all_to_all":
        n = schedule.num_ranks
        return np.full(n * n, 1 / n) if traffic_matrix is None else np.ravel(traffic_matrix)
    return np.full(schedule.num_blocks, 1.0 if schedule.gathers_buffers else 1 / schedule.num_blocks)


def execute(schedule, traffic_matrix=None):
    """Carry contributions through the rounds; check bytes against blocks, and that nothing is added twice."""
    held = start(schedule)
    each = block_fraction(schedule, traffic_matrix)
    num_rounds = 0
    for step, one in zip(schedule.steps(), schedule.rounds(), strict=True):
        assert one.repeat == step.repeat
        for repetition in range(step.repeat):
            num_rounds += 1
            arriving = []
            carried = step.carried(repetition)
            assert len(carried) == len(one)
            reduces = np.broadcast_to(step.reduces, len(one))
            messages = zip(one.source, one.target, one.fraction, carried, reduces, strict=True)
            for source, target, fraction, blocks, adds in messages:
                assert source != target
                assert len(set(blocks.tolist())) == len(blocks) > 0
                assert each[blocks].sum() == pytest.approx(fraction, rel=1e-12)
                arriving += [(target, block, held[source][block], adds) for block in blocks[each[blocks] > 0].tolist()]
            for target, block, contributions, adds in arriving:
                if adds:
                    assert not held[target].get(block, frozenset()) & contributions, "added twice"
                    contributions |= held[target].get(block, frozenset())
                held[target][block] = contributions
    assert num_rounds == schedule.num_rounds
    return held


def check_result(schedule, held, traffic_matrix=None):
    n, everyone = schedule.num_ranks, frozenset(range(schedule.num_ranks))
    part = schedule.num_blocks // n
    for rank, blocks in enumerate(held):
        if schedule.gathers_buffers:
            assert blocks == {block: frozenset([block]) for block in range(n)}
        elif schedule.collective == "all_reduce":
            assert blocks == dict.fromkeys(range(schedule.num_blocks), everyone)
        elif schedule.collective == "reduce_scatter":
            assert all(blocks[rank * part + k] == everyone for k in range(part))
        elif schedule.collective == "all_gather":
            assert blocks == {block: frozenset([block // part]) for block in range(schedule.num_blocks)}
        elif schedule.collective == "all_to_all":
            for source in range(n):
                if traffic_matrix is None or traffic_matrix[source, rank] > 0:
                    assert blocks[source * n + rank] == frozenset([source])
        else:
            assert blocks == dict.fromkeys(range(schedule.num_blocks), frozenset([0]))


def variants(collective, algorithm, num_ranks):
    """Option sets under which an algorithm is executed."""
    options = options_of(collective, algorithm)
    yield {}
    if "num_segments" in options:
        yield {"num_segments": 3}
    if "num_chains" in options:
        yield {"num_segments": 2, "num_chains": 4}
    if "radix" in options:
        yield from ({"radix": radix} for radix in (2, 3, 5))
    if "window" in options:
        yield {"window": 3}
    if "order" in options and not num_ranks & (num_ranks - 1):
        yield {"order": "xor"}
    nodes = [q for q in range(2, num_ranks + 1) if num_ranks % q == 0] if "ranks_per_node" in options else []
    yield from ({"ranks_per_node": q} for q in nodes)
    if "shape" in options:
        yield from ({"shape": (num_ranks // q, q)} for q in range(2, num_ranks + 1) if num_ranks % q == 0)
        if num_ranks == 12:
            yield {"shape": (2, 3, 2)}
    if "between" in options:
        yield from ({"ranks_per_node": q, "between": "ring"} for q in nodes)
    if "rails" in options:
        yield from ({"ranks_per_node": q, "rails": 2, "num_segments": 2} for q in nodes)


@pytest.mark.parametrize(("collective", "algorithm"), [(c, a) for c, known in ALGORITHMS.items() for a in known])
def test_every_rank_ends_with_what_the_collective_defines(collective, algorithm):
    for num_ranks in SIZES:
        for options in variants(collective, algorithm, num_ranks):
            schedule = make_schedule(collective, algorithm, num_ranks, **options)
            if schedule.num_ranks > 1 or collective != "broadcast":
                check_result(schedule, execute(schedule))
            assert (schedule.num_rounds == 0) == (num_ranks == 1)


def bytes_of(schedule):
    """Of m: all bytes on the wire, the most that a rank sends, the most that a rank reduces."""
    n = schedule.num_ranks
    sent, reduced = np.zeros(n), np.zeros(n)
    for one in schedule.rounds():
        sent += one.repeat * np.bincount(one.source, weights=one.fraction, minlength=n)
        reduced += one.repeat * np.bincount(one.target, weights=one.reduced, minlength=n)
    return sent.sum(), sent.max(), reduced.max()


@pytest.mark.parametrize("n", [2, 3, 6, 8, 12, 16])
def test_rounds_and_bytes_of_the_textbook(n):
    log, power, part = rounds_of_doubling(n), power_below(n), (n - 1) / n
    pairs = 2 * (n != power)

    def check(collective, algorithm, rounds, total, **options):
        schedule = make_schedule(collective, algorithm, n, **options)
        assert (schedule.num_rounds, bytes_of(schedule)[0]) == (rounds, pytest.approx(total)), algorithm

    check("all_reduce", "ring", 2 * (n - 1), 2 * (n - 1))
    check("all_reduce", "segmented_ring", 3 * (n - 1), 2 * (n - 1), num_segments=2)
    check("all_reduce", "recursive_doubling", power.bit_length() - 1 + pairs, power * (power.bit_length() - 1)
          + 2 * (n - power))  # fmt: skip
    check("all_reduce", "reduce_broadcast", 2 * log, 2 * (n - 1))
    check("all_reduce", "allgather_reduce", log, n * (n - 1))
    check("all_reduce", "linear", 2, 2 * (n - 1))
    extra = 2.5 * (n - power)  # halves to and fro, the half handed over, the result: of each pair
    check("all_reduce", "rabenseifner", 2 * (power.bit_length() - 1) + (3 if pairs else 0), 2 * (power - 1) + extra)
    check("all_gather", "ring", n - 1, n - 1)
    for algorithm in ("bruck", "recursive_doubling", "sparbit"):
        check("all_gather", algorithm, log, n - 1)
    check("all_gather", "linear", 1, n - 1)
    check("all_gather", "neighbor_exchange", n // 2 if n % 2 == 0 else n - 1, n - 1)
    for algorithm in ("ring", "pairwise"):
        check("reduce_scatter", algorithm, n - 1, n - 1)
    if n == power:
        for collective, algorithm in (("reduce_scatter", "recursive_halving"), ("reduce_scatter", "bine"),
                                      ("all_gather", "bine")):  # fmt: skip
            check(collective, algorithm, log, n - 1)
        check("all_to_all", "bruck", log, n * log / 2)
        check("all_to_all", "bine", log, n * log / 2)
    check("all_to_all", "pairwise", n - 1, n * part)
    check("all_to_all", "linear", 1, n * part)
    check("all_to_all", "linear_sync", -(-(n - 1) // 4), n * part, window=4)
    check("broadcast", "binomial", log, n - 1)
    check("broadcast", "chain", n - 2 + 5, n - 1, num_segments=5)
    if n == power:
        check("broadcast", "scatter_ring", log + n - 1, log / 2 + n - 1)


@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_nobody_sends_or_reduces_more_than_its_share(n):
    part = (n - 1) / n
    for collective, share in (("all_reduce", 2 * part), ("all_gather", part), ("reduce_scatter", part)):
        for algorithm in ("ring", "bine"):
            _, sent, reduced = bytes_of(make_schedule(collective, algorithm, n))
            assert sent == pytest.approx(share)
            assert reduced == pytest.approx(0 if collective == "all_gather" else part)
    _, sent, reduced = bytes_of(make_schedule("all_reduce", "rabenseifner", n))
    assert (sent, reduced) == (pytest.approx(2 * part), pytest.approx(part))
    _, sent, _ = bytes_of(make_schedule("all_reduce", "double_binary_tree", n, num_segments=8))
    assert sent == pytest.approx(2.0)  # inner in one tree, leaf in the other


@pytest.mark.parametrize(("n", "q"), [(8, 2), (12, 4), (16, 4)])
def test_levels_send_less_between_nodes(n, q):
    def between_nodes(collective, algorithm, **options):
        sent = np.zeros(n // q)
        for one in make_schedule(collective, algorithm, n, **options).rounds():
            away = one.source // q != one.target // q
            sent += one.repeat * np.bincount(one.source[away] // q, weights=one.fraction[away], minlength=n // q)
        return sent.max()

    nodes = n // q
    outside = 1 - 1 / nodes
    assert between_nodes("all_reduce", "two_level", ranks_per_node=q, between="ring") == pytest.approx(2 * outside)
    assert between_nodes("all_gather", "two_level", ranks_per_node=q) == pytest.approx(outside)
    assert between_nodes("reduce_scatter", "two_level", ranks_per_node=q) == pytest.approx(outside)
    assert between_nodes("all_to_all", "node_aggregated", ranks_per_node=q) == pytest.approx(q * outside)
    aggregated = make_schedule("all_to_all", "node_aggregated", n, ranks_per_node=q)
    assert aggregated.num_rounds == q - 1 + nodes - 1


def test_buckets_send_to_neighbours_only():
    schedule = make_schedule("all_reduce", "bucket", 36, shape=(4, 3, 3))
    assert schedule.num_rounds == 2 * (3 + 2 + 2)
    assert bytes_of(schedule)[1] == pytest.approx(2 * 35 / 36)
    cluster = Cluster(
        num_nodes=36, ranks_per_node=1, nics_per_node=1, node_bytes_per_s=1.0, node_latency_s=0.0,
        fabric=build_fabric("torus", TORUS | {"shape": (4, 3, 3)}, num_nodes=36, nics_per_node=1),
    )  # fmt: skip
    for one in schedule.rounds():
        assert np.all(np.diff(cluster.routes(one.source, one.target).offsets) == 3)  # out, one hop, in


def test_the_manual_names_every_algorithm():
    text = (Path(__file__).parents[3] / "docs" / "network.md").read_text(encoding="utf-8")
    for collective, known in ALGORITHMS.items():
        section = text.split(f"\n| {collective} |")[1].split("\n\n")[0].split("\n| all_", 1)[0]
        assert not [name for name in known if f"`{name}`" not in section and not name.startswith("bine_")], collective


def test_double_tree_leaves_no_rank_inside_both():
    for n in range(2, 40):
        trees = double_tree_parents(n, 1, 1)
        inner = [{int(parent) for parent in tree if parent >= 0} for tree in trees]
        assert len(inner[0] & inner[1]) <= 1 + (n % 2 == 0)
        assert max(int(depths(tree).max()) for tree in trees) <= rounds_of_doubling(n) + 1


def uneven(n, seed=3):
    generator = np.random.default_rng(seed)
    return generator.uniform(0, 1, (n, n)) * (generator.uniform(0, 1, (n, n)) > 0.3)


@pytest.mark.parametrize("algorithm", ["pairwise", "linear", "linear_sync", "bruck", "node_aggregated"])
@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_uneven_all_to_all_carries_the_matrix(algorithm, n):
    matrix = uneven(n)
    q = 1 if n % 4 else 4
    schedule = make_schedule("all_to_all", algorithm, n, traffic_matrix=matrix, ranks_per_node=q)
    normalised = matrix / matrix.sum(axis=1).max()
    check_result(schedule, execute(schedule, normalised), normalised)
    if algorithm in ("pairwise", "linear", "linear_sync"):
        assert bytes_of(schedule)[0] == pytest.approx(normalised.sum() - np.trace(normalised))
    even = make_schedule("all_to_all", algorithm, n, traffic_matrix=np.ones((n, n)), ranks_per_node=q)
    plain = make_schedule("all_to_all", algorithm, n, ranks_per_node=q)
    for one, other in zip(even.rounds(), plain.rounds(), strict=True):
        assert one.fraction == pytest.approx(other.fraction)


def test_exchanges_one_by_one_are_the_rounds():
    for collective, algorithm in (
        ("all_to_all", "pairwise"),
        ("all_to_all", "linear_sync"),
        ("reduce_scatter", "pairwise"),
    ):
        schedule = make_schedule(collective, algorithm, 11, **({"window": 3} if algorithm == "linear_sync" else {}))
        pairs = [sorted(zip(one.source, one.target, strict=True)) for one in schedule.rounds()]
        shifts = [schedule.make_shift(shift).round() for shift in range(1, 11)]
        windows = [shifts[k : k + schedule.window] for k in range(0, 10, schedule.window)]
        assert pairs == [
            sorted(pair for one in window for pair in zip(one.source, one.target, strict=True)) for window in windows
        ]


def test_symmetric_schedules_shift_every_rank_alike():
    for collective, known in ALGORITHMS.items():
        for algorithm in known:
            schedule = make_schedule(collective, algorithm, 12)
            if schedule.symmetric:
                for one in schedule.rounds():
                    shifts = (one.target - one.source) % 12
                    assert np.all(np.bincount(shifts, minlength=12) % 12 == 0), algorithm


def test_the_same_arguments_give_the_same_schedule():
    one = make_schedule("all_reduce", "two_level", 12, ranks_per_node=4, between="ring")
    assert one is make_schedule("all_reduce", "two_level", 12, between="ring", ranks_per_node=4)
    assert ALGORITHMS["all_reduce"]["ring"](6) is make_schedule("all_reduce", "ring", 6, ranks_per_node=3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("all_reduce", "rign", 4), {}, "did you mean 'ring'"),
        (("reduce", "ring", 4), {}, "known are all_reduce, all_gather"),
        (("all_reduce", "ring", 0), {}, "1 or more"),
        (("all_reduce", "ring", 4), {"window": 3}, "no option 'window': its options are none"),
        (("broadcast", "knomial", 4), {"radix": 1}, "2 or more"),
        (("all_reduce", "two_level", 10), {"ranks_per_node": 4}, "no multiple of 4"),
        (("all_reduce", "two_level", 8), {"ranks_per_node": 4, "between": "tree"}, "rabenseifner, ring"),
        (("all_reduce", "double_binary_tree", 8), {"rails": 2}, "at most the ranks per node"),
        (("all_reduce", "bucket", 6), {"shape": (2, 2)}, "4 places: it must have 6"),
        (("all_to_all", "pairwise", 6), {"order": "xor"}, "power of two"),
        (("all_reduce", "ring", 4), {"traffic_matrix": np.ones((4, 4))}, "only all_to_all"),
        (("all_to_all", "pairwise", 4), {"traffic_matrix": np.ones((3, 4))}, r"must be \[4, 4\]"),
        (("all_to_all", "pairwise", 2), {"traffic_matrix": -np.ones((2, 2))}, "not negative"),
    ],
)
def test_mistakes_are_said_in_one_sentence(arguments, options, message):
    with pytest.raises(UserError, match=message):
        make_schedule(*arguments, **options)
