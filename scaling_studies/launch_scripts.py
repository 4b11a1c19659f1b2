"""Launch scripts of planned jobs: Slurm, PBS, Flux, LSF and this host, plain text with everything quoted.

It owns one function per scheduler: resources, time limit, binding, threads, and how ranks find each other. It does not
own how long a job takes nor its layout (``perfmodel.planner``), and it submits nothing.

Directives are those of the schedulers' manuals: sbatch and srun (Slurm 22 and later), qsub of PBS Professional with
the mpiexec of PALS, flux-batch and flux-run (flux-core 0.50 and later), bsub (LSF 10). Sites differ in queues,
accounts and modules: what a site wants beyond this goes where the script says so.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from janus.errors import UserError

SCHEDULERS = ("slurm", "pbs", "flux", "lsf", "local")
LEAST_LIMIT_S = 600.0  # assumed: no queue is asked for less than ten minutes
_SAFE_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a script starts. command: words of one rank's program; time_limit_s: wall clock asked for.

    gpus_per_node: 0 on CPUs; one rank then has ``threads`` cores, else one GPU. ranks fill nodes evenly, the last one
    may be left partly empty. queue, account: as the site names them, None: none asked for. comments: first lines.
    """

    name: str
    command: Sequence[str]
    ranks: int
    nodes: int
    ranks_per_node: int
    threads: int
    time_limit_s: float
    gpus_per_node: int = 0
    transport: str = "gloo"
    queue: str | None = None
    account: str | None = None
    comments: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 < self.ranks <= self.nodes * self.ranks_per_node:
            raise UserError(
                f"{self.ranks} ranks do not fit {self.nodes} nodes of {self.ranks_per_node}: "
                f"ask for {math.ceil(max(1, self.ranks) / self.ranks_per_node)} nodes"
            )
        for what, word in (("queue", self.queue), ("account", self.account)):
            if word is not None and not re.fullmatch(r"[\w.@:+-]+", word):
                raise UserError(f"{what} is {word!r}: use letters, digits and any of . _ - @ : +")

    @property
    def safe_name(self) -> str:
        """The name as every scheduler takes it: letters, digits, . _ -, at most 60."""
        return _SAFE_NAME.sub("-", self.name).strip("-")[:60] or "janus"

    @property
    def limit_minutes(self) -> int:
        """Minutes asked for, rounded up, never below ten."""
        return math.ceil(max(self.time_limit_s, LEAST_LIMIT_S) / 60)

    def clock(self, *, seconds: bool = True) -> str:
        """The limit as hours:minutes[:00]."""
        hours, minutes = divmod(self.limit_minutes, 60)
        return f"{hours:02d}:{minutes:02d}" + (":00" if seconds else "")


def launch_script(scheduler: str, job: Job) -> str:
    """The text of a launch script. Raises UserError for an unknown scheduler."""
    if scheduler not in _WRITERS:
        raise UserError(f"--script is {scheduler!r}: use one of {', '.join(SCHEDULERS)}")
    return _WRITERS[scheduler](job)


def submit_command(scheduler: str, path: str) -> str:
    """What a person types to start the script."""
    quoted = shlex.quote(path)
    return {
        "slurm": f"sbatch {quoted}", "pbs": f"qsub {quoted}", "flux": f"flux batch {quoted}",
        "lsf": f"bsub < {quoted}", "local": f"bash {quoted}",
    }[scheduler]  # fmt: skip


