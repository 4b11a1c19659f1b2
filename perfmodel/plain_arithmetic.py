"""Plain arithmetic of a training step: what neither a product nor a fused operator does, per phase.

It owns how many numbers it reads and writes and how many kernels it is, as tables. Most of it is what autograd itself
does: gradients added up where a tensor is used several times, zeros filled, layer normalisations of MatRIS-MoE.

Numbers moved in a phase = sum over table lines of rows(kind) x channels(unit) x arrays(phase): every operand and result
of a kernel counts once, an index of 8 bytes as two numbers of 4. The tables were counted, not estimated: every operator
that a real step dispatches (torch 2.13, CPU), sorted by the number of its rows, for models of 3 and 4 blocks and
several widths; the coefficients of the unknown widths came out whole. "block": per block; "outside": the rest, with
what the first and the last block do less. tests/perfmodel/test_executed.py holds bytes and calls to the counter again,
for other depths and widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from janus.config import ModelConfig
from perfmodel.products import PHASES, Counts, RowKind
from perfmodel.traffic_parameters import block_of, is_routed, trained_parameters

Arrays = tuple[float, float, float, float]  # in FE, FF, BF, BE
Table = Mapping[tuple[RowKind, str], Arrays]

_MATRIS_BLOCK: Table = {
    ("atoms", "width"): (44, 102, 177, 142),
    ("edges", "width"): (12, 13, 15, 56),
    ("edges", "one"): (0, 6, 6, 6),
    ("edge_pairs", "width"): (32, 70, 62, 97),
    ("edge_pairs", "num_radial"): (0, 3, 0, 3),
    ("bond_pairs", "width"): (39, 87, 169, 113),
    ("bond_pairs", "num_radial"): (0, 3, 0, 3),
    ("angles", "width"): (18, 31, 29, 79),
    ("angles", "one"): (0, 6, 6, 6),
    ("once", "width"): (16, 56, 72, 0),
    ("once", "parameters"): (0, 0, 0, 3.8),
}
_MATRIS_OUTSIDE: Table = {
    ("structures", "one"): (111, 142, 563, 127),
    ("atoms", "width"): (13, 60, 178, 38),
    ("atoms", "one"): (40, 73, 243, 100),
    ("edges", "width"): (0, -5, 0, -8),
    ("edges", "one"): (54, 70, 51, 73),
    ("edge_pairs", "width"): (-5, -4, 71, 0),
    ("edge_pairs", "num_radial"): (5, 14, 30, 23),
    ("edge_pairs", "one"): (117, 235.5, 497.7, 314.5),
    ("bonds", "one"): (27, 79, 169, 91),
    ("bond_pairs", "num_radial"): (5, 11, 30, 20),
    ("bond_pairs", "one"): (110, 202, 360.5, 272),
    ("angles", "width"): (-3, -8, -7, -11),
    ("angles", "num_angular"): (12, 21, 82, 27),
    ("angles", "one"): (28, -2, -229, 13),
    ("once", "elements"): (1, 0, 0, 0),
}
_MOE_BLOCK: Table = {
    ("atoms", "width"): (21, 44, 307, 53),
    ("atoms", "shared"): (5, 28, 44, 22),
    ("atoms", "num_heads"): (5, 4, 22, 7),
    ("atoms", "one"): (26, 6, 195, 12),
    ("edges", "width"): (28, 40, 211, 55),
    ("edges", "shared"): (5, 28, 44, 22),
    ("edges", "num_heads"): (19, 44, 79, 59),
    ("edges", "one"): (19, 9, 134, 18),
    ("bonds", "angle_width"): (9, 28, 27, 36),
    ("bonds", "width"): (2, 2, 2, 2),
    ("bonds", "num_radial"): (0, 3, 0, 3),
    ("angles", "angle_width"): (6, 6, 6, 23),
    ("message_copies", "width"): (4, 4, 8, 8),
    ("message_copies", "hidden"): (5, 28, 44, 22),
    ("message_copies", "one"): (17, 1, 2, 12),
    ("feature_copies", "width"): (4, 4, 8, 8),
    ("feature_copies", "hidden"): (5, 28, 44, 22),
    ("feature_copies", "one"): (17, 1, 2, 12),
    ("once", "gate"): (1, 0, 13, 17),
    ("once", "parameters"): (0, 0, 0, 3.6),
    ("once", "routed"): (0, 0, 0, 3),
}
_MOE_OUTSIDE: Table = {
    ("structures", "one"): (111, 142, 563, 127),
    ("atoms", "width"): (13, 58, 28, 35),
    ("atoms", "one"): (40, 69, 113, 100),
    ("edges", "width"): (2, -6, -9, -6),
    ("edges", "one"): (52, 70, 54, 70),
    ("edge_pairs", "width"): (2, 5, 82, 11),
    ("edge_pairs", "num_radial"): (5, 14, 30, 23),
    ("edge_pairs", "one"): (117, 235.5, 497.8, 314.5),
    ("bonds", "num_radial"): (2, -3, 2, -3),
    ("bonds", "one"): (25, 79, 169, 91),
    ("bond_pairs", "num_radial"): (5, 16, 30, 25),
    ("bond_pairs", "one"): (60, 109.5, 214, 149.5),
    ("angles", "angle_width"): (0, -3, 0, 0),
    ("angles", "num_angular"): (12, 21, 82, 27),
    ("angles", "one"): (11, -13, -247, -7),
    ("once", "elements"): (1, 0, 0, 0),
}
# kernels: of a block; of the rest, constant and per angular function
_MATRIS_CALLS: tuple[Arrays, Arrays, Arrays] = ((53, 122, 176, 290), (123, 206, 502, 250), (3, 7, 10, 9))
_MOE_CALLS: tuple[Arrays, Arrays, Arrays] = ((69, 112, 463, 186), (104, 175, 340, 218), (3, 7, 10, 9))


@lru_cache(maxsize=64)
def _units(model: ModelConfig) -> dict[str, float]:
    """Channels by the names of the tables, and numbers of a middle block's parameters: dense, gates, routed experts."""
    parameters = trained_parameters(model)
    last = max(0, model.num_blocks - 2)
    block = {name: numel for name, numel in parameters.items() if block_of(name) == last}
    routed = sum(numel for name, numel in block.items() if is_routed(name))
    gate = sum(numel for name, numel in block.items() if name.endswith("gate.table"))
    return {
        "width": model.width, "num_radial": model.num_radial, "num_angular": model.num_angular, "one": 1,
        "angle_width": model.angle_width, "num_heads": model.num_heads, "elements": model.num_elements * model.width,
        "parameters": sum(block.values()) - routed - gate, "gate": gate, "routed": routed,
    }  # fmt: skip


