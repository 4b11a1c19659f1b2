"""Matrix products and parameters of MatRIS (``family = "matris"``): formulas of the model configuration.

It describes janus/model/matris.py; tests hold it to the real model (parameters exactly, FLOPs to torch's counter).
d width, N atoms, E directed edges, U = E/2 pairs, P = bonds/2 bonded pairs, A angles.
Source of the architecture: arXiv 2603.02002 and its released code (docs/model.md). A Linear on a concatenation of
gathered features is split: its products run once per line of each table, not once per row.

Subtleties held by the tests: the atoms' features do not depend on positions before the first atom attention, so
their products vanish from the force pass; the energy head's last gradient is a constant; in the last block the
updates of angles and edges are read by nothing (absent by default, forward only in ``compat`` models).
"""

from __future__ import annotations

import itertools

from janus.config import ModelConfig
from perfmodel.operators import Operator
from perfmodel.products import Product, RowKind


def products(model: ModelConfig) -> list[Product]:
    """Every matrix product of one energy forward."""
    result = _embedding(model)
    for block in range(model.num_blocks):
        result += _block(model, block)
    return result + _readout(model)


def _embedding(model: ModelConfig) -> list[Product]:
    d, radial, angular = model.width, model.num_radial, model.num_angular
    return [
        Product(part="embedding", rows="once", inputs=d, outputs=radial, copies=d, moves=False),
        Product(part="embedding", rows="edge_pairs", inputs=radial, outputs=d),
        Product(part="embedding", rows="edge_pairs", inputs=d, outputs=d),
        Product(part="embedding", rows="once", inputs=d, outputs=angular, copies=d, moves=False),
        Product(part="embedding", rows="angles", inputs=angular, outputs=d),
        Product(part="embedding", rows="atoms", inputs=d, outputs=d, moves=False),
    ]


def energy_head(width: int) -> list[Product]:
    """d -> 2d -> d -> d -> 1 per atom."""
    sizes = (width, 2 * width, width, width)
    hidden = [
        Product(part="readout", rows="atoms", inputs=inputs, outputs=outputs)
        for inputs, outputs in itertools.pairwise(sizes)
    ]
    return [*hidden, Product(part="readout", rows="atoms", inputs=width, outputs=1, cotangent_learned=False)]


def _readout(model: ModelConfig) -> list[Product]:
    d = model.width
    result = energy_head(d)
    if model.compat:
        result += [
            Product(part="magnetic moments", rows="atoms", inputs=d, outputs=2 * d, reaches_loss=False),
            Product(part="magnetic moments", rows="atoms", inputs=2 * d, outputs=1, reaches_loss=False),
        ]
    return result


def _block(model: ModelConfig, block: int) -> list[Product]:
    part, d = f"block {block}", model.width
    is_last = block == model.num_blocks - 1
    return [
        *_attention(part, d, rows="angles", table="angles", nodes="bond_pairs", updated="edge_pairs"),
        *_attention(part, d, rows="edges", table="edge_pairs", nodes="atoms", updated="atoms", nodes_move=block > 0),
        *_line_refinement(part, model, is_last),
        *_atom_refinement(part, model, is_last),
    ]


def _table(part: str, width: int, rows: RowKind, *, copies: float = 1, moves: bool = True) -> Product:
    """d x d products on the lines of one table."""
    return Product(part=part, rows=rows, inputs=width, outputs=width, copies=copies, moves=moves)


def _second(part: str, width: int, rows: RowKind) -> Product:
    """Second layers of core and gate of a gated MLP, fused with the SiLU before them."""
    return Product(part=part, rows=rows, inputs=width, outputs=width, copies=2, after_silu=True)


def _sources(nodes: RowKind) -> RowKind:
    """Nodes as sources: neighbours of atoms may be ghosts; bonded pairs of other ranks are never read."""
    return "neighbours" if nodes == "atoms" else nodes


def _attention(part: str, width: int, *, rows: RowKind, table: RowKind, nodes: RowKind, updated: RowKind,
               nodes_move: bool = True) -> list[Product]:  # fmt: skip
    """Gated MLP on rows (core and gate: 2 x (row, target, source) in, 2 out), two logits, gated MLP on nodes."""
    return [
        _table(part, width, table, copies=2),
        _table(part, width, nodes, copies=2, moves=nodes_move),
        _table(part, width, _sources(nodes), copies=2, moves=nodes_move),
        _second(part, width, rows),
        _table(part, width, table, copies=2),
        Product(part=part, rows=updated, inputs=3 * width, outputs=width, copies=2),
        _second(part, width, updated),
    ]


def _line_refinement(part: str, model: ModelConfig, is_last: bool) -> list[Product]:
    d = model.width
    result = [
        _table(part, d, "angles", copies=2),
        _table(part, d, "atoms", copies=2),
        _table(part, d, "bond_pairs", copies=4),
        _second(part, d, "angles"),
        Product(part=part, rows="bond_pairs", inputs=model.num_radial, outputs=d),
        _table(part, d, "bond_pairs"),
        Product(part=part, rows="bond_pairs", inputs=d, outputs=d, after_silu=True),
    ]
    if model.compat or not is_last:
        result += [_update(part, d, "angles", is_last), _outer(part, d, "angles", is_last)]
    return result


