"""Matrix products and parameters of MatRIS (``family = "matris"``): formulas of the model configuration.

It describes janus/model; tests hold it to the real model (parameters exactly, FLOPs to torch's counter).
d width, N atoms, E directed edges, P = E/2 edge pairs, B directed bonds, A angles.
Source of the architecture: arXiv 2603.02002 and facts of the released code; the products are split, so a Linear on
a concatenation [edge, target, source] is one product per edge and one per node for each of target and source.
"""

from __future__ import annotations

from janus.config import ModelConfig
from perfmodel.products import Product, RowKind

ENERGY_HEAD_HIDDEN = (256, 128, 128)  # facts: found by matching the published parameter total
MAGMOM_HEAD_HIDDEN = (256,)


def products(model: ModelConfig) -> list[Product]:
    """Every matrix product of one energy forward."""
    width = model.width
    result = [
        Product(part="embedding", rows="edges", inputs=model.num_radial, outputs=width),
        Product(part="embedding", rows="edges", inputs=width, outputs=width),
        Product(part="embedding", rows="edges", inputs=width, outputs=width),
        Product(part="embedding", rows="angles", inputs=model.num_angular, outputs=width),
        Product(part="embedding", rows="angles", inputs=width, outputs=width),
        Product(part="embedding", rows="atoms", inputs=width, outputs=width, moves=False),
    ]
    for block in range(model.num_blocks):
        part = f"block {block}"
        result += _attention(part, width, rows="angles", nodes="bonds")
        result += _attention(part, width, rows="edges", nodes="atoms")
        result += _refinement(part, width, rows="angles", nodes="bonds", centre=True)
        result += _refinement(part, width, rows="edges", nodes="atoms", centre=False)
    sizes = (width, *ENERGY_HEAD_HIDDEN, 1)
    result += [
        Product(part="readout", rows="atoms", inputs=inputs, outputs=outputs)
        for inputs, outputs in zip(sizes, sizes[1:], strict=False)
    ]
    return result


def _gated(part: str, width: int, rows: RowKind, nodes: tuple[RowKind, ...]) -> list[Product]:
    """Core and gate of a gated MLP on [row, node...]: first layer split, second layer on the rows."""
    first = [Product(part=part, rows=kind, inputs=width, outputs=2 * width) for kind in (rows, *nodes)]
    return [*first, Product(part=part, rows=rows, inputs=width, outputs=width, copies=2)]


def _attention(part: str, width: int, rows: RowKind, nodes: RowKind) -> list[Product]:
    logits = Product(part=part, rows=rows, inputs=width, outputs=2 * width)
    return [*_gated(part, width, rows, (nodes, nodes)), logits, *_gated(part, width, nodes, (nodes, nodes))]


def _refinement(part: str, width: int, rows: RowKind, nodes: RowKind, centre: bool) -> list[Product]:
    attached: tuple[RowKind, ...] = ("atoms", nodes, nodes) if centre else (nodes, nodes)
    return [
        *_gated(part, width, rows, attached),
        Product(part=part, rows=nodes, inputs=width, outputs=width, copies=2),
        Product(part=part, rows=rows, inputs=width, outputs=width, copies=2),
    ]


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters per part: embedding, blocks, readout (and the heads and references of the compat mode)."""
    d, radial, angular = model.width, model.num_radial, model.num_angular
    block = 62 * d * d + 70 * d
    head = (d, *ENERGY_HEAD_HIDDEN, 1)
    result = {
        "atom_embedding": model.num_elements * d + d * d,
        "edge_embedding": 2 * radial + radial * d + 2 * d * d + 2 * d,
        "angle_embedding": (angular // 2) + angular * d + d * d,
        "blocks": model.num_blocks * block,
        "readout": 2 * d + sum(inputs * outputs + outputs for inputs, outputs in zip(head, head[1:], strict=False)),
    }
    if model.compat:
        result["magmom_head"] = d * MAGMOM_HEAD_HIDDEN[0] + 2 * MAGMOM_HEAD_HIDDEN[0] + 1
        result["reference_energies"] = model.num_elements
    return result