def slurm(job: Job) -> str:
    """sbatch script; srun starts one task per rank and binds it to its cores (and its GPU)."""
    directives = [
        f"--job-name={job.safe_name}", f"--nodes={job.nodes}", f"--ntasks={job.ranks}",
        f"--ntasks-per-node={job.ranks_per_node}", f"--cpus-per-task={job.threads}", f"--time={job.clock()}",
        "--exclusive", f"--output={job.safe_name}-%j.log", "--signal=TERM@120",
    ]  # fmt: skip
    directives += [f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []
    directives += _named("--partition=", job.queue) + _named("--account=", job.account)
    bind = "--gpus-per-task=1 --gpu-bind=closest " if job.gpus_per_node else ""
    start = f"srun --cpus-per-task={job.threads} --cpu-bind=cores {bind}--kill-on-bad-exit=1 {_words(job)}"
    return _text(job, [f"#SBATCH {word}" for word in directives], _threads(job), [start])


def pbs(job: Job) -> str:
    """qsub script of PBS Professional; mpiexec of PALS places and binds the ranks."""
    chunk = f"{job.nodes}:ncpus={job.ranks_per_node * job.threads}:mpiprocs={job.ranks_per_node}"
    chunk += f":ompthreads={job.threads}" + (f":ngpus={job.gpus_per_node}" if job.gpus_per_node else "")
    directives = [f"-N {job.safe_name[:15]}", f"-l select={chunk}", f"-l walltime={job.clock()}",
                  "-l place=scatter:excl", "-j oe"]  # fmt: skip
    directives += _named("-q ", job.queue) + _named("-A ", job.account)
    start = f"mpiexec -n {job.ranks} --ppn {job.ranks_per_node} --depth {job.threads} --cpu-bind depth {_words(job)}"
    note = [
        "# The options of mpiexec are those of PALS. MPICH (Hydra): -ppn N -bind-to core:THREADS; Open MPI:",
        "# --map-by ppr:N:node:PE=THREADS --bind-to core.",
    ]
    before = ['cd "$PBS_O_WORKDIR"', *_threads(job)]
    return _text(job, [f"#PBS {word}" for word in directives], before, [*note, start])


def flux(job: Job) -> str:
    """flux-batch script. Ranks find each other by torch's variables, or by MPI itself where it carries the data."""
    directives = [
        f"--job-name={job.safe_name}", f"-N {job.nodes}", "--exclusive", f"-t {job.limit_minutes}m",
        f"--output={job.safe_name}-{{{{id}}}}.log",
    ]  # fmt: skip
    directives += _named("--queue=", job.queue) + _named("--bank=", job.account)
    run = f"flux run -N {job.nodes} -n {job.ranks} -c {job.threads} -o cpu-affinity=per-task"
    run += " -g 1 -o gpu-affinity=per-task" if job.gpus_per_node else ""
    before = _threads(job)
    if job.transport == "mpi":
        ranks = "export MPI_LOCALRANKID=$FLUX_TASK_LOCAL_ID; "
    else:
        before += ["export MASTER_ADDR=$(hostname) MASTER_PORT=29500  # this script runs beside rank 0"]
        ranks = (
            "export RANK=$FLUX_TASK_RANK WORLD_SIZE=$FLUX_JOB_SIZE LOCAL_RANK=$FLUX_TASK_LOCAL_ID "
            f"LOCAL_WORLD_SIZE={job.ranks_per_node}; "
        )
    start = f"{run} bash -c {shlex.quote(ranks + 'exec ' + chr(34) + '$@' + chr(34))} rank {_words(job)}"
    return _text(job, [f"#flux: {word}" for word in directives], before, [start])


def lsf(job: Job) -> str:
    """bsub script; the site's mpiexec reads the hosts from LSF."""
    need = f"span[ptile={job.ranks_per_node}] affinity[core({job.threads})]"
    directives = [f"-J {job.safe_name}", f"-n {job.ranks}", f'-R "{need}"', "-x",
                  f"-W {job.clock(seconds=False)}", f"-o {job.safe_name}-%J.log"]  # fmt: skip
    if job.gpus_per_node:
        directives.append(f'-gpu "num={job.gpus_per_node}:mode=shared:j_exclusive=yes"')
    directives += _named("-q ", job.queue) + _named("-P ", job.account)
    note = ["# Where jobs start with jsrun: jsrun -n RANKS -a 1 -c THREADS -g GPUS_PER_RANK -b packed:THREADS ..."]
    start = f"mpiexec -n {job.ranks} {_words(job)}"
    return _text(job, [f"#BSUB {word}" for word in directives], _threads(job), [*note, start])


def local(job: Job) -> str:
    """Plain script for this host: mpiexec, or the program itself for one rank."""
    start = _words(job) if job.ranks == 1 else f"mpiexec -n {job.ranks} {_words(job)}"
    return _text(job, [], _threads(job), [start])


_WRITERS: Mapping[str, Callable[[Job], str]] = {"slurm": slurm, "pbs": pbs, "flux": flux, "lsf": lsf, "local": local}


def _named(option: str, value: str | None) -> list[str]:
    return [] if value is None else [option + value]


def _words(job: Job) -> str:
    return shlex.join(job.command)


def _threads(job: Job) -> list[str]:
    """Threads of a rank, one per core of its own; the numeric libraries start no more."""
    lines = [f"export OMP_NUM_THREADS={job.threads} MKL_NUM_THREADS={job.threads} OPENBLAS_NUM_THREADS=1"]
    if job.threads > 1:
        lines.append("export OMP_PROC_BIND=close OMP_PLACES=cores")
    return lines


def _text(job: Job, directives: Sequence[str], before: Sequence[str], start: Sequence[str]) -> str:
    """Shebang, directives, comments, environment, start. Directives come before the first command."""
    comments = [f"# {line}".rstrip() for text in job.comments for line in text.splitlines()]
    lines = [
        "#!/bin/bash", *directives, *comments, "set -eu", "",
        "# Modules and the Python environment of your site, if the job does not inherit them, go here.",
        *before, "", *start,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
