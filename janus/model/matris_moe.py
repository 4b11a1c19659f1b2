"""MatRIS-MoE (arXiv 2604.15821): multi-head attention between two mixtures of experts, on the same invariant graphs.

The paper names the parts; how they are joined, and every width, is this project's choice (docs/model.md).
In a partitioned batch edges are where their centre is: a block needs one thing of other ranks, its ghosts' parts.
Legend: N atoms, E directed edges, U pairs, B bonds, A angles, H heads, d width, a angle width, N' atoms and ghosts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus.config import ExpertConfig, ModelConfig
from janus.kernels import operators
from janus.kernels.reference import LAYER_NORM_EPSILON, capped
from janus.model.basis import ChebyshevAngularBasis, RadialBasis, envelope
from janus.model.batch import GraphBatch
from janus.model.experts import ElementGate, MixtureOfExperts
from janus.model.geometry import Geometry
from janus.model.layers import ATTENTION_CONSTANT, EnergyHead, GatedMLP
from janus.model.matris import BlockRunner, EdgeEmbedding


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)


class ThreeBody(nn.Module):
    """Bonds hear of the angles they form, at the smaller width a."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = config.angle_width
        self.down = nn.Linear(config.width, inner, bias=False)
        self.mlp = GatedMLP(3, inner)
        self.smooth = nn.Linear(config.num_radial, inner, bias=False)
        self.up = nn.Linear(inner, config.width, bias=False)

    def forward(self, batch: GraphBatch, edges: Tensor, angles: Tensor, bond_basis: Tensor) -> Tensor:
        """edges [E,d], angles [A,a], bond_basis [B,n] -> new edges [E,d]."""
        first, second = batch.angle_first, batch.angle_second
        bonds = self.down(operators.gathered(edges, batch.bond_edge))
        scale = self.smooth(bond_basis)
        messages = self.mlp([angles, bonds, bonds], [None, first, second])
        total = scale * operators.weighted_segment_sum(messages, scale, second, first, batch.num_bonds)
        return edges + operators.segment_sum(self.up(total), batch.bond_edge, batch.num_edges)


