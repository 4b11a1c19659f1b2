"""MatRIS (arXiv 2603.02002): invariant potential on the atom graph and its line graph.

``compat`` follows the original to the letter; the default mends its known defects (docs/model.md).
Legend: N atoms, E directed edges, U pairs, B bonds, P bonded pairs, A angles, C channels, H ghosts (of a partitioned
batch; ``batch.exchange`` moves rows between ranks, and hands them back as they are where nothing is partitioned).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus.config import ModelConfig
from janus.errors import UserError
from janus.kernels import operators
from janus.kernels.reference import LAYER_NORM_EPSILON
from janus.model.basis import ChebyshevAngularBasis, FourierAngularBasis, RadialBasis, envelope
from janus.model.batch import GraphBatch
from janus.model.geometry import Geometry
from janus.model.layers import EnergyHead, FeedForward, GatedMLP, Incidence, MagneticMomentHead, SeparableAttention

BlockRunner = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Graphs:
    """Who is joined to whom, for every block: the atom graph (rows are edges) and the line graph (rows are angles)."""

    batch: GraphBatch
    edges: Incidence
    angles: Incidence
    angle_centre: Tensor

    @classmethod
    def of(cls, batch: GraphBatch) -> Graphs:
        return cls(
            batch=batch,
            edges=Incidence(
                batch.centre, batch.neighbour, batch.pair_of_edge, batch.num_atoms, batch.num_atoms + batch.num_ghosts
            ),
            angles=Incidence(batch.first_pair, batch.second_pair, None, batch.num_bonded_pairs, batch.num_bonded_pairs),
            angle_centre=batch.centre[batch.bond_edge[batch.angle_first]],
        )


class EdgeEmbedding(nn.Module):
    """Radial basis -> Linear -> Linear -> LayerNorm -> SiLU(Linear), per pair (both directions are equal)."""

    def __init__(self, num_radial: int, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(num_radial, width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.last = nn.Linear(width, width, bias=False)

    def forward(self, basis: Tensor) -> Tensor:
        """basis [U, num_radial] -> [U,C]."""
        rows = self.norm(basis @ (self.mix.weight @ self.expand.weight).T)
        return operators.silu(self.last(rows))


class AngleEmbedding(nn.Module):
    """Angular basis -> Linear -> SiLU(Linear). The two products follow each other, so they are one matrix."""

    def __init__(self, num_angular: int, width: int, compat: bool) -> None:
        super().__init__()
        self.basis = (FourierAngularBasis if compat else ChebyshevAngularBasis)(num_angular)
        self.expand = nn.Linear(num_angular, width, bias=False)
        self.last = nn.Linear(width, width, bias=False)

    def forward(self, cosine: Tensor) -> Tensor:
        """cosine [A] -> [A,C]."""
        basis = self.basis(cosine)
        return operators.silu(operators.linear(basis, self.last.weight @ self.expand.weight))


class LineRefinement(nn.Module):
    """Bonds gather gated messages of their angles; angles are updated by the same messages."""

    def __init__(self, num_radial: int, width: int, updates_angles: bool) -> None:
        super().__init__()
        self.mlp = GatedMLP(4, width)
        self.smooth = nn.Linear(num_radial, width, bias=False)
        self.bond_update = FeedForward(width)
        self.bond_residual = nn.Parameter(torch.ones(width))
        if updates_angles:
            self.angle_update = FeedForward(width)
            self.angle_residual = nn.Parameter(torch.ones(width))
        self.updates_angles = updates_angles

    def forward(
        self, graphs: Graphs, atoms: Tensor, edges: Tensor, angles: Tensor, bond_basis: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """atoms [N,C], edges [U,C], angles [A,C], bond_basis [P,n] -> new edges and angles, and atoms [N+H,C]."""
        incidence, batch = graphs.angles, graphs.batch
        scale = self.smooth(bond_basis)
        bonds = operators.gathered(edges, batch.bonded_pair)
        messages = self.mlp(
            [angles, atoms, bonds, bonds],
            [None, graphs.angle_centre, incidence.target, incidence.source],
        )
        # the target's own factor is the same for all of its angles: it is taken out of the sum
        total = operators.weighted_segment_sum(
            messages, scale, incidence.source, incidence.target, incidence.num_targets
        )
        total, neighbours = batch.exchange(("bonded_pairs", total), ("ghosts", atoms))
        update = operators.segment_sum(self.bond_update(scale * total), batch.bonded_pair, batch.num_pairs)
        edges = operators.scaled_sum(edges, self.bond_residual, update)
        if self.updates_angles:
            angles = operators.scaled_sum(angles, self.angle_residual, self.angle_update(messages))
        return edges, angles, neighbours


class AtomRefinement(nn.Module):
    """Atoms gather gated messages of their edges; edges are updated by the same messages."""

    def __init__(self, num_radial: int, width: int, updates_edges: bool) -> None:
        super().__init__()
        self.mlp = GatedMLP(3, width)
        self.smooth = nn.Linear(num_radial, width, bias=False)
        self.atom_update = FeedForward(width)
        self.atom_residual = nn.Parameter(torch.ones(width))
        if updates_edges:
            self.edge_update = FeedForward(width)
            self.edge_residual = nn.Parameter(torch.ones(width))
        self.updates_edges = updates_edges

    def forward(
        self, graphs: Graphs, atoms: Tensor, neighbours: Tensor, edges: Tensor, edge_basis: Tensor
    ) -> tuple[Tensor, Tensor]:
        """atoms [N,C], the same with ghosts [N+H,C], edges [U,C], edge_basis [U,n] -> new atoms and edges."""
        incidence, batch = graphs.edges, graphs.batch
        messages = self.mlp([edges, atoms, neighbours], [incidence.row_table, incidence.target, incidence.source])
        total = operators.weighted_segment_sum(
            messages, self.smooth(edge_basis), incidence.row_table, incidence.target, incidence.num_targets
        )
        atoms = operators.scaled_sum(atoms, self.atom_residual, self.atom_update(total))
        if self.updates_edges:
            # the mean over a pair's two edges; the last product of the update is done on it
            hidden = batch.sum_over_sharers_of_pairs(sum_of_directions(self.edge_update.hidden(messages), batch))
            edges = operators.scaled_sum(edges, self.edge_residual, self.edge_update.outer(hidden * 0.5))
        return atoms, edges


def sum_of_directions(rows: Tensor, batch: GraphBatch) -> Tensor:
    """Sum of the two directed edges of each pair, of those that are here: [E,C] -> [U,C]."""
    return operators.segment_sum(rows, batch.pair_of_edge, batch.num_pairs)


class MatrisBlock(nn.Module):
    """Line attention, atom attention, line refinement, atom refinement."""

    def __init__(self, config: ModelConfig, is_last: bool) -> None:
        super().__init__()
        updates_rows = config.compat or not is_last  # what nothing reads is left out
        self.line_attention = SeparableAttention(config.width, config.compat)
        self.atom_attention = SeparableAttention(config.width, config.compat)
        self.line_refinement = LineRefinement(config.num_radial, config.width, updates_rows)
        self.atom_refinement = AtomRefinement(config.num_radial, config.width, updates_rows)

    def forward(
        self,
        graphs: Graphs,
        atoms: Tensor,
        edges: Tensor,
        angles: Tensor,
        edge_basis: Tensor,
        bond_basis: Tensor,
        edge_envelope: Tensor,
        angle_envelope: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """atoms [N,C], edges [U,C], angles [A,C] -> the same, updated.

        edge_basis [U,n], bond_basis [P,n]: radial bases; edge_envelope [E], angle_envelope [A]: smooth weights.
        """
        batch, attention = graphs.batch, self.line_attention
        bonds = operators.gathered(edges, batch.bonded_pair)
        values, *sums = attention(angles, bonds, bonds, graphs.angles, angle_envelope)
        *sums, neighbours = batch.exchange(("bonded_pairs", sums[0]), ("bonded_pairs", sums[1]), ("ghosts", atoms))
        angles = operators.scaled_sum(angles, attention.row_residual, values)
        # pairs beyond the line cutoff are nodes of the line graph too, with nothing to hear
        messages = operators.segment_sum(attention.messages(*sums), batch.bonded_pair, batch.num_pairs)
        edges = attention.updated_nodes(edges, messages)

        attention = self.atom_attention
        values, target_sums, source_sums = attention(edges, atoms, neighbours, graphs.edges, edge_envelope)
        source_sums, total = batch.exchange(("owners", source_sums), ("pairs", sum_of_directions(values, batch)))
        edges = operators.scaled_sum(edges, attention.row_residual, total * 0.5)
        atoms = attention.updated_nodes(atoms, attention.messages(target_sums, source_sums))

        edges, angles, neighbours = self.line_refinement(graphs, atoms, edges, angles, bond_basis)
        atoms, edges = self.atom_refinement(graphs, atoms, neighbours, edges, edge_basis)
        return atoms, edges, angles


class Matris(nn.Module):
    """Energy of each atom from distances and angles. on_block: called with each block as soon as it is made."""

    def __init__(self, config: ModelConfig, on_block: Callable[[int, nn.Module], None]) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.atom_table = nn.Embedding(config.num_elements, width)
        self.atom_last = nn.Linear(width, width, bias=False)
        self.edge_basis = RadialBasis(config.num_radial, config.cutoff_angstrom)
        self.bond_basis = RadialBasis(config.num_radial, config.line_cutoff_angstrom)
        self.edge_embedding = EdgeEmbedding(config.num_radial, width)
        self.angle_embedding = AngleEmbedding(config.num_angular, width, config.compat)
        last = config.num_blocks - 1
        self.blocks = nn.ModuleList()
        for index in range(config.num_blocks):
            self.blocks.append(MatrisBlock(config, index == last))
            on_block(index, self.blocks[-1])
        self.readout_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.energy_head = EnergyHead(width)
        if config.compat:
            self.magnetic_moment_head = MagneticMomentHead(width)
            # the original counts its fixed reference energies among the parameters
            self.reference_energies = nn.Parameter(torch.zeros(config.num_elements), requires_grad=False)
        else:
            self.register_buffer("reference_energies", torch.zeros(config.num_elements, dtype=torch.float64))

    def atom_features(self, batch: GraphBatch, geometry: Geometry, run_block: BlockRunner) -> Tensor:
        """Normalised features of each atom after the last block -> [N,C]."""
        if self.config.compat and batch.halo is not None:
            raise UserError(
                "compat models cannot be graph parallel (their softmax needs a maximum over atoms of several ranks): "
                "set parallel.graph_degree to 1 or model.compat to false"
            )
        graphs = Graphs.of(batch)
        bond_distance = geometry.distance[batch.bonded_pair]
        bond_envelope = envelope(bond_distance / self.config.line_cutoff_angstrom)
        edge_basis, bond_basis = self.edge_basis(geometry.distance), self.bond_basis(bond_distance)
        weights = (
            envelope(geometry.distance / self.config.cutoff_angstrom)[batch.pair_of_edge],
            bond_envelope[batch.first_pair] * bond_envelope[batch.second_pair],
        )
        atoms = functional.silu(self.atom_last(self.atom_table(batch.numbers - 1)))
        features = (atoms, self.edge_embedding(edge_basis), self.angle_embedding(geometry.cosine))
        for block in self.blocks:
            features = run_block(block, partial(block, graphs), *features, edge_basis, bond_basis, *weights)
        return self.readout_norm(features[0])

    def atom_energies(self, atoms: Tensor) -> Tensor:
        """Energy of each atom from its features [N,C], without its reference energy -> [N] eV."""
        return self.energy_head(atoms)

    def set_reference_energies(self, by_atomic_number: Tensor) -> None:
        """Set the fixed energy per element from a table indexed by atomic number, eV [at least num_elements + 1]."""
        values = torch.as_tensor(by_atomic_number, dtype=torch.float64)[1 : self.config.num_elements + 1]
        with torch.no_grad():
            self.reference_energies.copy_(values)

    def tokens_per_expert(self, batch: GraphBatch) -> None:
        """This family has no experts."""
        return None
