"""Reference energies per element: the part of the energies that composition alone explains. Never imports torch.

It does not own the stores the energies come from: callers hand over composition counts and energies in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

NUM_ATOMIC_NUMBERS = 95  # index 0 is unused, 1..94 are H..Pu
# Directions of composition space whose weight is below this part of the largest one are noise of float64 sums.
RANK_TOLERANCE = 1e-11
MEDIAN_OF_CHI_SQUARED = 0.4549  # with one degree of freedom: median of the square of a unit Gaussian

Chunk = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ReferenceEnergies:
    """Result of the fit.

    by_atomic_number [95]: eV per atom, 0 where the element is absent; num_structures: how many had an energy;
    num_elements: elements present; rank: independent compositions among them (below num_elements: only some
    combinations of the reference energies are determined by the data); rmse_ev_per_atom, mae_ev_per_atom: residual.
    """

    by_atomic_number: np.ndarray
    num_structures: int
    num_elements: int
    rank: int
    rmse_ev_per_atom: float
    mae_ev_per_atom: float


def fit_reference_energies(chunks: Callable[[], Iterable[Chunk]]) -> ReferenceEnergies:
    """Regularised least squares of the energy per atom on the composition fractions, in a few passes over the data.

    Arguments: chunks() yields (atoms of each element [S,95], energy [S] in eV) and may be called repeatedly.
    Minimises sum over structures of (E/N - sum_z x_z e_z)^2 + ridge * sum_z (e_z - mean)^2 with x_z = N_z/N and the
    mean energy per atom. The ridge is the ratio of the variances of residual and of e_z in the plain solution
    (empirical Bayes): it vanishes when composition explains the energies, and keeps an element seen once from
    absorbing the residual of that structure. Where compositions do not determine e (fixed stoichiometry), the
    solution nearest to the mean is taken (minimum norm of the deviation): NaCl alone gives E/2 for both elements.
    """
    gram, moment, fraction_sum, energy_sum, count = _normal_equations(chunks())
    if count == 0:
        return ReferenceEnergies(by_atomic_number=np.zeros(NUM_ATOMIC_NUMBERS), num_structures=0, num_elements=0,
                                 rank=0, rmse_ev_per_atom=float("nan"), mae_ev_per_atom=float("nan"))  # fmt: skip
    mean = energy_sum / count
    present = fraction_sum > 0
    weights, directions = np.linalg.eigh(gram[np.ix_(present, present)])
    kept = weights > RANK_TOLERANCE * weights.max()
    # fractions sum to one, so subtracting the mean energy from every target subtracts mean * fraction_sum here
    projected = directions[:, kept].T @ (moment - mean * fraction_sum)[present]

    def solution(ridge: float) -> np.ndarray:
        energies = np.zeros(NUM_ATOMIC_NUMBERS)
        energies[present] = mean + directions[:, kept] @ (projected / (weights[kept] + ridge))
        return energies

    plain = solution(0.0)
    squared, _ = _residual(chunks(), plain)
    energies = solution(_ridge(squared, count - int(kept.sum()), plain[present] - mean))
    squared, absolute = _residual(chunks(), energies)
    return ReferenceEnergies(
        by_atomic_number=energies, num_structures=count, num_elements=int(present.sum()), rank=int(kept.sum()),
        rmse_ev_per_atom=float(np.sqrt(squared / count)), mae_ev_per_atom=absolute / count,
    )  # fmt: skip


def _ridge(squared_residual: float, degrees_of_freedom: int, deviations: np.ndarray) -> float:
    """Variance of the residual over variance of the elements' deviations; 0 where either cannot be estimated."""
    # by the median, for the few elements that the plain solution gets wrong are the reason for the ridge
    spread = float(np.median(deviations**2)) / MEDIAN_OF_CHI_SQUARED
    if degrees_of_freedom < 1 or spread == 0.0:
        return 0.0
    return squared_residual / degrees_of_freedom / spread


def _per_atom(chunk: Chunk) -> Chunk:
    """Composition fractions [S,95] and energy per atom [S]."""
    atoms, energy = chunk
    total = atoms.sum(axis=1)
    return atoms / total[:, None], energy / total


def _normal_equations(chunks: Iterable[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, int]:
    gram = np.zeros((NUM_ATOMIC_NUMBERS, NUM_ATOMIC_NUMBERS))
    moment, fraction_sum = np.zeros(NUM_ATOMIC_NUMBERS), np.zeros(NUM_ATOMIC_NUMBERS)
    energy_sum, count = 0.0, 0
    for chunk in chunks:
        fractions, energy = _per_atom(chunk)
        gram += fractions.T @ fractions
        moment += fractions.T @ energy
        fraction_sum += fractions.sum(axis=0)
        energy_sum += float(energy.sum())
        count += len(energy)
    return gram, moment, fraction_sum, energy_sum, count


def _residual(chunks: Iterable[Chunk], energies: np.ndarray) -> tuple[float, float]:
    """Sums of squared and of absolute residuals of the energy per atom."""
    squared = absolute = 0.0
    for chunk in chunks:
        fractions, energy = _per_atom(chunk)
        residual = energy - fractions @ energies
        squared += float(residual @ residual)
        absolute += float(np.abs(residual).sum())
    return squared, absolute