class MessageUpdate(nn.Module):
    """Edges are rewritten by the experts of their centre's element, from both atoms and the edge."""

    def __init__(self, config: ModelConfig, experts: ExpertConfig) -> None:
        super().__init__()
        gate = ElementGate(config.num_elements, experts.num_experts, experts.top_k)
        self.atom_norm = _norm(config.width)
        self.centre = nn.Linear(config.width, config.width, bias=False)
        self.neighbour = nn.Linear(config.width, config.width, bias=False)
        self.norm = _norm(config.width)
        self.experts = MixtureOfExperts(config.width, experts.message_hidden, gate, experts.num_shared_experts)

    def node_parts(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """atoms [N,d] -> what they add to tokens as centre and as neighbour, [N,d] each."""
        atoms = self.atom_norm(atoms)
        return self.centre(atoms), self.neighbour(atoms)

    def forward(self, batch: GraphBatch, edges: Tensor, as_centre: Tensor, as_neighbour: Tensor) -> Tensor:
        """edges [E,d], as_centre [N,d], as_neighbour [N',d] -> new edges [E,d]."""
        tables = [edges, as_centre, as_neighbour]
        tokens = self.norm(operators.gathered_sum(tables, [None, batch.centre, batch.neighbour]))
        return edges + self.experts(tokens, (batch.numbers - 1)[batch.centre])


class NeighbourAttention(nn.Module):
    """Multi-head attention of each atom over its edges: sum(u e^l v) / (c + sum(u e^l)), smooth at the cutoff."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.atom_norm, self.edge_norm = _norm(width), _norm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, batch: GraphBatch, atoms: Tensor, edges: Tensor, edge_envelope: Tensor) -> Tensor:
        """atoms [N,d], edges [E,d], edge_envelope [E] -> new atoms [N,d]."""
        messages = self.edge_norm(edges)
        query = operators.gathered(self.query(self.atom_norm(atoms)), batch.centre)
        logits = self._heads(query * self.key(messages)).sum(dim=2) / math.sqrt(query.shape[1] / self.num_heads)
        weight = edge_envelope[:, None] * torch.exp(capped(logits))
        weighted = (weight[:, :, None] * self._heads(self.value(messages))).flatten(1)
        total = operators.segment_sum(weighted, batch.centre, batch.num_atoms)
        norm = ATTENTION_CONSTANT + operators.segment_sum(weight, batch.centre, batch.num_atoms)
        return atoms + self.output((self._heads(total) / norm[:, :, None]).flatten(1))

    def _heads(self, rows: Tensor) -> Tensor:
        """[R,d] -> [R,H,d/H]."""
        return rows.unflatten(1, (self.num_heads, -1))


class FeatureUpdate(nn.Module):
    """Atoms are rewritten by the experts of their element."""

    def __init__(self, config: ModelConfig, experts: ExpertConfig) -> None:
        super().__init__()
        gate = ElementGate(config.num_elements, experts.num_experts, experts.top_k)
        self.norm = _norm(config.width)
        self.experts = MixtureOfExperts(config.width, experts.feature_hidden, gate, experts.num_shared_experts)

    def forward(self, batch: GraphBatch, atoms: Tensor) -> Tensor:
        """atoms [N,d] -> new atoms [N,d]."""
        return atoms + self.experts(self.norm(atoms), batch.numbers - 1)


class MatrisMoeBlock(nn.Module):
    """Three-body, message update, attention, feature update; each adds to its residual stream."""

    def __init__(self, config: ModelConfig, experts: ExpertConfig) -> None:
        super().__init__()
        self.three_body = ThreeBody(config)
        self.message_update = MessageUpdate(config, experts)
        self.attention = NeighbourAttention(config)
        self.feature_update = FeatureUpdate(config, experts)

    def forward(
        self,
        batch: GraphBatch,
        atoms: Tensor,
        edges: Tensor,
        angles: Tensor,
        bond_basis: Tensor,
        edge_envelope: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """atoms [N,d], edges [E,d] -> the same, updated; angles [A,a], bond_basis [B,n], edge_envelope [E]."""
        as_centre, as_neighbour = self.message_update.node_parts(atoms)
        under_way = batch.start_exchange(("ghosts", as_neighbour))
        edges = self.three_body(batch, edges, angles, bond_basis)
        edges = self.message_update(batch, edges, as_centre, *batch.finish_exchange(under_way))
        atoms = self.attention(batch, atoms, edges, edge_envelope)
        return self.feature_update(batch, atoms), edges


class MatrisMoe(nn.Module):
    """Energy of each atom from distances and angles, by experts chosen per element. on_block: receives each block."""

    def __init__(self, config: ModelConfig, on_block: Callable[[int, nn.Module], None]) -> None:
        super().__init__()
        assert config.experts is not None
        self.config = config
        width = config.width
        self.atom_table = nn.Embedding(config.num_elements, width)
        self.atom_last = nn.Linear(width, width, bias=False)
        self.edge_basis = RadialBasis(config.num_radial, config.cutoff_angstrom)
        self.bond_basis = RadialBasis(config.num_radial, config.line_cutoff_angstrom)
        self.edge_embedding = EdgeEmbedding(config.num_radial, width)
        self.angle_basis = ChebyshevAngularBasis(config.num_angular)
        self.angle_embedding = nn.Linear(config.num_angular, config.angle_width, bias=False)
        self.blocks = nn.ModuleList()
        for index in range(config.num_blocks):
            self.blocks.append(MatrisMoeBlock(config, config.experts))
            on_block(index, self.blocks[-1])
        self.readout_norm = _norm(width)
        self.energy_head = EnergyHead(width)
        self.register_buffer("reference_energies", torch.zeros(config.num_elements, dtype=torch.float64))

    def atom_features(self, batch: GraphBatch, geometry: Geometry, run_block: BlockRunner) -> Tensor:
        """Normalised features of each atom after the last block -> [N,d]."""
        distance = geometry.distance
        edge_envelope = envelope(distance / self.config.cutoff_angstrom)[batch.pair_of_edge]
        bond_basis = operators.gathered(self.bond_basis(distance[batch.bonded_pair]), batch.pair_of_bond)
        atoms = functional.silu(self.atom_last(self.atom_table(batch.numbers - 1)))
        edges = operators.gathered(self.edge_embedding(self.edge_basis(distance)), batch.pair_of_edge)
        angles = operators.silu(self.angle_embedding(self.angle_basis(geometry.cosine)))
        for block in self.blocks:
            atoms, edges = run_block(block, partial(block, batch), atoms, edges, angles, bond_basis, edge_envelope)
        return self.readout_norm(atoms)

    def atom_energies(self, atoms: Tensor) -> Tensor:
        """Energy of each atom from its features [N,d], without its reference energy -> [N] eV."""
        return self.energy_head(atoms)

    def set_reference_energies(self, by_atomic_number: Tensor) -> None:
        """Set the fixed energy per element from a table indexed by atomic number, eV [at least num_elements + 1]."""
        self.reference_energies.copy_(torch.as_tensor(by_atomic_number)[1 : self.config.num_elements + 1])

    @torch.no_grad()
    def tokens_per_expert(self, batch: GraphBatch) -> dict[str, Tensor]:
        """Tokens that reach each expert of each layer [X], without running the model."""
        element = batch.numbers - 1
        atoms = torch.bincount(element, minlength=self.config.num_elements)
        edges = torch.bincount(element[batch.centre], minlength=self.config.num_elements)
        loads = {}
        for index, block in enumerate(self.blocks):
            loads[f"block {index} message"] = block.message_update.experts.gate.loads(edges)
            loads[f"block {index} feature"] = block.feature_update.experts.gate.loads(atoms)
        return loads
