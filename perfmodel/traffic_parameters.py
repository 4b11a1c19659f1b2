"""Which numbers are summed and gathered together: every trained parameter, sharded units and gradient buckets.

It owns their sizes, in the order of the model's parameters (tests hold names, order and sizes to the real model); not
what is sent of them (``traffic``) and not the totals per part (``workload``).
d width, a angle width, X experts, h hidden channels of one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from janus.config import ModelConfig
from janus.layout import AxisName, Layout
from janus.placement import ExpertShape, Strategy, division
from perfmodel.workload_moe import experts_of

Sizes = Iterator[tuple[str, int]]
ROOT = -1  # stands for the block number of what is outside blocks
_IN_BLOCK = re.compile(r"blocks\.(\d+)\.")
LAYERS = ("message_update", "feature_update")  # of a block, in the order in which they run


def trained_parameters(model: ModelConfig) -> dict[str, int]:
    """Numbers of every trained parameter, by name, in the model's order."""
    return dict(_matris(model) if model.family == "matris" else _matris_moe(model))


def block_of(name: str) -> int:
    """The block that a parameter belongs to, or ROOT."""
    match = _IN_BLOCK.match(name)
    return int(match[1]) if match else ROOT


def expert_shape(model: ModelConfig, layer: str, item_bytes: int) -> ExpertShape:
    """Sizes of the routed experts of a layer, "message_update" or "feature_update"."""
    experts = experts_of(model)
    hidden = experts.message_hidden if layer == "message_update" else experts.feature_hidden
    return ExpertShape(width=model.width, hidden=hidden, num_experts=experts.num_experts, item_bytes=item_bytes)


