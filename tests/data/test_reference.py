"""Reference energies: exact recovery, rank-deficient compositions, elements seen once, residuals."""

from __future__ import annotations

import numpy as np
import pytest

from janus.data.reference import fit_reference_energies


def histogram(*compositions: dict[int, int]) -> np.ndarray:
    atoms = np.zeros((len(compositions), 95), dtype=np.int64)
    for row, composition in zip(atoms, compositions, strict=True):
        for number, count in composition.items():
            row[number] = count
    return atoms


def random_compositions(num: int, numbers: tuple[int, ...], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    atoms = np.zeros((num, 95), dtype=np.int64)
    atoms[:, numbers] = random.integers(0, 9, size=(num, len(numbers)))
    atoms[:, numbers[0]] += 1
    return atoms


def test_energies_that_composition_explains_are_recovered_exactly():
    numbers, energies = (1, 8, 26, 94), np.array([-13.6, -2041.8, -34500.25, 0.5])
    atoms = random_compositions(60, numbers)
    fit = fit_reference_energies(lambda: [(atoms, atoms[:, numbers] @ energies)])
    assert fit.by_atomic_number[list(numbers)] == pytest.approx(energies, abs=1e-6)
    assert (fit.rank, fit.num_elements, fit.num_structures) == (4, 4, 60)
    assert fit.rmse_ev_per_atom < 1e-7
    assert np.flatnonzero(fit.by_atomic_number).tolist() == list(numbers)


def test_fixed_stoichiometry_gives_every_element_the_mean_energy_per_atom():
    atoms = histogram({11: 4, 17: 4}, {11: 32, 17: 32}, {11: 1, 17: 1})
    fit = fit_reference_energies(lambda: [(atoms, atoms.sum(axis=1) * -3.4)])
    assert (fit.rank, fit.num_elements) == (1, 2)
    assert fit.by_atomic_number[[11, 17]] == pytest.approx([-3.4, -3.4])
    uneven = histogram({22: 1, 8: 2}, {22: 4, 8: 8})
    fit = fit_reference_energies(lambda: [(uneven, uneven.sum(axis=1) * -8.0)])
    assert fit.by_atomic_number[[22, 8]] == pytest.approx([-8.0, -8.0])
    assert fit.rmse_ev_per_atom < 1e-12


def test_chunks_do_not_change_the_fit():
    atoms = random_compositions(50, (3, 9, 14), seed=4)
    energies = atoms @ np.arange(95.0) + np.random.default_rng(5).normal(size=50)
    whole = fit_reference_energies(lambda: [(atoms, energies)])
    parts = fit_reference_energies(lambda: [(atoms[:7], energies[:7]), (atoms[7:7], energies[7:7]),
                                            (atoms[7:], energies[7:])])  # fmt: skip
    assert parts.by_atomic_number == pytest.approx(whole.by_atomic_number, rel=1e-10)
    assert parts.rmse_ev_per_atom == pytest.approx(whole.rmse_ev_per_atom, rel=1e-10)


def test_an_element_seen_once_does_not_absorb_the_residual_of_its_structure():
    random = np.random.default_rng(1)
    atoms = random_compositions(300, (6, 7, 8), seed=2)
    energies = atoms[:, 6] * -9.0 + atoms[:, 7] * -8.0 + atoms[:, 8] * -7.0
    energies = energies + atoms.sum(axis=1) * random.normal(0.0, 0.3, 300)
    rare = histogram({8: 49, 36: 1})  # 1 eV/atom too high: a plain fit puts all 50 eV on krypton
    atoms, energies = np.vstack((atoms, rare)), np.append(energies, 50 * (-7.0 + 1.0))
    fit = fit_reference_energies(lambda: [(atoms, energies)])
    assert abs(fit.by_atomic_number[36] - (-8.0)) < 2.0
    assert fit.by_atomic_number[[6, 7, 8]] == pytest.approx([-9.0, -8.0, -7.0], abs=0.2)


def test_the_residual_is_that_of_the_reported_energies():
    atoms = random_compositions(40, (13, 29), seed=6)
    energies = atoms.sum(axis=1) * np.random.default_rng(7).normal(size=40)
    fit = fit_reference_energies(lambda: [(atoms, energies)])
    residual = (energies - atoms @ fit.by_atomic_number) / atoms.sum(axis=1)
    assert fit.rmse_ev_per_atom == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert fit.mae_ev_per_atom == pytest.approx(np.mean(np.abs(residual)))


def test_no_energy_at_all_gives_zeros_and_no_residual():
    fit = fit_reference_energies(lambda: [(np.zeros((0, 95)), np.zeros(0))])
    assert not fit.by_atomic_number.any()
    assert (fit.num_structures, fit.rank) == (0, 0)
    assert np.isnan(fit.rmse_ev_per_atom)
