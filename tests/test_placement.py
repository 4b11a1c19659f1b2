"""Expert plans: every copy is computed once, replication pays and balances, bytes as counted by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from janus.placement import (
    ExpertPlan,
    ExpertShape,
    ReplicationRule,
    _Moves,
    blocks,
    division,
    exchange_traffic,
    home_ranks,
    place_experts,
    restoring_phases,
    weights_sent,
)

NUM_ELEMENTS, TOP_K = 20, 3
SHAPE = ExpertShape(width=32, hidden=48, num_experts=10)
CHEAP = ReplicationRule(flops_per_byte=0.01)


def composition(num_ranks: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Experts of each element [Z,k] and tokens per rank and element [n,Z]; the last rank has no tokens."""
    generator = np.random.default_rng(seed)
    experts = np.stack([generator.permutation(SHAPE.num_experts)[:TOP_K] for _ in range(NUM_ELEMENTS)])
    tokens = generator.integers(0, 200, (num_ranks, NUM_ELEMENTS)) * (generator.random((num_ranks, NUM_ELEMENTS)) < 0.4)
    tokens[-1] = 0
    return experts, tokens


def rows_by_hand(plan: ExpertPlan) -> np.ndarray:
    rows = np.zeros((plan.num_ranks, plan.num_ranks), dtype=int)
    for source in range(plan.num_ranks):
        for element in range(len(plan.experts)):
            for to in set(plan.destination[source, element].tolist()):
                rows[source, to] += plan.tokens[source, element]
    return rows


@pytest.mark.parametrize(("total", "parts"), [(8, 4), (10, 4), (3, 8), (0, 2), (7, 1)])
def test_blocks_are_even_to_one(total: int, parts: int) -> None:
    sizes = np.diff(blocks(total, parts))
    assert sizes.sum() == total
    assert len(sizes) == parts
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("rule", [None, CHEAP, ReplicationRule(flops_per_byte=20.0)])
def test_every_copy_is_computed_once_where_its_expert_is(num_ranks: int, rule: ReplicationRule | None) -> None:
    experts, tokens = composition(num_ranks)
    plan = place_experts(experts, tokens, SHAPE, "tokens", rule)
    assert plan.loads.sum() == plan.loads_before.sum() == TOP_K * tokens.sum()
    assert plan.loads.max() <= plan.loads_before.max()
    np.testing.assert_array_equal(plan.rows, rows_by_hand(plan))
    for source, element, choice in np.ndindex(plan.destination.shape):
        if tokens[source, element]:
            expert, rank = experts[element, choice], plan.destination[source, element, choice]
            assert plan.computed[rank, expert]
            assert plan.borrowed[rank, expert] == (home_ranks(SHAPE.num_experts, num_ranks)[expert] != rank)


def test_plans_are_the_same_wherever_they_are_made() -> None:
    experts, tokens = composition(6)
    plans = [place_experts(experts.copy(), tokens.copy(), SHAPE, "tokens", CHEAP) for _ in range(2)]
    np.testing.assert_array_equal(plans[0].destination, plans[1].destination)


def test_one_element_on_all_ranks_is_balanced_by_replication() -> None:
    experts, tokens = composition(4)
    tokens[:] = 0
    tokens[:, 5] = 300
    plan = place_experts(experts, tokens, SHAPE, "tokens", CHEAP)
    assert sorted(plan.loads_before.tolist()) == [0, 1200, 1200, 1200]
    assert plan.loads.tolist() == [900] * 4


def test_replication_stops_where_it_does_not_pay() -> None:
    experts, tokens = composition(4)
    free = place_experts(experts, tokens, SHAPE, "tokens", CHEAP)
    assert free.borrowed.any()
    for rule in (None, ReplicationRule(flops_per_byte=1e9), ReplicationRule(flops_per_byte=0.01, most_replicas=0)):
        assert not place_experts(experts, tokens, SHAPE, "tokens", rule).borrowed.any()
    few = place_experts(experts, 1 * (tokens > 0), SHAPE, "tokens", ReplicationRule())
    assert not few.borrowed.any()  # a handful of tokens is computed sooner than an expert is moved


