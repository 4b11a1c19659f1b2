"""Which launcher an environment means, and Slurm's node lists."""

import pytest

from janus.parallel.launcher import find_launcher
from janus.parallel.rendezvous import first_host

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "single"),
        (TORCHRUN, "torchrun"),
        ({"MPI_LOCALRANKID": "0", "PMI_SIZE": "2"}, "mpiexec"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "mpiexec"),
        (SRUN, "srun"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "single"),  # a batch script, not a step
        (SRUN | {"MPI_LOCALRANKID": "0"}, "mpiexec"),  # hydra starts its proxies through srun
        (SRUN | TORCHRUN, "torchrun"),
        ({"RANK": "3", "WORLD_SIZE": "8"}, "single"),
    ],
)
def test_launcher_is_read_off_the_environment(environment, launcher):
    assert find_launcher(environment) == launcher


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[007-009,12],other", "node007"),
        ("nid001234", "nid001234"),
        ("a,b", "a"),
        ("n1-[3,5]-x,y", "n1-3-x"),
    ],
)
def test_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host
