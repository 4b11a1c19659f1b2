"""The registry of collective algorithms: a collective and an algorithm's name to its schedule among n ranks.

It owns the names and the check of what users ask for; the algorithms are in ``algorithms_*``, prices in
``closed_form`` and ``flow_events``, which library uses which in ``selection``.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from janus.errors import UserError
from perfmodel.network import algorithms_bine as bine
from perfmodel.network import algorithms_exchange as exchange
from perfmodel.network import algorithms_gather as gather
from perfmodel.network import algorithms_levels as levels
from perfmodel.network import algorithms_reduce as reduce
from perfmodel.network import algorithms_torus as torus
from perfmodel.network import algorithms_tree as tree
from perfmodel.network.algorithms_steps import Floats, Recipe, StepSchedule, schedule_of

RECIPES: dict[str, dict[str, Callable[..., Recipe]]] = {
    "all_reduce": {
        "ring": reduce.ring,
        "segmented_ring": reduce.segmented_ring,
        "recursive_doubling": reduce.recursive_doubling,
        "rabenseifner": reduce.rabenseifner,
        "reduce_broadcast": reduce.reduce_broadcast,
        "allgather_reduce": reduce.allgather_reduce,
        "linear": reduce.linear,
        "double_binary_tree": tree.double_binary_tree,
        "two_level": levels.all_reduce,
        "leader": levels.leader,
        "multi_rail_ring": levels.multi_rail_all_reduce,
        "bucket": torus.all_reduce,
        "bine": bine.all_reduce,
        "bine_permuted": bine.permuted(bine.all_reduce),
        "bine_blocks": bine.block_by_block(bine.all_reduce),
        "bine_latency": bine.all_reduce_latency,
    },
    "all_gather": {
        "ring": gather.ring,
        "recursive_doubling": gather.recursive_doubling,
        "bruck": gather.bruck,
        "neighbor_exchange": gather.neighbor_exchange,
        "linear": gather.linear,
        "sparbit": gather.sparbit,
        "gather_broadcast": gather.gather_broadcast,
        "two_level": levels.all_gather,
        "multi_rail_ring": levels.multi_rail_all_gather,
        "bucket": torus.all_gather,
        "bine": bine.all_gather,
        "bine_permuted": bine.permuted(bine.all_gather),
        "bine_blocks": bine.block_by_block(bine.all_gather),
    },
    "reduce_scatter": {
        "ring": reduce.ring_reduce_scatter,
        "recursive_halving": reduce.recursive_halving_reduce_scatter,
        "recursive_distance_doubling": bine.recursive_distance_doubling,
        "pairwise": reduce.pairwise_reduce_scatter,
        "reduce_then_scatter": reduce.reduce_then_scatter,
        "two_level": levels.reduce_scatter,
        "multi_rail_ring": levels.multi_rail_reduce_scatter,
        "bucket": torus.reduce_scatter,
        "bine": bine.reduce_scatter,
        "bine_permuted": bine.permuted(bine.reduce_scatter),
        "bine_blocks": bine.block_by_block(bine.reduce_scatter),
    },
    "all_to_all": {
        "pairwise": exchange.pairwise,
        "linear": exchange.linear,
        "linear_sync": exchange.linear_sync,
        "bruck": exchange.bruck,
        "node_aggregated": levels.node_aggregated,
        "bine": bine.all_to_all,
    },
    "broadcast": {
        "linear": tree.linear,
        "binomial": tree.binomial,
        "binary": tree.binary,
        "split_binary": tree.split_binary,
        "knomial": tree.knomial,
        "chain": tree.chain,
        "scatter_allgather": tree.scatter_allgather,
        "scatter_ring": tree.scatter_ring,
        "leader": levels.broadcast,
        "bine": bine.broadcast_tree,
        "bine_scatter_allgather": bine.broadcast_scatter_allgather,
    },
}


def _maker(collective: str, algorithm: str) -> Callable[..., StepSchedule]:
    def make(num_ranks: int, **options: Any) -> StepSchedule:
        return make_schedule(collective, algorithm, num_ranks, **options)

    return make


ALGORITHMS: dict[str, dict[str, Callable[..., StepSchedule]]] = {
    collective: {algorithm: _maker(collective, algorithm) for algorithm in recipes}
    for collective, recipes in RECIPES.items()
}


def _known(collective: str, algorithm: str) -> Callable[..., Recipe]:
    """The recipe of a name. Raises UserError with what is known."""
    if collective not in RECIPES:
        raise UserError(f"no collective {collective!r}: known are {', '.join(RECIPES)}")
    recipes = RECIPES[collective]
    if algorithm not in recipes:
        near = difflib.get_close_matches(algorithm, recipes, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no algorithm {algorithm!r} for {collective}: {hint}known are {', '.join(recipes)}")
    return recipes[algorithm]


def options_of(collective: str, algorithm: str) -> list[str]:
    """Names of the options an algorithm takes."""
    return [name for name in inspect.signature(_known(collective, algorithm)).parameters if name != "num_ranks"]


@lru_cache(maxsize=4096)
def _cached(collective: str, algorithm: str, num_ranks: int, options: tuple[tuple[str, Any], ...]) -> StepSchedule:
    return schedule_of(collective, algorithm, num_ranks, RECIPES[collective][algorithm](num_ranks, **dict(options)))


def make_schedule(
    collective: str, algorithm: str, num_ranks: int, *, traffic_matrix: Floats | None = None, **options: Any
) -> StepSchedule:
    """The schedule of an algorithm among num_ranks ranks; the same object for the same arguments.

    traffic_matrix: float64 [n, n], all_to_all only: what the row's rank sends to the column's, any unit; m is then the
    largest row sum. options: those of the algorithm (``options_of``): num_segments (pipelines), radix (knomial, bruck),
    window (linear_sync), order (pairwise: "shift" or "xor"), between (two_level, leader), rails (double_binary_tree),
    shape (bucket: a tuple), ranks_per_node; that one is accepted and ignored where the algorithm does not know nodes.
    Raises UserError for an unknown name or an impossible number.
    """
    allowed = options_of(collective, algorithm)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    if "ranks_per_node" not in allowed:
        options.pop("ranks_per_node", None)
    _check_options(collective, algorithm, num_ranks, options, allowed)
    if traffic_matrix is None:
        return _cached(collective, algorithm, int(num_ranks), tuple(sorted(options.items())))
    if "traffic_matrix" not in allowed:
        raise UserError(f"{collective} {algorithm} takes no traffic matrix: only all_to_all algorithms do")
    recipe = RECIPES[collective][algorithm](num_ranks, traffic_matrix=_checked(traffic_matrix, num_ranks), **options)
    return schedule_of(collective, algorithm, num_ranks, recipe)


def _check_options(
    collective: str, algorithm: str, num_ranks: int, options: dict[str, Any], allowed: list[str]
) -> None:
    what = f"{collective} {algorithm}"
    if num_ranks < 1:
        raise UserError(f"{what} among {num_ranks} ranks: give 1 or more")
    for name, value in options.items():
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise UserError(f"{what} has no option {name!r}: its options are {known}")
        if isinstance(value, int | float) and value < (2 if name == "radix" else 1):
            raise UserError(f"{what}: {name} is {value}: give {2 if name == 'radix' else 1} or more")
    if num_ranks % options.get("ranks_per_node", 1):
        raise UserError(
            f"{what}: {num_ranks} ranks are no multiple of {options['ranks_per_node']} ranks per node: "
            "use full nodes, or an algorithm on one level"
        )
    shape = tuple(options.get("shape", ())) or (num_ranks,)
    if min(shape) < 1 or math.prod(shape) != num_ranks:
        raise UserError(f"{what}: shape {shape} has {math.prod(shape)} places: it must have {num_ranks}, one per rank")
    between = options.get("between", "ring")
    if between not in levels.BETWEEN:
        raise UserError(f"{what}: between nodes {between!r}: use one of {', '.join(levels.BETWEEN)}")
    if options.get("rails", 1) > options.get("ranks_per_node", 1):
        raise UserError(f"{what}: {options['rails']} rails: give at most the ranks per node, with ranks_per_node")
    order = options.get("order", "shift")
    if order not in ("shift", "xor") or (order == "xor" and num_ranks & (num_ranks - 1)):
        raise UserError(f'{what}: order {order!r} with {num_ranks} ranks: use "shift", or "xor" with a power of two')


def _checked(traffic_matrix: Floats, num_ranks: int) -> Floats:
    matrix = np.asarray(traffic_matrix, dtype=np.float64)
    if matrix.shape != (num_ranks, num_ranks) or not np.isfinite(matrix).all() or (matrix < 0).any():
        raise UserError(
            f"traffic matrix of shape {matrix.shape} for {num_ranks} ranks: it must be [{num_ranks}, {num_ranks}], "
            "finite and not negative"
        )
    return exchange.normalised(matrix) if matrix.any() else matrix
