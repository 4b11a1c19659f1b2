"""What `janus data stats` reports, against direct sums over the structures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from janus.data.statistics import describe_store
from janus.data.store import write_store
from janus.data.synthetic import make_structures
from janus.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    target = tmp_path_factory.mktemp("statistics") / "a.store"
    return write_store(target, make_structures(24, seed=1, max_atoms=32), cutoff_angstrom=5.0, line_cutoff_angstrom=3.5)


def test_figures_are_sums_over_the_structures(store):
    document = describe_store(store, num_ranks=2, structures_per_rank=3)
    assert json.loads(json.dumps(document)) == document
    assert document["num_structures"] == 24
    atoms = np.array([structure.num_atoms for structure in store])
    edges, bonds, angles = store.num_edges.sum(), store.num_bonds.sum(), store.num_angles.sum()
    assert document["totals"] == {"atoms": atoms.sum(), "edges": edges, "bonds": bonds, "angles": angles}
    shown = document["percentiles"]["atoms"]
    assert (shown["min"], shown["max"]) == (atoms.min(), atoms.max())
    assert shown["p50"] == np.median(atoms)
    assert shown["mean"] == pytest.approx(atoms.mean())
    assert document["labelled"] == {"energy": 24, "forces": 24, "stress": 24}


def test_elements_and_their_reference_energies(store):
    rows = {row["number"]: row for row in describe_store(store, num_ranks=2, structures_per_rank=3)["elements"]}
    numbers = np.concatenate([structure.numbers for structure in store])
    assert set(rows) == set(numbers.tolist())
    for number, row in rows.items():
        assert row["atoms"] == (numbers == number).sum()
        assert row["structures"] == sum(number in structure.numbers for structure in store)
        assert row["edges"] == store.edges_of_element[number]
        assert row["reference_energy_ev"] == store.reference_energies[number]
    assert rows[29]["symbol"] == "Cu"


def test_balance_preview_knows_its_ranks(store):
    balance = describe_store(store, num_ranks=2, structures_per_rank=3)["balance"]
    assert (balance["num_ranks"], balance["structures_per_rank"], balance["num_steps"]) == (2, 3, 4)
    assert balance["fixed_count"] < balance["longest_first"] <= 1.0
    assert describe_store(store, num_ranks=1, structures_per_rank=24)["balance"]["longest_first"] == pytest.approx(1.0)
    with pytest.raises(UserError, match="0 ranks"):
        describe_store(store, num_ranks=0, structures_per_rank=1)
