"""A Slurm cluster of four nodes on this one machine, in a folder of its own: munged, slurmctld and one slurmd a node.

It owns starting and ending the daemons; the tests talk to it with Slurm's own programs. It needs root (slurmd starts
jobs for users) and Debian's slurm-wlm and munge. Nothing outside the folder is read or written, cgroups are not used.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
PATIENCE_S = 30.0
# partition "urgent" preempts "normal"; jobs are forgotten 20 s after their end; memory is watched, two cores a node.
CONFIGURATION = """
ClusterName=janus
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=20
KillWait=2
SlurmctldTimeout=10
SlurmdTimeout=300
MessageTimeout=5
{accounting}
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[4]}] CPUs=2 CoresPerSocket=2 \
RealMemory=4000 State=UNKNOWN
PartitionName=normal Nodes=n[1-4] Default=YES PriorityTier=1 DefMemPerNode=3000 State=UP
PartitionName=urgent Nodes=n[1-4] PriorityTier=10 DefMemPerNode=3000 State=UP
"""


def why_not(programs: Sequence[str] = PROGRAMS) -> str:
    """Why no cluster of these programs can be started here, "" when one can."""
    if os.geteuid() != 0:
        return "slurmd starts jobs only as root"
    missing = [program for program in programs if shutil.which(program) is None]
    return f"no {', '.join(missing)} on the path: tests/slurm/run.sh installs them" if missing else ""


class Cluster:
    """The daemons of one cluster and the folder they work in. SLURM_CONF of this process names it while it lives.

    A cluster with accounting is in ``slurm_accounting``.
    """

    accounting = "AccountingStorageType=accounting_storage/none"

    def __init__(self) -> None:
        self._outer = os.environ.get("SLURM_CONF")
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons and wait until every node is idle. Raises RuntimeError with their last words."""
        self.folder.chmod(0o755)
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(len(NODES) + 1)
        text = CONFIGURATION.format(folder=self.folder, host=host, ports=ports, accounting=self.accounting)
        (self.folder / "slurm.conf").write_text(text)
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        munge = self.folder / "munge"
        self.start_daemon(
            "munged", "munged", "--foreground", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.wait_for("munge's socket", (munge / "socket").exists)
        self.start_services()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for("four idle nodes", self.is_idle)

    def start_services(self) -> None:
        """What the controller needs beside munge: nothing here."""

    def start_controller(self) -> None:
        """Start slurmctld, with the state it left if it ran before, and wait until it knows the nodes that are up."""
        self.start_daemon("slurmctld", "slurmctld", "-D")
        self.wait_for("an answer of slurmctld", lambda: slurm("scontrol", "ping", check=False).returncode == 0)
        if any(node in self.daemons for node in NODES):
            self.wait_for("the nodes to register", lambda: "unk" not in self.states())

    def stop_controller(self) -> None:
        self.stop_daemon("slurmctld")

    def start_node(self, node: str) -> None:
        self.start_daemon(node, "slurmd", "-D", "-N", node)

    def fail_node(self, node: str) -> None:
        """Kill a node's slurmd as a power failure would, its jobs' processes too, and have the node marked down."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        of_jobs = [process for process in self.processes() if _variable(process, "SLURMD_NODENAME") == node]
        keepers = {parent for process in of_jobs if "slurmstepd" in _command(parent := _parent(process))}
        for process in [*keepers, *of_jobs]:  # those first that would report the death of the others
            _kill(process)
        slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def states(self) -> list[str]:
        """State of every node as sinfo shortens it: idle, alloc, comp, down, unk."""
        words = ["sinfo", "--noheader", "--Node", "--partition=normal", "--format=%t"]
        return slurm(*words, check=False).stdout.split()

    def is_idle(self) -> bool:
        """Whether every node is idle."""
        return self.states() == ["idle"] * len(NODES)

    def clear(self) -> None:
        """End every job, bring failed nodes back and wait until all is idle."""
        slurm("scancel", "--user=root", check=False)
        for node in NODES:
            if node not in self.daemons:
                self.start_node(node)
        self.wait_for("an idle cluster", self.is_idle, patience_s=120)  # a lost word is asked for once a minute

    def stop(self) -> None:
        """End jobs and daemons and remove the folder; no process of the cluster is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            slurm("scancel", "--user=root", check=False)
        for name in reversed(list(self.daemons)):
            self.stop_daemon(name)
        for process in self.processes():
            _kill(process)
        os.environ.pop("SLURM_CONF", None)
        os.environ |= {} if self._outer is None else {"SLURM_CONF": self._outer}
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> Iterator[int]:
        """Processes of this cluster other than its daemons: those that were started with its configuration."""
        own = {process.pid for process in self.daemons.values()} | {os.getpid()}
        for entry in Path("/proc").glob("[0-9]*"):
            if int(entry.name) not in own and _variable(int(entry.name), "SLURM_CONF") == f"{self.folder}/slurm.conf":
                yield int(entry.name)

    def wait_for(self, what: str, happened: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Wait until it happened. Raises RuntimeError with the last words of the daemons when it does not."""
        deadline = time.monotonic() + patience_s
        while not happened():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {patience_s:g} s for {what} in vain. {self._last_words()}")
            time.sleep(0.1)

    def start_daemon(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as stream:
            self.daemons[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )

    def stop_daemon(self, name: str) -> None:
        process = self.daemons.pop(name)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        outputs = [*sorted(self.folder.glob("*.out")), self.folder / "munge" / "log"]
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-500:]}" for path in outputs if path.exists())


def slurm(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs."""
    return subprocess.run(words, capture_output=True, text=True, check=check, timeout=60)


def free_ports(number: int, first: int = 21000) -> list[int]:
    """So many ports in a row that nobody listens on."""
    for start in range(first, 32000, number):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(start, start + number):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(start, start + number))
    raise RuntimeError(f"no free ports between {first} and 32000")


def _variable(process: int, name: str) -> str:
    """A variable that a process was started with, "" where there is none or the process has gone."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            if entry.startswith(f"{name}=".encode()):
                return entry.partition(b"=")[2].decode(errors="replace")
    return ""


def _command(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _parent(process: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