def _atom_refinement(part: str, model: ModelConfig, is_last: bool) -> list[Product]:
    d = model.width
    result = [
        _table(part, d, "edge_pairs", copies=2),
        _table(part, d, "atoms", copies=2),
        _table(part, d, "neighbours", copies=2),
        _second(part, d, "edges"),
        Product(part=part, rows="edge_pairs", inputs=model.num_radial, outputs=d),
        _table(part, d, "atoms"),
        _outer(part, d, "atoms", False),
    ]
    if model.compat or not is_last:
        result += [_update(part, d, "edges", is_last), _outer(part, d, "edge_pairs", is_last, fused=False)]
    return result


def _update(part: str, width: int, rows: RowKind, dead: bool) -> Product:
    """First layer of a feed-forward update; nothing reads those of the last block's angles and edges."""
    return Product(part=part, rows=rows, inputs=width, outputs=width, reaches_loss=not dead)


def _outer(part: str, width: int, rows: RowKind, dead: bool, fused: bool = True) -> Product:
    """Second layer of a feed-forward update: its result leaves the block."""
    return Product(part=part, rows=rows, inputs=width, outputs=width, reaches_loss=not dead, leaves_block=True,
                   after_silu=fused)  # fmt: skip


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters per part, exact.

    One block of the original is 62 d^2 + 70 d (two attentions 18 d^2 + 18 d each, atom refinement 12 d^2 + 17 d, line
    refinement 14 d^2 + 17 d); the default's last block has no angle and edge updates (4 d^2 + 2 d fewer).
    """
    d, radial, angular = model.width, model.num_radial, model.num_angular
    attention, refinements = 18 * d * d + 18 * d, 26 * d * d + (20 + 2 * radial) * d
    blocks = model.num_blocks * (2 * attention + refinements)
    result = {
        "atom_embedding": model.num_elements * d + d * d,
        "edge_embedding": 2 * radial + radial * d + 2 * d * d + 2 * d,
        "angle_embedding": angular * d + d * d + ((angular - 1) // 2 if model.compat else 0),
        "blocks": blocks if model.compat else blocks - (4 * d * d + 2 * d),
        "readout": 2 * d + (2 * d * d + 2 * d) + (2 * d * d + d) + (d * d + d) + (d + 1),
    }
    if model.compat:
        result["magnetic_moment_head"] = 2 * d * d + 2 * d + 2 * d + 1
        result["reference_energies"] = model.num_elements
    return result


def operators(model: ModelConfig) -> list[Operator]:
    """Every fused operator of one energy forward."""
    d = model.width
    result = [
        Operator(part="embedding", kind="silu", rows="angles", channels=d),
        Operator(part="embedding", kind="silu", rows="edge_pairs", channels=d),
    ]
    for block in range(model.num_blocks):
        result += _block_operators(model, f"block {block}", is_last=block == model.num_blocks - 1)
    return result


def gated_operators(part: str, width: int, rows: RowKind, tables: int) -> list[Operator]:
    """Core and gate: sum of gathered tables, SiLU; then the gated norm. tables 0: dense, nothing gathered."""
    result = [
        Operator(part=part, kind="silu", rows=rows, channels=width, copies=2),
        Operator(part=part, kind="gated_norm", rows=rows, channels=width),
    ]
    if tables:
        result.append(Operator(part=part, kind="gather", rows=rows, channels=width, copies=2 * tables))
    return result


def _attention_operators(part: str, width: int, rows: RowKind, nodes: RowKind, shared_rows: bool) -> list[Operator]:
    result = [
        *gated_operators(part, width, rows, tables=3 if shared_rows else 2),
        Operator(part=part, kind="attention_sums", rows=rows, channels=width, copies=2),
        *gated_operators(part, width, nodes, tables=0),
    ]
    if shared_rows:  # one line per pair, read by its two directed edges: logits are gathered, values averaged
        result.append(Operator(part=part, kind="gather", rows=rows, channels=width, copies=3))
    return result


def _block_operators(model: ModelConfig, part: str, is_last: bool) -> list[Operator]:
    d = model.width
    result = [
        *_attention_operators(part, d, "angles", "edge_pairs", shared_rows=False),
        *_attention_operators(part, d, "edges", "atoms", shared_rows=True),
        *gated_operators(part, d, "angles", tables=3),
        *gated_operators(part, d, "edges", tables=3),
        Operator(part=part, kind="weighted_sum", rows="angles", channels=d),
        Operator(part=part, kind="weighted_sum", rows="edges", channels=d),
        Operator(part=part, kind="silu", rows="bond_pairs", channels=d),
        Operator(part=part, kind="silu", rows="atoms", channels=d),
        # bonds out of pairs twice, updates of bonds into pairs; messages to bonds into pairs
        Operator(part=part, kind="gather", rows="bond_pairs", channels=d, copies=3),
        Operator(part=part, kind="gather", rows="bond_pairs", channels=2 * d),
    ]
    if model.compat or not is_last:
        dead = is_last
        result += [
            Operator(part=part, kind="silu", rows="angles", channels=d, reaches_loss=not dead),
            Operator(part=part, kind="silu", rows="edges", channels=d, reaches_loss=not dead),
            Operator(part=part, kind="gather", rows="edges", channels=d, reaches_loss=not dead),
        ]
    return result


def parameter_tensors(model: ModelConfig) -> int:
    """Number of trained parameter tensors (the optimizer's cost has a part per tensor)."""
    embedding = 2 + 2 + 5 + 2 + (1 if model.compat else 0)
    block, updates = 2 * 22 + 13 + 13, 6
    blocks = model.num_blocks * (block + updates) - (0 if model.compat else updates)
    return embedding + blocks + 10 + (4 if model.compat else 0)
