"""Launch scripts: what they ask for, that a shell reads them, and that nothing in a name or path breaks out."""

import shlex
import subprocess
from dataclasses import replace

import pytest

from janus.errors import UserError
from scaling_studies.launch_scripts import SCHEDULERS, Job, launch_script, submit_command

NASTY = 'runs/it\'s $(touch pwned) `x` "q" & more'
JOB = Job(
    name="matris moe; rm -rf", command=["janus", "train", "--plan", "plan.json", "--out", NASTY], ranks=30, nodes=4,
    ranks_per_node=8, threads=7, time_limit_s=5400.5, comments=("predicted: 1.2 h\nby formulas",),
)  # fmt: skip
STARTS = {"slurm": "srun ", "pbs": "mpiexec ", "flux": "flux run ", "lsf": "mpiexec ", "local": "mpiexec "}


def start_line(scheduler: str, text: str) -> list[str]:
    line = [line for line in text.splitlines() if line.startswith(STARTS[scheduler])]
    assert len(line) == 1
    return shlex.split(line[0])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("changes", [{}, {"gpus_per_node": 8, "queue": "batch", "account": "a_1"}, {"threads": 1}])
def test_bash_reads_it_and_the_command_arrives_word_by_word(scheduler, changes, tmp_path):
    text = launch_script(scheduler, replace(JOB, **changes))
    path = tmp_path / "job.sh"
    path.write_text(text)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    words = start_line(scheduler, text)
    assert words[-len(JOB.command) :] == JOB.command
    assert "# predicted: 1.2 h\n# by formulas\n" in text
    directives = [line for line in text.splitlines() if line.startswith(("#SBATCH", "#PBS", "#BSUB", "#flux:"))]
    assert not any(";" in line or "rm " in line for line in directives)
    first_command = next(n for n, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    assert all(n < first_command for n, line in enumerate(text.splitlines()) if line in directives)


def test_a_rank_gets_its_words_when_the_script_runs(tmp_path):
    """The local script, really run for one rank with a program that prints its words."""
    job = replace(JOB, ranks=1, nodes=1, command=["printf", "%s\\n", NASTY])
    path = tmp_path / "job.sh"
    path.write_text(launch_script("local", job))
    out = subprocess.run(["bash", str(path)], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert out == NASTY + "\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["job.sh"]


def test_resources_and_limits():
    slurm = launch_script("slurm", JOB)
    for word in ("--nodes=4", "--ntasks=30", "--ntasks-per-node=8", "--cpus-per-task=7", "--time=01:31:00"):
        assert f"#SBATCH {word}\n" in slurm
    assert "gpu" not in slurm
    assert "--gpus-per-node=8" in launch_script("slurm", replace(JOB, gpus_per_node=8))
    pbs = launch_script("pbs", replace(JOB, queue="main"))
    assert "#PBS -l select=4:ncpus=56:mpiprocs=8:ompthreads=7\n" in pbs
    assert "#PBS -l walltime=01:31:00\n" in pbs
    assert "#PBS -q main\n" in pbs
    lsf = launch_script("lsf", JOB)
    assert '#BSUB -R "span[ptile=8] affinity[core(7)]"\n' in lsf
    assert "#BSUB -W 01:31\n" in lsf
    flux = launch_script("flux", JOB)
    assert "#flux: -N 4\n" in flux
    assert "#flux: -t 91m\n" in flux
    assert "export OMP_NUM_THREADS=7 " in flux
    assert "OMP_PLACES" not in launch_script("local", replace(JOB, threads=1))
    assert "--time=00:10:00" in launch_script("slurm", replace(JOB, time_limit_s=5)), "never below ten minutes"


def test_a_long_name_is_cut_and_a_short_limit_is_asked_for_only_where_allowed():
    long = launch_script("pbs", replace(JOB, name="x" * 300))
    assert f"#PBS -N {'x' * 200}\n" in long
    assert "-t 1m" in launch_script("flux", replace(JOB, time_limit_s=5, least_limit_s=60))


def test_ranks_of_this_host_are_started_as_asked():
    assert "\nmpiexec -n 30 janus train" in launch_script("local", JOB)
    torchrun = launch_script("local", replace(JOB, launcher="torchrun"))
    assert "\ntorchrun --standalone --nnodes=1 --nproc-per-node=30 --no-python janus train" in torchrun
    alone = launch_script("local", replace(JOB, ranks=1, nodes=1, launcher="torchrun"))
    assert "\njanus train" in alone
    assert "srun" in launch_script("slurm", replace(JOB, launcher="torchrun")), "a scheduler has its own launcher"


def test_ranks_of_flux_find_each_other(tmp_path):
    """The wrapper of a rank run as Flux would: by torch's variables, or by MPI's where MPI carries the data."""
    variables = {"FLUX_TASK_RANK": "9", "FLUX_JOB_SIZE": "30", "FLUX_TASK_LOCAL_ID": "1", "PATH": "/usr/bin:/bin"}
    for transport, seen in (("gloo", "9 30 1 8"), ("mpi", "1")):
        job = replace(JOB, transport=transport, command=["sh", "-c", "echo $RANK $WORLD_SIZE $LOCAL_RANK "
                                                         "$LOCAL_WORLD_SIZE $MPI_LOCALRANKID"])  # fmt: skip
        words = start_line("flux", launch_script("flux", job))
        rank = words[words.index("bash") :]
        out = subprocess.run(rank, env=variables, check=True, capture_output=True, text=True).stdout
        assert out.split() == seen.split()


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(UserError, match="ask for 4 nodes"):
        replace(JOB, nodes=3)
    with pytest.raises(UserError, match="queue is 'a;b'"):
        replace(JOB, queue="a;b")
    with pytest.raises(UserError, match="use one of mpiexec, torchrun"):
        replace(JOB, launcher="srun")
    with pytest.raises(UserError, match="use one of slurm, pbs, flux, lsf, local"):
        launch_script("cobalt", JOB)
    assert submit_command("lsf", "a b.lsf") == "bsub < 'a b.lsf'"
