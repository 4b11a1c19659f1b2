"""What a layout adds to a rank's plain arithmetic: rows taken out and put in around collectives, copies of gradients.

It owns numbers read and written, and kernels, per phase; not what is sent (``traffic``). Nothing is added where every
degree is 1. Rows of divided graphs were counted as in ``plain_arithmetic`` (whole coefficients, two ranks); what spread
experts and shards add was fitted to such counts and is coarser. tests/perfmodel/test_executed.py states the errors.
"""

from __future__ import annotations

from janus.config import ModelConfig
from janus.layout import Layout
from perfmodel.plain_arithmetic import Arrays, Table, table_numbers
from perfmodel.products import PHASES, Counts
from perfmodel.traffic_parameters import is_routed, trained_parameters
from perfmodel.workload import PhaseWork

# arrays of width d per block. Rows of ghosts stand for owned rows sent as well, of which there are about as many
_MATRIS_DIVIDED: Table = {
    ("atoms", "width"): (-6, 0, 10, -4),
    ("neighbours", "width"): (14, 24, 14, 28),
    ("edge_pairs", "width"): (4, 12, 12, 12),
    ("bond_pairs", "width"): (10, 30, 30, 18),
    ("ghosts", "width"): (8, 4, 10, 4),
    ("shared_pairs", "width"): (6, 2, 8, 2),
    ("shared_bonded_pairs", "width"): (15, 5, 20, 5),
}
_MOE_DIVIDED: Table = {
    ("atoms", "width"): (1, 3, 1, 3),
    ("neighbours", "width"): (1, 2, 5, 2),
    ("ghosts", "width"): (3, 1, 3, 1),
}
# of each number of a block's messages (MatRIS joins several parts in one, by rank): joined, split, gradients of both
_MATRIS_JOINED: Arrays = (4.3, 4.3, 63, 16)
_MATRIS_MESSAGES: Table = {
    ("ghosts", "width"): (4, 4, 4, 4), ("shared_pairs", "width"): (2, 2, 2, 2),
    ("shared_bonded_pairs", "width"): (5, 5, 5, 5),
}  # fmt: skip
_DIVIDED_CALLS: dict[str, Arrays] = {"matris": (29, 37, 108, 37), "matris-moe": (3, 3, 11, 3)}
_MOVED_ROW: Arrays = (5, 8, 8, 6)  # arrays of width d per token row that is sent
_MOVED_ROW_CALLS: Arrays = (5, 15, 10, 7)  # per block
_MOVED_WEIGHT: Arrays = (3, 3, 3, 6)  # per number of weights that arrives
# 16-bit rows, in every phase: per number of a row that is sent, there and back; kernels of one exchange, and per sender
_COMPRESSED, _COMPRESSED_CALLS, _DECODED_CALLS = 30.0, 22.0, 9.0
# numbers and kernels per parameter and tensor whose gradient is reduce-scattered. Recomputed blocks do not add the
# gradients of BF and BE up before
_REDUCED, _REDUCED_CALLS, _REDUCED_CALLS_RECOMPUTED = 3.2, 1.2, {"BF": 1.2, "BE": 0.4}


def exchange_work(
    model: ModelConfig,
    layout: Layout,
    counts: Counts,
    *,
    recompute: bool,
    item_bytes: int,
    compressed: bool = False,
    moved_rows: tuple[float, float] = (0.0, 0.0),
    moved_weights: float = 0.0,
) -> dict[str, PhaseWork]:
    """Work per phase that the layout adds to one micro-batch on a rank.

    moved_rows: token rows handed to the ranks of the expert group, itself included, of the message and the feature
    layer, mean over blocks; compressed: they travel in 16 bits; moved_weights: numbers of experts' weights that
    arrive, all layers.
    """
    numbers, calls = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
    if layout.graph_degree > 1:
        _add_divided(model, counts, numbers, calls)
    if layout.expert_degree > 1:
        _add(numbers, _MOVED_ROW, model.num_blocks * sum(moved_rows) * model.width)
        _add(calls, _MOVED_ROW_CALLS, model.num_blocks)
        _add(numbers, _MOVED_WEIGHT, moved_weights)
        if compressed:
            exchanges = 4 * model.num_blocks  # there and back, of two layers
            each = _COMPRESSED_CALLS + _DECODED_CALLS * (layout.expert_degree - 1)
            _add(calls, (each,) * 4, exchanges)
            _add(numbers, (_COMPRESSED,) * 4, model.num_blocks * sum(moved_rows) * model.width)
    if recompute:
        numbers, calls = _recomputed(numbers), _recomputed(calls)
    if layout.shard_degree > 1:
        sharded = {
            name: numel
            for name, numel in trained_parameters(model).items()
            if layout.expert_degree == 1 or not is_routed(name)
        }
        for phase in ("BF", "BE") if recompute else ("BE",):
            numbers[phase] += _REDUCED * sum(sharded.values())
            each = _REDUCED_CALLS_RECOMPUTED[phase] if recompute else _REDUCED_CALLS
            calls[phase] += each * len(sharded)
    work = {phase: PhaseWork(plain_bytes=numbers[phase] * item_bytes, launches=calls[phase]) for phase in PHASES}
    if layout.expert_degree > 1:
        for phase, times in zip(PHASES, (1, 2, 4, 2) if recompute else (1, 1, 1, 1), strict=True):
            gathered = 2 * times * model.num_blocks * sum(moved_rows) * model.width
            work[phase].fused["gather"]["forward" if phase == "FE" else "backward"] += gathered
            work[phase].launches += 4 * times * model.num_blocks
    return work


def _add_divided(model: ModelConfig, counts: Counts, numbers: dict[str, float], calls: dict[str, float]) -> None:
    table = _MATRIS_DIVIDED if model.family == "matris" else _MOE_DIVIDED
    for phase, touched in table_numbers(model, table, counts).items():
        numbers[phase] += model.num_blocks * touched
    if model.family == "matris":
        joined = table_numbers(model, _MATRIS_MESSAGES, counts)["FE"]
        _add(numbers, _MATRIS_JOINED, model.num_blocks * joined)
    _add(calls, _DIVIDED_CALLS[model.family], model.num_blocks)


def _add(total: dict[str, float], arrays: Arrays, times: float) -> None:
    for phase, each in zip(PHASES, arrays, strict=True):
        total[phase] += times * each


def _recomputed(once: dict[str, float]) -> dict[str, float]:
    """FF + FE, BF + FE + FF + BE, BE + FE: as blocks run again (``workload.step_flops``)."""
    return {
        "FE": once["FE"], "FF": once["FF"] + once["FE"],
        "BF": once["BF"] + once["FE"] + once["FF"] + once["BE"], "BE": once["BE"] + once["FE"],
    }  # fmt: skip