def _channels(model: ModelConfig, rows: RowKind, unit: str) -> float:
    if unit in ("hidden", "shared"):
        assert model.experts is not None, model.family
        is_message = rows in ("message_copies", "edges")
        hidden = model.experts.message_hidden if is_message else model.experts.feature_hidden
        return hidden * (model.experts.num_shared_experts if unit == "shared" else 1)
    return _units(model)[unit]


def table_numbers(model: ModelConfig, table: Table, counts: Counts, routed_share: float = 1.0) -> dict[str, float]:
    """Numbers that the lines of a table read and write, per phase; ``routed_share``: see ``plain_numbers``."""
    top_k = model.experts.top_k if model.experts is not None else 1
    total = dict.fromkeys(PHASES, 0.0)
    for (rows, unit), arrays in table.items():
        times = counts.rows(rows, top_k) * _channels(model, rows, unit) * (routed_share if unit == "routed" else 1.0)
        for phase, touched in zip(PHASES, arrays, strict=True):
            total[phase] += times * touched
    return total


def gradient_numbers(model: ModelConfig, counts: Counts) -> dict[str, float]:
    """Those of the blocks' ``plain_numbers`` that are of parameters (rows "once")."""
    table = _MATRIS_BLOCK if model.family == "matris" else _MOE_BLOCK
    once: Table = {line: arrays for line, arrays in table.items() if line[0] == "once"}
    return {phase: model.num_blocks * each for phase, each in table_numbers(model, once, counts).items()}


def plain_numbers(model: ModelConfig, counts: Counts, *, routed_share: float = 1.0) -> tuple[dict[str, float], ...]:
    """Numbers that plain arithmetic reads and writes per phase: in all blocks, and outside.

    routed_share: of the routed experts' parameters that have gradients here.
    """
    block, outside = (_MATRIS_BLOCK, _MATRIS_OUTSIDE) if model.family == "matris" else (_MOE_BLOCK, _MOE_OUTSIDE)
    in_blocks = table_numbers(model, block, counts, routed_share)
    return {phase: model.num_blocks * each for phase, each in in_blocks.items()}, table_numbers(model, outside, counts)


def plain_calls(model: ModelConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Kernels of plain arithmetic per phase of a micro-batch: in all blocks, and outside."""
    block, rest, angular = _MATRIS_CALLS if model.family == "matris" else _MOE_CALLS
    return (
        {phase: model.num_blocks * each for phase, each in zip(PHASES, block, strict=True)},
        {phase: each + model.num_angular * more for phase, each, more in zip(PHASES, rest, angular, strict=True)},
    )
