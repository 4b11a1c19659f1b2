"""Matrix products and parameters of MatRIS-MoE (``family = "matris-moe"``): formulas of the model configuration.

It describes janus/model; tests hold it to the real model (parameters exactly, FLOPs to torch's counter).
d width, a angle_width, k routed experts per token, n_s shared experts, one expert = SwiGLU of 3 d h weights.
Source of the architecture: arXiv 2604.15821 (totals, top-k); the rest is this project's choice (docs/model.md).
"""

from __future__ import annotations

from janus.config import ExpertConfig, ModelConfig
from perfmodel.products import Product, RowKind
from perfmodel.workload_matris import energy_head

ENERGY_HEAD_HIDDEN = (256, 128, 128)


def experts_of(model: ModelConfig) -> ExpertConfig:
    """The expert sizes of a matris-moe configuration."""
    assert model.experts is not None, f"family {model.family} without experts"
    return model.experts


def products(model: ModelConfig) -> list[Product]:
    """Every matrix product of one energy forward."""
    d, a, experts = model.width, model.angle_width, experts_of(model)
    tokens = experts.top_k + experts.num_shared_experts
    result = [
        Product(part="embedding", rows="edges", inputs=model.num_radial, outputs=d),
        Product(part="embedding", rows="edges", inputs=d, outputs=d),
        Product(part="embedding", rows="angles", inputs=model.num_angular, outputs=a),
        Product(part="embedding", rows="atoms", inputs=d, outputs=d, moves=False),
    ]
    for block in range(model.num_blocks):
        part = f"block {block}"
        result += [
            Product(part=f"{part} three-body", rows="bonds", inputs=d, outputs=a),
            Product(part=f"{part} three-body", rows="angles", inputs=a, outputs=a, copies=4),
            Product(part=f"{part} three-body", rows="bonds", inputs=a, outputs=d),
            Product(part=f"{part} message", rows="atoms", inputs=d, outputs=d, copies=2, moves=block > 0),
            *_expert_products(f"{part} message", "edges", d, experts.message_hidden, tokens),
            Product(part=f"{part} attention", rows="atoms", inputs=d, outputs=d, moves=block > 0),
            Product(part=f"{part} attention", rows="edges", inputs=d, outputs=2 * d),
            Product(part=f"{part} attention", rows="atoms", inputs=d, outputs=d),
            *_expert_products(f"{part} feature", "atoms", d, experts.feature_hidden, tokens),
        ]
    return result + energy_head(d)


def _expert_products(part: str, rows: RowKind, width: int, hidden: int, tokens: int) -> list[Product]:
    """SwiGLU on ``tokens`` experts per row: up and gate d -> h each, down h -> d."""
    return [
        Product(part=part, rows=rows, inputs=width, outputs=2 * hidden, copies=tokens),
        Product(part=part, rows=rows, inputs=hidden, outputs=width, copies=tokens),
    ]


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters per part; experts apart, so that the active count follows."""
    d, a, experts = model.width, model.angle_width, experts_of(model)
    head = (d, *ENERGY_HEAD_HIDDEN, 1)
    message, feature = 3 * d * experts.message_hidden, 3 * d * experts.feature_hidden
    blocks = model.num_blocks
    return {
        "embedding": model.num_elements * d + d * d + model.num_radial * d + d * d + model.num_angular * a,
        "three_body": blocks * (2 * d * a + 4 * a * a),
        "attention": blocks * 4 * d * d,
        "message_shared": blocks * (2 * d * d + experts.num_shared_experts * message),
        "feature_shared": blocks * experts.num_shared_experts * feature,
        "message_experts": blocks * experts.num_experts * message,
        "feature_experts": blocks * experts.num_experts * feature,
        "gates": blocks * 2 * model.num_elements * experts.num_experts,
        "readout": sum(inputs * outputs + outputs for inputs, outputs in zip(head, head[1:], strict=False)),
    }
