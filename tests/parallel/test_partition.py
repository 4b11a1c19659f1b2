"""Division of atoms: balance, completeness, compactness, determinism, and the odd cases."""

from __future__ import annotations

import numpy as np
import pytest

from janus.parallel.partition import divide_atoms, work_of_atoms


def random_batch(seed: int, sizes: list[int]) -> dict[str, np.ndarray]:
    """Structures in cells of all shapes, every second one without periodicity; work from 1 to 1000."""
    generator = np.random.default_rng(seed)
    count = sum(sizes)
    return {
        "work": generator.integers(1, 1000, count),
        "positions": generator.normal(0, 30, (count, 3)),
        "cell": generator.normal(0, 3, (len(sizes), 3, 3)) + 12 * np.eye(3),
        "periodic": np.arange(len(sizes)) % 2 == 0,
        "structure_of_atom": np.repeat(np.arange(len(sizes)), sizes),
    }


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 7, 8, 64])
@pytest.mark.parametrize(
    "sizes", [[500], [3, 100, 1, 1, 57, 40, 2], [1] * 40, [7]], ids=["one", "mixed", "lone", "few"]
)
def test_work_is_balanced_to_one_atom(sizes: list[int], num_parts: int) -> None:
    for seed in range(5):
        batch = random_batch(seed, sizes)
        part = divide_atoms(**batch, num_parts=num_parts)
        assert part.shape == (sum(sizes),)
        work_of_part = np.bincount(part, batch["work"], minlength=num_parts)
        assert len(work_of_part) == num_parts
        assert np.abs(work_of_part - work_of_part.mean()).max() < batch["work"].max()


@pytest.mark.parametrize("sizes", [[], [1], [2]], ids=["none", "one", "two"])
def test_fewer_atoms_than_parts(sizes: list[int]) -> None:
    part = divide_atoms(**random_batch(0, sizes), num_parts=8)
    assert len(part) == sum(sizes) == len(set(part.tolist()))
    assert all(0 <= p < 8 for p in part)


def test_structures_stay_whole_but_for_one_per_cut() -> None:
    batch = random_batch(3, [20] * 50)
    part = divide_atoms(**batch, num_parts=8)
    assert sum(len(set(part[batch["structure_of_atom"] == s])) > 1 for s in range(50)) <= 7


def test_equal_structures_are_not_cut() -> None:
    batch = random_batch(3, [20] * 8) | {"work": np.full(160, 5)}
    assert np.array_equal(divide_atoms(**batch, num_parts=4), np.repeat(np.arange(4), 40))


def test_long_cell_is_cut_into_slabs() -> None:
    """A chain along the second, skewed lattice vector, its atoms shuffled and outside the cell."""
    cell = np.array([[[4.0, 0, 0], [30.0, 40.0, 0], [0, 0, 5.0]]])
    order = np.random.default_rng(1).permutation(64)
    fractional = np.stack([np.full(64, 0.3), order / 64 + 0.001, np.full(64, 0.7)], axis=1)
    shifted = fractional + np.random.default_rng(2).integers(-2, 3, (64, 3))
    part = divide_atoms(np.ones(64), shifted @ cell[0], cell, np.array([True]), np.zeros(64, dtype=int), 4)
    assert np.array_equal(part, order // 16)


def test_cube_is_cut_into_cubes() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(8.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    part = divide_atoms(np.ones(512), grid, np.zeros((1, 3, 3)), np.array([False]), np.zeros(512, dtype=int), 8)
    for number in range(8):
        inside = grid[part == number]
        assert np.array_equal(inside.max(axis=0) - inside.min(axis=0), [3, 3, 3])


def test_round_off_does_not_change_the_division() -> None:
    """Equivalent atoms of a crystal lie on one plane whatever the last digits, also at the face of the cell."""
    cell = np.array([np.diag([8.0, 9.0, 10.0])])
    grid = np.stack(np.meshgrid(*[np.arange(4) / 4] * 3, indexing="ij"), axis=-1).reshape(-1, 3) @ cell[0]
    common = (cell, np.array([True]), np.zeros(64, dtype=int), 4)
    plain = divide_atoms(np.ones(64), grid, *common)
    noise = np.random.default_rng(1).normal(0, 1e-12, grid.shape)
    assert np.array_equal(divide_atoms(np.ones(64), grid + noise, *common), plain)


def test_work_counts_edges_and_angles() -> None:
    assert work_of_atoms(np.array([0, 5, 8]), np.array([0, 0, 4])).tolist() == [1, 5, 20]
