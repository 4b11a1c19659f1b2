"""Run as a process of its own beside each rank: learns the rank's place from MPI, and tells it what rank 0 has to say.

MPICH tells Hydra in a handler of C's ``exit`` that a rank is done. A rank with gloo's threads must not run such
handlers, so Hydra would take its end for a crash and kill all others, whatever the exit code. This process joins MPI in
the rank's place and leaves in good order; the rank itself never loads MPI. It imports nothing of janus.

Prints the place as JSON (rank, ranks, rank on the host, ranks on the host), reads this rank's text from standard input
to its end, prints rank 0's.
"""

import json
import sys


def main() -> None:
    """Raises ImportError or RuntimeError where mpi4py cannot load MPI."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    print(json.dumps([world.rank, world.size, local.rank, local.size]), flush=True)
    local.Free()
    print(world.bcast(sys.stdin.read(), root=0), end="")


if __name__ == "__main__":
    try:
        main()
    except (ImportError, RuntimeError) as error:
        sys.exit(str(error))
