"""Which launcher started this process, read off the environment. Never imports torch; connects to nothing."""

from __future__ import annotations

from collections.abc import Mapping

# Variable that marks a rank started by an MPI launcher -> variable with the number of ranks (None: not published).
# Hydra (MPICH, Intel MPI), Open MPI, PALS (HPE Cray).
MPI_LAUNCHERS = {"MPI_LOCALRANKID": "PMI_SIZE", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE", "PALS_RANKID": None}


def find_launcher(environment: Mapping[str, str]) -> str:
    """Who started this process: ``torchrun``, ``mpiexec``, ``srun`` or ``single``.

    SLURM_PROCID alone does not mean srun: a batch script has it too, only a step has SLURM_STEP_NUM_TASKS.
    """
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")):
        return "torchrun"
    if any(name in environment for name in MPI_LAUNCHERS):
        return "mpiexec"
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        return "srun"
    return "single"
