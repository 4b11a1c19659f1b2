"""Matrix products, operators and parameters of MatRIS-MoE (``family = "matris-moe"``): formulas of the configuration.

It describes janus/model/matris_moe.py; tests hold it to the real model (parameters exactly, FLOPs to torch's counter).
d width, a angle_width, X experts, k routed experts per token, n_s shared experts, one expert 3 d h weights.
Source of the architecture: arXiv 2604.15821 (totals, top-k); the rest is this project's choice (docs/model.md).
"""

from __future__ import annotations

from janus.config import ExpertConfig, ModelConfig
from perfmodel.operators import Operator
from perfmodel.products import Product, RowKind
from perfmodel.workload_matris import energy_head, gated_operators


def experts_of(model: ModelConfig) -> ExpertConfig:
    """The expert sizes of a matris-moe configuration."""
    assert model.experts is not None, f"family {model.family} without experts"
    return model.experts


def products(model: ModelConfig) -> list[Product]:
    """Every matrix product of one energy forward."""
    d, radial = model.width, model.num_radial
    result = [
        Product(part="embedding", rows="once", inputs=d, outputs=radial, copies=d, moves=False),
        Product(part="embedding", rows="edge_pairs", inputs=radial, outputs=d),
        Product(part="embedding", rows="edge_pairs", inputs=d, outputs=d),
        Product(part="embedding", rows="angles", inputs=model.num_angular, outputs=model.angle_width),
        Product(part="embedding", rows="atoms", inputs=d, outputs=d, moves=False),
    ]
    for block in range(model.num_blocks):
        result += _block(model, f"block {block}", atoms_move=block > 0)
    return result + energy_head(d)


def _block(model: ModelConfig, part: str, atoms_move: bool) -> list[Product]:
    d, a, experts = model.width, model.angle_width, experts_of(model)
    return [
        Product(part=f"{part} three-body", rows="bonds", inputs=d, outputs=a),
        Product(part=f"{part} three-body", rows="angles", inputs=a, outputs=a, copies=2),
        Product(part=f"{part} three-body", rows="bonds", inputs=a, outputs=a, copies=4),
        Product(part=f"{part} three-body", rows="angles", inputs=a, outputs=a, copies=2, after_silu=True),
        Product(part=f"{part} three-body", rows="bonds", inputs=model.num_radial, outputs=a),
        Product(part=f"{part} three-body", rows="bonds", inputs=a, outputs=d),
        Product(part=f"{part} message", rows="atoms", inputs=d, outputs=d, copies=2, moves=atoms_move),
        *_experts(f"{part} message", "edges", d, experts.message_hidden, experts, leaves_block=False),
        Product(part=f"{part} attention", rows="atoms", inputs=d, outputs=d, moves=atoms_move),
        Product(part=f"{part} attention", rows="edges", inputs=d, outputs=d, copies=2),
        Product(part=f"{part} attention", rows="atoms", inputs=d, outputs=d),
        *_experts(f"{part} feature", "atoms", d, experts.feature_hidden, experts, leaves_block=True),
    ]


def _experts(
    part: str, rows: RowKind, width: int, hidden: int, experts: ExpertConfig, leaves_block: bool
) -> list[Product]:
    """Routed experts (k copies of every token, one product per expert) and the shared ones, joined into one."""
    shared = experts.num_shared_experts * hidden
    copies: RowKind = "message_copies" if rows == "edges" else "feature_copies"
    result = [
        Product(part=part, rows=copies, inputs=width, outputs=2 * hidden, top_k=experts.top_k,
                num_experts=experts.num_experts),
        Product(part=part, rows=copies, inputs=hidden, outputs=width, top_k=experts.top_k,
                num_experts=experts.num_experts, leaves_block=leaves_block),
    ]  # fmt: skip
    if shared:
        result += [
            Product(part=part, rows=rows, inputs=width, outputs=2 * shared),
            Product(part=part, rows=rows, inputs=shared, outputs=width, leaves_block=leaves_block),
        ]
    return result


def operators(model: ModelConfig) -> list[Operator]:
    """Every fused operator of one energy forward."""
    d = model.width
    result = [
        Operator(part="embedding", kind="silu", rows="angles", channels=model.angle_width),
        Operator(part="embedding", kind="silu", rows="edge_pairs", channels=d),
        Operator(part="embedding", kind="gather", rows="edges", channels=d),
        Operator(part="embedding", kind="gather", rows="bonds", channels=model.num_radial),
    ]
    for block in range(model.num_blocks):
        result += _block_operators(model, f"block {block}")
    return result


def _block_operators(model: ModelConfig, part: str) -> list[Operator]:
    d, a, experts = model.width, model.angle_width, experts_of(model)
    return [
        *gated_operators(part, a, "angles", tables=2),
        Operator(part=part, kind="weighted_sum", rows="angles", channels=a),
        Operator(part=part, kind="gather", rows="bonds", channels=d, copies=2),
        Operator(part=part, kind="gather", rows="edges", channels=d, copies=2),  # both atoms of each edge
        _expert_operators(part, "edges", d, experts),
        Operator(part=part, kind="gather", rows="edges", channels=d, copies=2),  # queries out, weighted values in
        Operator(part=part, kind="gather", rows="edges", channels=model.num_heads),  # sums of the weights
        _expert_operators(part, "atoms", d, experts),
    ]


def _expert_operators(part: str, rows: RowKind, width: int, experts: ExpertConfig) -> Operator:
    """Copies of the tokens, and their sum back."""
    copies: RowKind = "message_copies" if rows == "edges" else "feature_copies"
    return Operator(part=part, kind="gather", rows=copies, channels=width, copies=2, top_k=experts.top_k)


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters per part, exact; routed experts apart, so that the active count follows."""
    d, a, radial, experts = model.width, model.angle_width, model.num_radial, experts_of(model)
    blocks, shared = model.num_blocks, experts.num_shared_experts
    message, feature = 3 * d * experts.message_hidden, 3 * d * experts.feature_hidden
    return {
        "atom_embedding": model.num_elements * d + d * d,
        "edge_embedding": 2 * radial + radial * d + 2 * d * d + 2 * d,
        "angle_embedding": model.num_angular * a,
        "three_body": blocks * (2 * d * a + 8 * a * a + 8 * a + radial * a),
        "attention": blocks * (4 * d * d + 4 * d),
        "message_shared": blocks * (2 * d * d + 4 * d + shared * message),
        "feature_shared": blocks * (2 * d + shared * feature),
        "gates": blocks * 2 * model.num_elements * experts.num_experts,
        "message_experts": blocks * experts.num_experts * message,
        "feature_experts": blocks * experts.num_experts * feature,
        "readout": 2 * d + (2 * d * d + 2 * d) + (2 * d * d + d) + (d * d + d) + (d + 1),
    }


def parameter_tensors(model: ModelConfig) -> int:
    """Number of trained parameter tensors (the optimizer's cost has a part per tensor)."""
    shared = 2 if experts_of(model).num_shared_experts else 0
    block = 12 + (7 + 2 + shared) + 8 + (5 + shared)
    return 2 + 2 + 5 + 1 + model.num_blocks * block + 10