def test_a_rank_borrows_at_most_so_many() -> None:
    experts, tokens = composition(5)
    for most in (1, 2):
        rule = ReplicationRule(flops_per_byte=0.01, most_replicas=most)
        plan = place_experts(experts, tokens, SHAPE, "tokens", rule)
        assert 1 <= plan.borrowed.sum(axis=1).max() <= most


@pytest.mark.parametrize("seed", range(5))
def test_moves_keep_their_books(seed: int) -> None:
    """Loads, rows and holders are updated move by move: they must stay what counting anew gives."""
    experts, tokens = composition(5, seed)
    home = np.broadcast_to(home_ranks(SHAPE.num_experts, 5)[experts], (5, *experts.shape))
    moves, destination, made = _Moves(experts, tokens, home, SHAPE, CHEAP), home.copy(), 0
    while moves.make_next():
        segments, taker = moves.made[-1]
        destination.reshape(-1)[moves.place[segments]] = taker
        plan = ExpertPlan(
            strategy="tokens", experts=experts, tokens=tokens, destination=destination.copy(), num_experts=10
        )
        np.testing.assert_array_equal(moves.loads, plan.loads)
        np.testing.assert_array_equal(moves.rows, plan.rows)
        np.testing.assert_array_equal(moves.holds & ~moves.at_home, plan.borrowed)
        made += 1
    assert made > 0


def test_weights_go_to_the_ranks_that_need_them() -> None:
    experts, tokens = composition(3)
    plan = place_experts(experts, tokens, SHAPE, "weights")
    for rank in range(3):
        needed = {expert for element in np.flatnonzero(tokens[rank]) for expert in experts[element].tolist()}
        assert set(np.flatnonzero(plan.restored[rank])) == needed
    assert plan.loads.tolist() == (TOP_K * tokens.sum(axis=1)).tolist()
    assert plan.rows.tolist() == np.diag(tokens.sum(axis=1)).tolist()
    kept = np.diff(division("weights", SHAPE, 3)).sum(axis=0)
    assert kept.sum() == SHAPE.num_weights
    sent = weights_sent(plan, SHAPE)
    assert sent.sum(axis=0).tolist() == (plan.restored.sum(axis=1) * SHAPE.num_weights).tolist()
    assert sent[2].tolist() == (plan.restored.sum(axis=1) * kept[2]).tolist()


def test_traffic_counted_by_hand() -> None:
    experts = np.array([[0, 1], [2, 3]])  # two ranks: experts 0, 1 live on rank 0, experts 2, 3 on rank 1
    tokens = np.array([[5, 7], [0, 2]])
    shape = ExpertShape(width=4, hidden=6, num_experts=4)
    plan = place_experts(experts, tokens, shape, "tokens")
    assert plan.rows.tolist() == [[5, 7], [0, 2]]  # one row, not two, for both experts of a token
    assert exchange_traffic(plan, shape, 0) == dict.fromkeys(("FE", "FF", "BF", "BE"), (2, 7 * 4 * 4))
    compressed = exchange_traffic(plan, shape, 1, compressed=True)
    assert compressed["BF"] == (2, (7 + 2 * 1) * 4 * 2)  # one header row there, one back, for two elements
    plan = place_experts(experts, tokens, shape, "weights")
    traffic = exchange_traffic(plan, shape, 0, restored_in=("FE", "FF"))
    half = shape.num_weights // 2
    assert traffic == {"FE": (1, 2 * half * 4), "FF": (1, 2 * half * 4), "BF": (0, 0), "BE": (1, 4 * half * 4)}


def test_one_rank_sends_nothing() -> None:
    experts, _ = composition(1)
    tokens = np.ones((1, NUM_ELEMENTS), dtype=int)
    for strategy in ("tokens", "weights"):
        plan = place_experts(experts, tokens, SHAPE, strategy, CHEAP)
        assert set(exchange_traffic(plan, SHAPE, 0).values()) == {(0, 0)}


def test_restorations_add_up() -> None:
    for num_blocks, keep in ((5, 2), (3, 1), (2, 2), (4, None)):
        held = num_blocks if keep is None else keep
        total = sum(len(restoring_phases(block, num_blocks, keep)) for block in range(num_blocks))
        assert total == num_blocks + 3 * (num_blocks - held)


def test_importable_without_torch() -> None:
    code = "import sys, janus.placement; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
