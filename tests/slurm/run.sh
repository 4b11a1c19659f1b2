#!/bin/bash
# Tests on a real Slurm: installs Debian's slurm-wlm, munge and what accounting needs where they are missing, then runs
# pytest -m slurm. It takes about seven minutes, most of them waiting for Slurm's own time limits.
# Needs root. Options go on to pytest, PYTHON names the interpreter: PYTHON=.venv/bin/python tests/slurm/run.sh -k array
set -eu
cd "$(dirname "$0")/../.."
if [ "$(id -u)" != 0 ]; then
    echo "tests/slurm/run.sh: slurmd starts jobs only as root: run it as root, or in a container" >&2
    exit 2
fi
missing=
for program in slurmctld slurmd munged sbatch slurmdbd mariadbd; do
    command -v "$program" > /dev/null || missing="$missing $program"
done
if [ -n "$missing" ]; then
    if [ ! -e /usr/sbin/policy-rc.d ]; then  # no daemon may start by itself: the tests start their own
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        slurm-wlm munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core
fi
"${PYTHON:-python3}" -m pytest -m slurm tests/slurm "$@"
