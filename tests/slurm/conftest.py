"""Fixtures of the tests on a real Slurm: one cluster for all of them, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, why_not


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """The cluster, all of its nodes idle."""
    running_cluster.clear()
    return running_cluster
