"""Fixtures shared by all tests: where the sample data lies."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: ranks share the machine with this process

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of sample data: environment JANUS_SHARED_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("JANUS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the sample data folder, which is not at {folder} (set JANUS_SHARED_DATA)")
    return folder
