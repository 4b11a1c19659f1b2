"""Launch scripts of planned jobs: Slurm, PBS, Flux, LSF and this host, plain text with everything quoted.

It owns one function per scheduler: resources, time limit, binding, threads, and how ranks find each other. It does not
own how long a job takes nor its layout (``perfmodel.planner``), what an attempt of a campaign adds
(``executors.scripts``), and it submits nothing.

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
LAUNCHERS = ("mpiexec", "torchrun")
LEAST_LIMIT_S = 600.0  # assumed: no queue is asked for less than ten minutes
LONGEST_NAME = 200  # PBS Professional takes 230 characters, Slurm and LSF more
_SAFE_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a script starts. command: words of one rank's program; time_limit_s: wall clock asked for.

    gpus_per_node: 0 on CPUs; one rank then has ``threads`` cores, else one GPU. ranks fill nodes evenly, the last one
    may be left partly empty. queue, account: as the site names them, None: none asked for. comments: first lines.
    launcher: what starts the ranks on this host, LAUNCHERS; a scheduler has its own. least_limit_s: no shorter limit is
    asked for.
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
    launcher: str = "mpiexec"
    least_limit_s: float = LEAST_LIMIT_S

    def __post_init__(self) -> None:
        if not 0 < self.ranks <= self.nodes * self.ranks_per_node:
            raise UserError(
                f"{self.ranks} ranks do not fit {self.nodes} nodes of {self.ranks_per_node}: "
                f"ask for {math.ceil(max(1, self.ranks) / self.ranks_per_node)} nodes"
            )
        if self.launcher not in LAUNCHERS:
            raise UserError(f"launcher is {self.launcher!r}: use one of {', '.join(LAUNCHERS)}")
        for what, word in (("queue", self.queue), ("account", self.account)):
            if word is not None and not re.fullmatch(r"[\w.@:+-]+", word):
                raise UserError(f"{what} is {word!r}: use letters, digits and any of . _ - @ : +")

    @property
    def safe_name(self) -> str:
        """The name as every scheduler takes it: letters, digits, . _ -, at most 200."""
        return _SAFE_NAME.sub("-", self.name).strip("-")[:LONGEST_NAME] or "janus"

    @property
    def limit_minutes(self) -> int:
        """Minutes asked for, rounded up."""
        return math.ceil(max(self.time_limit_s, self.least_limit_s) / 60)

    def clock(self, *, seconds: bool = True) -> str:
        """The limit as hours:minutes[:00]."""
        hours, minutes = divmod(self.limit_minutes, 60)
        return f"{hours:02d}:{minutes:02d}" + (":00" if seconds else "")


@dataclass(frozen=True, kw_only=True)
class ScriptParts:
    """directives: whole comment lines for the scheduler; environment: shell lines; notes: comments on the start;
    start: the one command that starts all ranks."""

    directives: Sequence[str]
    environment: Sequence[str]
    start: str
    notes: Sequence[str] = ()


def script_parts(scheduler: str, job: Job, *, log: str | None = None) -> ScriptParts:
    """The parts of a script. log: file for all output, None: named by job and number where the job was submitted.

    Raises UserError for an unknown scheduler.
    """
    if scheduler not in _WRITERS:
        raise UserError(f"scheduler is {scheduler!r}: use one of {', '.join(SCHEDULERS)}")
    return _WRITERS[scheduler](job, log)


def launch_script(scheduler: str, job: Job) -> str:
    """The text of a launch script. Raises UserError for an unknown scheduler."""
    parts = script_parts(scheduler, job)
    early = ["#SBATCH --signal=TERM@120"] if scheduler == "slurm" else []  # time to save before the limit
    lines = [
        "#!/bin/bash", *parts.directives, *early, *comment_lines(job), "set -eu", "",
        "# Modules and the Python environment of your site, if the job does not inherit them, go here.",
        *(['cd "$PBS_O_WORKDIR"'] if scheduler == "pbs" else []), *parts.environment, "", *parts.notes, parts.start,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def comment_lines(job: Job) -> list[str]:
    """The comments of a job as lines of a script."""
    return [f"# {line}".rstrip() for text in job.comments for line in text.splitlines()]


def submit_command(scheduler: str, path: str) -> str:
    """What a person types to start the script."""
    quoted = shlex.quote(path)
    return {
        "slurm": f"sbatch {quoted}", "pbs": f"qsub {quoted}", "flux": f"flux batch {quoted}",
        "lsf": f"bsub < {quoted}", "local": f"bash {quoted}",
    }[scheduler]  # fmt: skip


def slurm(job: Job, log: str | None) -> ScriptParts:
    """sbatch script; srun starts one task per rank and binds it to its cores (and its GPU)."""
    directives = [
        f"--job-name={job.safe_name}", f"--nodes={job.nodes}", f"--ntasks={job.ranks}",
        f"--ntasks-per-node={job.ranks_per_node}", f"--cpus-per-task={job.threads}", f"--time={job.clock()}",
        "--exclusive", f"--output={log or job.safe_name + '-%j.log'}",
    ]  # fmt: skip
    directives += [f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []
    directives += _named("--partition=", job.queue) + _named("--account=", job.account)
    bind = "--gpus-per-task=1 --gpu-bind=closest " if job.gpus_per_node else ""
    start = f"srun --cpus-per-task={job.threads} --cpu-bind=cores {bind}--kill-on-bad-exit=1 {_words(job)}"
    return ScriptParts(directives=_prefixed("#SBATCH", directives), environment=_threads(job), start=start)


def pbs(job: Job, log: str | None) -> ScriptParts:
    """qsub script of PBS Professional; mpiexec of PALS places and binds the ranks."""
    chunk = f"{job.nodes}:ncpus={job.ranks_per_node * job.threads}:mpiprocs={job.ranks_per_node}"
    chunk += f":ompthreads={job.threads}" + (f":ngpus={job.gpus_per_node}" if job.gpus_per_node else "")
    directives = [f"-N {job.safe_name}", f"-l select={chunk}", f"-l walltime={job.clock()}",
                  "-l place=scatter:excl", "-j oe", *_named("-o ", log)]  # fmt: skip
    directives += _named("-q ", job.queue) + _named("-A ", job.account)
    start = f"mpiexec -n {job.ranks} --ppn {job.ranks_per_node} --depth {job.threads} --cpu-bind depth {_words(job)}"
    notes = [
        "# The options of mpiexec are those of PALS. MPICH (Hydra): -ppn N -bind-to core:THREADS; Open MPI:",
        "# --map-by ppr:N:node:PE=THREADS --bind-to core.",
    ]
    return ScriptParts(directives=_prefixed("#PBS", directives), environment=_threads(job), start=start, notes=notes)


def flux(job: Job, log: str | None) -> ScriptParts:
    """flux-batch script. Ranks find each other by torch's variables, or by MPI itself where it carries the data."""
    directives = [
        f"--job-name={job.safe_name}", f"-N {job.nodes}", "--exclusive", f"-t {job.limit_minutes}m",
        f"--output={log or job.safe_name + '-{{id}}.log'}",
    ]  # fmt: skip
    directives += _named("--queue=", job.queue) + _named("--bank=", job.account)
    run = f"flux run -N {job.nodes} -n {job.ranks} -c {job.threads} -o cpu-affinity=per-task"
    run += " -g 1 -o gpu-affinity=per-task" if job.gpus_per_node else ""
    environment = _threads(job)
    if job.transport == "mpi":
        ranks = "export MPI_LOCALRANKID=$FLUX_TASK_LOCAL_ID; "
    else:
        environment += ["export MASTER_ADDR=$(hostname) MASTER_PORT=29500  # this script runs beside rank 0"]
        ranks = (
            "export RANK=$FLUX_TASK_RANK WORLD_SIZE=$FLUX_JOB_SIZE LOCAL_RANK=$FLUX_TASK_LOCAL_ID "
            f"LOCAL_WORLD_SIZE={job.ranks_per_node}; "
        )
    start = f"{run} bash -c {shlex.quote(ranks + 'exec ' + chr(34) + '$@' + chr(34))} rank {_words(job)}"
    return ScriptParts(directives=_prefixed("#flux:", directives), environment=environment, start=start)


