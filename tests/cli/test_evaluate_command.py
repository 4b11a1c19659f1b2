"""janus evaluate: its errors equal those worked out directly from predictions, in total and per element."""

import json

import numpy as np
import pytest
import torch
from train_runs import TINY, launch, make_store

from janus.cli.main import main
from janus.data.graph import build_graph
from janus.data.store import StructureStore
from janus.model.batch import GraphBatch
from janus.model.potential import evaluate_potential
from janus.train.inference import build_from_checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    store = make_store(folder / "ten.store")
    words = ["--run.dtype=float64", "--steps", "3", "--batch.structures=5"]
    assert main(["train", "--data", str(store.path), "--out", str(folder / "run"), *TINY, *words]) == 0
    return folder / "run", store.path


def evaluate(capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def errors_one_by_one(run, data, raw_weights):
    """(atomic numbers, energy error per atom, force errors, stress errors or None) of each structure."""
    model = build_from_checkpoint(open_checkpoint(run, pytest.fail), device="cpu", raw_weights=raw_weights)
    rows = []
    for structure in StructureStore.open(data):
        batch = GraphBatch.collate([structure], [build_graph(structure, 4.0, 3.0)]).to("cpu", torch.float64)
        prediction = evaluate_potential(model, batch, create_graph=False)
        stress = None if structure.stress is None else prediction.stress[0].numpy() - structure.stress
        energy = (float(prediction.energy[0]) - structure.energy) / structure.num_atoms
        rows.append((structure.numbers, energy, prediction.forces.numpy() - structure.forces, stress))
    return rows


def expect(numbers, errors):
    errors = np.asarray(errors)
    assert numbers["count"] == errors.size
    assert numbers["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-10)
    assert numbers["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-10)


@pytest.mark.parametrize("raw_weights", [False, True])
def test_errors_equal_those_of_single_predictions(trained, capsys, raw_weights):
    run, data = trained
    document = evaluate(capsys, run, data, "--max-work", "3000", *(["--raw-weights"] if raw_weights else []))
    assert document["weights"] == ("raw" if raw_weights else "average")
    assert (document["num_structures"], document["step"]) == (10, 3)
    rows = errors_one_by_one(run, data, raw_weights)
    expect(document["energy"], [energy for _, energy, _, _ in rows])
    expect(document["forces"], np.concatenate([forces for _, _, forces, _ in rows]))
    expect(document["stress"], [stress for *_, stress in rows if stress is not None])
    for symbol, number in (("Cu", 29), ("C", 6), ("H", 1), ("Al", 13)):
        expect(document["energy"]["by_element"][symbol], [e for numbers, e, _, _ in rows if number in numbers])
        forces = np.concatenate([forces[numbers == number] for numbers, _, forces, _ in rows])
        expect(document["forces"]["by_element"][symbol], forces)
    assert set(document["forces"]["by_element"]) == {"Cu", "Al", "Ni", "Au", "C", "H"}


def test_averaged_and_raw_weights_differ(trained, capsys):
    run, data = trained
    assert evaluate(capsys, run, data)["forces"]["mae"] != evaluate(capsys, run, data, "--raw-weights")["forces"]["mae"]


def test_two_ranks_give_the_same_errors(trained, capsys):
    run, data = trained
    done = launch(2, "-m", "janus", "evaluate", str(run), str(data), "--json")
    assert done.returncode == 0, done.stderr
    parallel, serial = json.loads(done.stdout), evaluate(capsys, run, data)
    for name in ("energy", "forces", "stress"):
        assert parallel[name]["count"] == serial[name]["count"]
        assert parallel[name]["mae"] == pytest.approx(serial[name]["mae"], rel=1e-12)
        assert parallel[name]["rmse"] == pytest.approx(serial[name]["rmse"], rel=1e-12)


def test_people_get_a_table(trained, capsys):
    run, data = trained
    assert main(["evaluate", str(run), str(data)]) == 0
    text = capsys.readouterr().out
    assert "10 structures" in text
    assert "forces" in text
    assert "eV/angstrom" in text


@pytest.mark.parametrize(
    ("checkpoint", "data", "expected"),
    [
        ("nowhere", "DATA", "no checkpoint at"),
        ("RUN", "nowhere.xyz", "nowhere.xyz"),
        ("DATA", "DATA", "holds no checkpoint"),
    ],
)
def test_mistakes_are_one_sentence(trained, capsys, checkpoint, data, expected):
    paths = {"RUN": str(trained[0]), "DATA": str(trained[1])}
    assert main(["evaluate", paths.get(checkpoint, checkpoint), paths.get(data, data)]) == 2
    errors = capsys.readouterr().err
    assert expected in errors
    assert len(errors.strip().splitlines()) == 1
