"""Export: one file with everything needed to predict, equal to the checkpoint; damage and strangers are refused."""

import json

import pytest
import torch
from ase.build import bulk
from safetensors import safe_open
from safetensors.torch import save_file
from train_runs import TINY, make_store

from janus.calculator import JanusCalculator
from janus.cli.main import main
from janus.errors import UserError
from janus.train.export import export_checkpoint, read_export
from janus.train.inference import build_from_checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    store = make_store(folder / "ten.store")
    words = ["--steps", "3", "--batch.structures=5", "--optimizer.learning_rate=0.01"]
    assert main(["train", "--data", str(store.path), "--out", str(folder / "run"), *TINY, *words]) == 0
    return folder / "run"


@pytest.fixture
def exported(run, tmp_path):
    export_checkpoint(open_checkpoint(run, pytest.fail), tmp_path / "copper.safetensors")
    return tmp_path / "copper.safetensors"


@pytest.mark.parametrize("raw", [False, True])
def test_the_file_gives_the_model_of_the_checkpoint(run, tmp_path, raw):
    checkpoint, out = open_checkpoint(run, pytest.fail), tmp_path / "out.safetensors"
    header = export_checkpoint(checkpoint, out, raw=raw)
    assert (header["weights"], header["bytes"]) == ("raw" if raw else "average", out.stat().st_size)
    expected = build_from_checkpoint(checkpoint, device="cpu", raw_weights=raw).state_dict()
    other = build_from_checkpoint(checkpoint, device="cpu", raw_weights=not raw).state_dict()
    back = build_from_checkpoint(open_checkpoint(out, pytest.fail), device="cpu", raw_weights=raw).state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in back)
    assert any(not torch.equal(back[name], other[name]) for name in back)


def test_the_header_tells_where_the_weights_come_from(run, exported):
    with safe_open(exported, framework="pt") as stored:
        document = json.loads(stored.metadata()["janus"])
    assert (document["schema"], document["weights"], document["step"]) == ("janus.potential/1", "average", 3)
    assert document["config"]["model"]["width"] == 8
    assert document["facts"]["data_fingerprint"] == json.loads((run / "run.json").read_text())["data_fingerprint"]
    assert [path.name for path in exported.parent.iterdir()] == ["copper.safetensors"]


def test_the_calculator_takes_the_file(run, exported):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = JanusCalculator(run)
    expected = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = JanusCalculator(exported)
    assert atoms.get_potential_energy() == expected[0]
    assert (atoms.get_forces() == expected[1]).all()


def test_raw_weights_are_not_in_an_export_of_averages(exported):
    with pytest.raises(UserError, match="holds averaged weights only"):
        build_from_checkpoint(open_checkpoint(exported, pytest.fail), device="cpu", raw_weights=True)


def truncate(content):
    return content[:-3]


def flip_a_weight(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def edit_the_header(content):
    return content.replace(b'\\"step\\": 3', b'\\"step\\": 4')


def nothing_left(content):
    return b""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "is damaged or no safetensors file"),
        (nothing_left, "is damaged or no safetensors file"),
        (flip_a_weight, "does not match its checksum"),
        (edit_the_header, "does not match its checksum"),
    ],
)
def test_damage_is_one_sentence(exported, damage, reason):
    content = exported.read_bytes()
    assert damage(content) != content
    exported.write_bytes(damage(content))
    with pytest.raises(UserError, match=reason):
        read_export(exported)


def test_a_strangers_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="was not written by `janus export`"):
        open_checkpoint(tmp_path / "other.safetensors", pytest.fail)
