"""janus export: the file that evaluate takes, its summary, its mistakes."""

import hashlib
import json
import subprocess
import sys

import pytest
from train_runs import TINY, environment, make_store

from janus.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    store = make_store(folder / "ten.store")
    words = ["--steps", "2", "--batch.structures=5"]
    assert main(["train", "--data", str(store.path), "--out", str(folder / "run"), *TINY, *words]) == 0
    return folder / "run", store.path


def evaluate(capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_exported_file_evaluates_as_its_checkpoint(trained, tmp_path, capsys):
    run, data = trained
    out = tmp_path / "copper.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert f"{out}: average weights after 2 steps, float32" in capsys.readouterr().out
    of_run, of_file = evaluate(capsys, run, data), evaluate(capsys, out, data)
    for name in ("weights", "step", "energy", "forces", "stress"):
        assert of_file[name] == of_run[name]
    assert of_file["checkpoint"] == str(out)


def test_json_describes_the_file(trained, tmp_path, capsys):
    out = tmp_path / "raw.safetensors"
    words = ["export", str(trained[0] / "checkpoints" / "latest"), "--out", str(out), "--raw-weights", "--json"]
    capsys.readouterr()
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["weights"], document["step"], document["out"]) == ("raw", 2, str(out))
    assert document["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("checkpoint", "out", "sentence"),
    [
        ("nowhere", "a.safetensors", "no checkpoint at nowhere"),
        ("RUN", "a.pt", "does not end in .safetensors"),
        ("RUN", "missing/a.safetensors", "there is no folder"),
        ("RUN", "there.safetensors", "exists: replace it with --force"),
        ("RUN", "folder.safetensors", "is a folder"),
    ],
)
def test_mistakes_are_one_sentence(trained, tmp_path, capsys, checkpoint, out, sentence):
    (tmp_path / "there.safetensors").write_text("something of mine")
    (tmp_path / "folder.safetensors").mkdir()
    capsys.readouterr()
    named = str(trained[0]) if checkpoint == "RUN" else checkpoint
    assert main(["export", named, "--out", str(tmp_path / out)]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1
    assert (tmp_path / "there.safetensors").read_text() == "something of mine"


def test_force_replaces_and_a_full_disk_keeps_what_was_there(trained, tmp_path):
    out = tmp_path / "there.safetensors"
    out.write_text("something of mine")
    code = (
        "import resource, sys; from janus.cli.main import main\n"
        "if sys.argv[1] == 'full': resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    for disk, expected in (("full", 1), ("free", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, disk, "export", str(trained[0]), "--out", str(out), "--force"],
            capture_output=True, text=True, env=environment(), check=False,
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        if disk == "full":
            assert "could not be written (File too large" in done.stderr
            assert out.read_text() == "something of mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]
    assert out.stat().st_size > 4096
