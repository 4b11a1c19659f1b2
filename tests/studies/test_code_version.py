"""The code's version, revision and changes, on small repositories made by the real git."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from janus import __version__
from janus.errors import UserError
from janus.host_facts import is_not_applicable
from janus.source_digest import PACKAGE, counted_sources, source_digest
from scaling_studies.code_version import (
    CODE_FOLDER,
    UNCHANGED,
    installed_distributions,
    keep_distributions,
    source_state,
    trainer_version,
)


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    (folder / "janus").mkdir(parents=True)
    (folder / "janus" / "step.py").write_text("x = 1\n")
    (folder / "notes.md").write_text("one\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_repository_has_its_revision_and_no_diff_by_name(repository):
    state = source_state(repository)
    assert state.revision == git(repository, "rev-parse", "HEAD").strip()
    assert state.diff == UNCHANGED
    assert is_not_applicable(state.diff)
    assert state.version == trainer_version()


def test_changes_and_new_files_are_kept_as_a_patch_that_can_be_applied(repository, tmp_path):
    (repository / "janus" / "step.py").write_text("x = 2\n")
    (repository / "janus" / "new.py").write_text("y = 1\n")
    (repository / "notes.md").write_text("no source\n")
    state = source_state(repository)
    for _ in range(2):
        state.keep(tmp_path / "study")
    (kept,) = (tmp_path / "study" / CODE_FOLDER).iterdir()
    assert kept.name == f"{state.diff}.patch"
    fresh = tmp_path / "fresh"
    git(tmp_path, "clone", "-q", str(repository), str(fresh))
    git(fresh, "apply", str(kept))
    assert (fresh / "janus" / "step.py").read_text() == "x = 2\n"
    assert (fresh / "janus" / "new.py").read_text() == "y = 1\n"
    assert (fresh / "notes.md").read_text() == "one\n"


def test_other_changes_are_another_diff(repository):
    diffs = []
    for value in (2, 3):
        (repository / "janus" / "step.py").write_text(f"x = {value}\n")
        diffs.append(source_state(repository).diff)
    assert len(set(diffs)) == 2


def test_without_a_repository_the_revision_is_not_applicable_by_name(tmp_path):
    state = source_state(tmp_path)
    assert "installed without its git repository" in str(state.revision)
    assert state.diff == state.revision


def test_a_repository_that_git_cannot_read_is_not_known(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    state = source_state(repository)
    assert state.revision is None
    assert state.diff is None


def test_a_kept_patch_that_was_edited_is_refused(repository, tmp_path):
    (repository / "janus" / "step.py").write_text("x = 2\n")
    state = source_state(repository)
    state.keep(tmp_path)
    (tmp_path / CODE_FOLDER / f"{state.diff}.patch").write_text("something else")
    with pytest.raises(UserError, match="does not hold what its name says"):
        state.keep(tmp_path)


def test_the_digest_follows_what_decides_a_measurement_and_nothing_else(tmp_path):
    package = tmp_path / "janus"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = source_digest(package)
    assert before == source_digest()
    for name in ("cli/train.py", "calibrate.py"):
        (package / name).write_text("changed")
    assert source_digest(package) == before
    (package / "train" / "step.py").write_text("changed")
    assert source_digest(package) != before
    shutil.copy(PACKAGE / "train" / "step.py", package / "train" / "step.py")
    assert source_digest(package) == before
    (package / "train" / "step.py").rename(package / "train" / "steps.py")
    assert source_digest(package) != before


def test_model_kernels_collectives_and_training_count():
    folders = {path.parts[0] for path in counted_sources()}
    assert {"model", "kernels", "parallel", "train", "data", "packing.py", "placement.py"} <= folders
    assert trainer_version() == f"{__version__}+{source_digest()}"


def test_installed_distributions_are_a_list_that_pip_understands(tmp_path):
    lines = installed_distributions().splitlines()
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert any(line.startswith("numpy==") for line in lines)
    digest = keep_distributions(tmp_path)
    assert (tmp_path / CODE_FOLDER / f"{digest}.txt").read_text().splitlines() == lines