def sharded_units(model: ModelConfig, layout: Layout) -> dict[int, int]:
    """Numbers that one rank keeps of each sharded unit, padding included: ceil(all / shard degree).

    By block, in order, then ROOT: what is outside blocks and the gates of the experts. Experts that are spread are in
    no unit. Empty where nothing is sharded.
    """
    if layout.shard_degree == 1:
        return {}
    units = dict.fromkeys([*range(model.num_blocks), ROOT], 0)
    for name, numel in trained_parameters(model).items():
        if layout.expert_degree == 1 or not is_routed(name):
            units[ROOT if name.endswith(".gate.table") else block_of(name)] += numel
    return {block: -(-numel // layout.shard_degree) for block, numel in units.items()}


@dataclass(frozen=True)
class Bucket:
    """Undivided gradients that one all-reduce sums: its axis and their numbers."""

    axis: AxisName
    numel: int


def gradient_buckets(
    model: ModelConfig, layout: Layout, expert: int, *, strategy: Strategy, item_bytes: int, bucket_bytes: int
) -> list[Bucket]:
    """Gradients outside sharded units, in the buckets of janus/parallel/gradients.py.

    By axis of copies (spread experts: "expert_copies", all else: "world"), from the last parameter of the last block
    to the first, the root last; a bucket is closed when the next gradient does not fit. expert: this rank's index in
    its expert group.
    """
    spread = layout.expert_degree > 1
    sizes: dict[AxisName, list[tuple[str, int]]] = {"expert_copies": [], "world": []}
    for name, numel in trained_parameters(model).items():
        if spread and is_routed(name):
            kept = _kept_of_experts(model, name, layout.expert_degree, strategy)[expert]
            sizes["expert_copies"].append((name, kept))
        elif layout.shard_degree == 1:
            sizes["world"].append((name, numel))
    return [
        Bucket(axis, numel)
        for axis, parameters in sizes.items()
        for numel in _packed(parameters, item_bytes, bucket_bytes)
    ]


@lru_cache(maxsize=256)
def _kept_by_place(model: ModelConfig, layout: Layout, shard: int, expert: int, strategy: Strategy) -> tuple[int, int]:
    """``kept_pieces`` of the rank with these indices in its shard and its expert group."""
    numel = tensors = 0
    start: dict[int, int] = {}
    units = sharded_units(model, layout)
    for name, size in trained_parameters(model).items():
        unit = ROOT if name.endswith(".gate.table") else block_of(name)
        kept = size
        if layout.expert_degree > 1 and is_routed(name):
            kept = _kept_of_experts(model, name, layout.expert_degree, strategy)[expert]
        elif units:
            first, start[unit] = start.get(unit, 0), start.get(unit, 0) + size
            begin = shard * units[unit]
            kept = max(0, min(first + size, begin + units[unit]) - max(first, begin))
        numel, tensors = numel + kept, tensors + (kept > 0)
    return numel, tensors


def kept_pieces(model: ModelConfig, layout: Layout, rank: int, strategy: Strategy) -> tuple[int, int]:
    """Numbers and tensors of the pieces that a rank keeps of the trained parameters, and its optimizer updates.

    Of a sharded unit, flattened and padded to n equal ranges, the range of the rank's index without the padding, one
    tensor per parameter that it meets; of spread experts the rank's own part; of all else everything.
    """
    place = layout.coordinates(rank)
    return _kept_by_place(model, _of_one_unit(layout), place.shard, place.expert, strategy)


def _of_one_unit(layout: Layout) -> Layout:
    return replace(layout, replicas=1, placement="unit_first")


def _packed(parameters: Sequence[tuple[str, int]], item_bytes: int, bucket_bytes: int) -> list[int]:
    """Numbers of each bucket, in the order in which gradients appear."""
    order = sorted(range(len(parameters)), key=lambda place: (-block_of(parameters[place][0]), -place))
    buckets: list[int] = []
    room = 0
    for place in order:
        size = parameters[place][1] * item_bytes
        if size > room or not buckets:
            buckets.append(0)
            room = bucket_bytes
        buckets[-1] += parameters[place][1]
        room -= size
    return buckets


def is_routed(name: str) -> bool:
    """Whether a parameter is a matrix of all routed experts of a layer."""
    return name.endswith((".experts.inner", ".experts.outer"))


def _kept_of_experts(model: ModelConfig, name: str, num_ranks: int, strategy: Strategy) -> list[int]:
    """Numbers that each rank of an expert group keeps of one matrix of all experts."""
    layer, matrix = name.split(".")[2], name.rsplit(".", 1)[1]
    shape = expert_shape(model, layer, 1)
    starts = division(strategy, shape, num_ranks)[0 if matrix == "inner" else 1]
    matrix_numel = (2 if matrix == "inner" else 1) * shape.hidden * shape.width
    each = matrix_numel if strategy == "tokens" else shape.num_experts
    return [each * (stop - start) for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


def _under(prefix: str, *parts: Collection[tuple[str, int]]) -> Sizes:
    for part in parts:
        for name, numel in part:
            yield f"{prefix}.{name}", numel


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = False) -> list[tuple[str, int]]:
    weight = [(f"{name}.weight", inputs * outputs)]
    return [*weight, (f"{name}.bias", outputs)] if bias else weight


def _norm(name: str, width: int) -> list[tuple[str, int]]:
    return [(f"{name}.weight", width), (f"{name}.bias", width)]


def _gated_mlp(name: str, num_inputs: int, width: int) -> list[tuple[str, int]]:
    layers = [
        layer
        for branch in ("core", "gate")
        for layer in (
            *_linear(f"{branch}_in", num_inputs * width, width, bias=True),
            *_linear(f"{branch}_out", width, width, bias=True),
        )
    ]
    return list(_under(name, [("affine", 4 * width), *layers]))


def _edge_embedding(model: ModelConfig) -> list[tuple[str, int]]:
    d = model.width
    return [
        ("atom_table.weight", model.num_elements * d),
        *_linear("atom_last", d, d),
        ("edge_basis.frequencies", model.num_radial),
        ("bond_basis.frequencies", model.num_radial),
        *_linear("edge_embedding.expand", model.num_radial, d),
        *_linear("edge_embedding.mix", d, d),
        *_norm("edge_embedding.norm", d),
        *_linear("edge_embedding.last", d, d),
    ]


def _readout(d: int) -> list[tuple[str, int]]:
    return [
        *_norm("readout_norm", d),
        *_linear("energy_head.hidden.0", d, 2 * d, bias=True),
        *_linear("energy_head.hidden.1", 2 * d, d, bias=True),
        *_linear("energy_head.hidden.2", d, d, bias=True),
        *_linear("energy_head.last", d, 1, bias=True),
    ]


def _matris(model: ModelConfig) -> Sizes:
    d = model.width
    yield from _edge_embedding(model)
    if model.compat:
        yield "angle_embedding.basis.frequencies", (model.num_angular - 1) // 2
    yield from _linear("angle_embedding.expand", model.num_angular, d)
    yield from _linear("angle_embedding.last", d, d)
    for block in range(model.num_blocks):
        updates_rows = model.compat or block < model.num_blocks - 1
        for attention in ("line_attention", "atom_attention"):
            yield from _under(f"blocks.{block}.{attention}", _attention(d))
        line = _refinement(model, 4, "bond", "angle" if updates_rows else None)
        yield from _under(f"blocks.{block}.line_refinement", line)
        atom = _refinement(model, 3, "atom", "edge" if updates_rows else None)
        yield from _under(f"blocks.{block}.atom_refinement", atom)
    yield from _readout(d)
    if model.compat:
        yield from _linear("magnetic_moment_head.hidden", d, 2 * d, bias=True)
        yield from _linear("magnetic_moment_head.last", 2 * d, 1, bias=True)


def _attention(d: int) -> list[tuple[str, int]]:
    return [
        ("node_residual", d),
        ("row_residual", d),
        *_gated_mlp("row_mlp", 3, d),
        *_gated_mlp("node_mlp", 3, d),
        *_linear("target_logits", d, d),
        *_linear("source_logits", d, d),
    ]


def _refinement(model: ModelConfig, num_inputs: int, nodes: str, rows: str | None) -> list[tuple[str, int]]:
    """Updates of nodes and, unless None, of the rows that join them."""
    d, updated = model.width, [nodes] if rows is None else [nodes, rows]
    return [
        *((f"{name}_residual", d) for name in updated),
        *_gated_mlp("mlp", num_inputs, d),
        *_linear("smooth", model.num_radial, d),
        *(line for name in updated for layer in ("inner", "outer") for line in _linear(f"{name}_update.{layer}", d, d)),
    ]


def _matris_moe(model: ModelConfig) -> Sizes:
    d, a = model.width, model.angle_width
    yield from _edge_embedding(model)
    yield from _linear("angle_embedding", model.num_angular, a)
    for block in range(model.num_blocks):
        three_body = [
            *_linear("down", d, a), *_gated_mlp("mlp", 3, a), *_linear("smooth", model.num_radial, a),
            *_linear("up", a, d),
        ]  # fmt: skip
        message = [*_norm("atom_norm", d), *_linear("centre", d, d), *_linear("neighbour", d, d), *_norm("norm", d)]
        attention = [
            *_norm("atom_norm", d), *_norm("edge_norm", d),
            *(line for name in ("query", "key", "value", "output") for line in _linear(name, d, d)),
        ]  # fmt: skip
        yield from _under(f"blocks.{block}.three_body", three_body)
        yield from _under(f"blocks.{block}.message_update", message, _mixture(model, "message_update"))
        yield from _under(f"blocks.{block}.attention", attention)
        yield from _under(f"blocks.{block}.feature_update", _norm("norm", d), _mixture(model, "feature_update"))
    yield from _readout(d)


def _mixture(model: ModelConfig, layer: str) -> list[tuple[str, int]]:
    shape, experts = expert_shape(model, layer, 1), experts_of(model)
    shared = experts.num_shared_experts * shape.hidden
    return [
        ("experts.inner", shape.num_experts * 2 * shape.hidden * shape.width),
        ("experts.outer", shape.num_experts * shape.hidden * shape.width),
        ("experts.gate.table", model.num_elements * shape.num_experts),
        *(_linear("experts.shared.inner", shape.width, 2 * shared) if shared else []),
        *(_linear("experts.shared.outer", shared, shape.width) if shared else []),
    ]
