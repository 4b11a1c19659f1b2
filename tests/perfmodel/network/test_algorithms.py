"""Schedules executed symbolically: every rank ends with what the collective defines, each contribution once."""

import numpy as np
import pytest

from perfmodel.network.algorithms import ALGORITHMS, make_schedule, options_of

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
                arriving += [(target, block, held[source][block], adds) for block in blocks.tolist()]
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