def lsf(job: Job, log: str | None) -> ScriptParts:
    """bsub script; the site's mpiexec reads the hosts from LSF."""
    need = f"span[ptile={job.ranks_per_node}] affinity[core({job.threads})]"
    directives = [f"-J {job.safe_name}", f"-n {job.ranks}", f'-R "{need}"', "-x",
                  f"-W {job.clock(seconds=False)}", f"-o {log or job.safe_name + '-%J.log'}"]  # fmt: skip
    if job.gpus_per_node:
        directives.append(f'-gpu "num={job.gpus_per_node}:mode=shared:j_exclusive=yes"')
    directives += _named("-q ", job.queue) + _named("-P ", job.account)
    notes = ["# Where jobs start with jsrun: jsrun -n RANKS -a 1 -c THREADS -g GPUS_PER_RANK -b packed:THREADS ..."]
    start = f"mpiexec -n {job.ranks} {_words(job)}"
    return ScriptParts(directives=_prefixed("#BSUB", directives), environment=_threads(job), start=start, notes=notes)


def local(job: Job, log: str | None) -> ScriptParts:
    """Plain script for this host: mpiexec or torchrun, or the program itself for one rank. The caller takes the log."""
    start = _words(job)
    if job.ranks > 1 and job.launcher == "torchrun":
        start = f"torchrun --standalone --nnodes=1 --nproc-per-node={job.ranks} --no-python {start}"
    elif job.ranks > 1:
        start = f"mpiexec -n {job.ranks} {start}"
    return ScriptParts(directives=(), environment=_threads(job), start=start)


_WRITERS: Mapping[str, Callable[[Job, str | None], ScriptParts]] = {
    "slurm": slurm, "pbs": pbs, "flux": flux, "lsf": lsf, "local": local,
}  # fmt: skip


def _named(option: str, value: str | None) -> list[str]:
    return [] if value is None else [option + value]


def _prefixed(prefix: str, directives: Sequence[str]) -> list[str]:
    return [f"{prefix} {directive}" for directive in directives]


def _words(job: Job) -> str:
    return shlex.join(job.command)


def _threads(job: Job) -> list[str]:
    """Threads of a rank, one per core of its own; the numeric libraries start no more."""
    lines = [f"export OMP_NUM_THREADS={job.threads} MKL_NUM_THREADS={job.threads} OPENBLAS_NUM_THREADS=1"]
    if job.threads > 1:
        lines.append("export OMP_PROC_BIND=close OMP_PLACES=cores")
    return lines
