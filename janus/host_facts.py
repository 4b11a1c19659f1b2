"""What a host tells about itself: kernel, clocks, drivers, GPUs, modules, settings in the environment, its job.

Standard library only and fast: job scripts call it before and after a measurement. It owns reading; it does not own
which of these facts a result must have (``scaling_studies.provenance``).

A fact that cannot exist here is a text that starts with ``NOT_APPLICABLE`` and gives the reason. Nothing is guessed.
Sources: Linux cpufreq and /proc (kernel documentation, admin-guide/pm/cpufreq), manuals of Slurm, PBS Professional,
Flux and LSF for their variables, of nvidia-smi and rocm-smi for their options.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOT_APPLICABLE = "not applicable: "
TOOL_TIMEOUT_S = 20.0  # assumed: a driver tool that takes longer hangs
CPU_FOLDER, PROC = Path("/sys/devices/system/cpu"), Path("/proc")
AMD_DRIVER = Path("/sys/module/amdgpu/version")
# Settings that change a measurement, by the start of their names.
SETTINGS = (
    "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "NUMBA_NUM_", "MALLOC_", "LD_PRELOAD", "MPICH_", "MPIR_", "OMPI_MCA_",
    "I_MPI_", "PALS_CPU_", "FI_", "UCX_", "HCOLL_", "NCCL_", "RCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_", "HIP_",
    "ROCR_", "SLURM_CPU_BIND", "SLURM_CPUS_PER_TASK", "SLURM_DISTRIBUTION", "SLURM_NTASKS_PER_NODE", "SLURM_HINT",
)  # fmt: skip
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|_KEY$", re.IGNORECASE)
GPU_QUERY = (
    "index", "uuid", "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "power.limit", "persistence_mode", "mig.mode.current",
)  # fmt: skip  # one field that a driver does not know makes nvidia-smi print nothing: only old ones


def not_applicable(reason: str) -> str:
    """The words for a fact that cannot exist here."""
    return NOT_APPLICABLE + reason


def is_not_applicable(value: Any) -> bool:
    """Whether a fact is declared not to exist, with a reason."""
    return isinstance(value, str) and value.startswith(NOT_APPLICABLE) and len(value) > len(NOT_APPLICABLE)


def boot_id(proc: Path = PROC) -> str:
    """Identity of this boot of this host: monotonic times compare only within one."""
    return _text(proc / "sys/kernel/random/boot_id") or not_applicable("this kernel gives no boot id")


def operating_system() -> dict[str, str]:
    """Kernel with its version, distribution and architecture."""
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        distribution = platform.system()
    return {"kernel": f"{platform.system()} {platform.release()}", "version": platform.version(),
            "distribution": distribution, "architecture": platform.machine()}  # fmt: skip


def cpu_name(proc: Path = PROC) -> str:
    """Name of the processor as the kernel gives it, else its architecture."""
    found = re.search(r"^(?:model name|Processor)\s*:\s*(.+)$", _text(proc / "cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cpu_clocks(folder: Path = CPU_FOLDER, proc: Path = PROC) -> dict[str, Any] | str:
    """Governor and clocks of the cores [MHz], from cpufreq; without it the present clocks of /proc/cpuinfo."""
    cores = sorted(folder.glob("cpu[0-9]*/cpufreq"))
    if cores:
        facts: dict[str, Any] = {"source": "cpufreq", "cores": len(cores)}
        facts["governors"] = sorted({_text(core / "scaling_governor") for core in cores} - {""})
        facts["drivers"] = sorted({_text(core / "scaling_driver") for core in cores} - {""})
        for name in ("scaling_min", "scaling_max", "scaling_cur"):
            mhz = [int(text) / 1000 for core in cores if (text := _text(core / f"{name}_freq")).isdigit()]
            if mhz:
                facts[f"{name}_mhz"] = [min(mhz), max(mhz)]
        return facts
    found = [float(text) for text in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(proc / "cpuinfo"), re.MULTILINE)]
    if found:
        return {"source": "/proc/cpuinfo, without cpufreq", "cores": len(found), "mhz": [min(found), max(found)]}
    return not_applicable("this kernel shows no clocks, neither by cpufreq nor in /proc/cpuinfo")


def usable_cores() -> str:
    """Cores this process may use, as ranges: "0-3,8"."""
    if not hasattr(os, "sched_getaffinity"):
        return not_applicable("this system does not tell which cores a process may use")
    cores = sorted(os.sched_getaffinity(0))
    starts = [core for core in cores if core - 1 not in cores]
    ends = [core for core in cores if core + 1 not in cores]
    return ",".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def process_age_s() -> float:
    """Seconds since this process was started, by a clock that nobody can set back (Linux; elsewhere wall clock)."""
    fields = _text(Path("/proc/self/stat")).rpartition(")")[2].split()
    if fields and hasattr(time, "CLOCK_BOOTTIME"):
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), after "pid (name)"
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    import psutil

    return time.time() - psutil.Process().create_time()


def load_average() -> float | str:
    """Processes that wanted a core, mean of the last minute: other people's work on this host shows here."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else not_applicable("this system has no load average")


def gpus() -> list[dict[str, str]]:
    """Each GPU as its driver's tool describes it: names, clocks, power limit, driver. Empty where there is no tool."""
    if nvidia := shutil.which("nvidia-smi"):
        words = [nvidia, f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader"]
        lines = [line.split(", ") for line in run_tool(words).splitlines()]
        return [dict(zip(GPU_QUERY, line, strict=True)) for line in lines if len(line) == len(GPU_QUERY)]
    if rocm := shutil.which("rocm-smi"):
        words = [rocm, "--showproductname", "--showdriverversion", "--showclocks", "--showmaxpower", "--json"]
        try:
            cards = json.loads(run_tool(words) or "{}")
        except ValueError:
            return []
        return [{"index": name, **card} for name, card in cards.items() if isinstance(card, dict)]
    return []


def gpu_driver(devices: Sequence[Mapping[str, str]] = (), proc: Path = PROC) -> str:
    """Version of the GPU driver, from the GPUs' own description or the kernel. devices: see ``gpus``."""
    for device in devices:
        for name in ("driver_version", "Driver version"):
            if device.get(name):
                return device[name]
    if kernel_module := _text(proc / "driver/nvidia/version") or _text(AMD_DRIVER):
        return kernel_module.splitlines()[0]
    return not_applicable("no GPU driver on this host")


def modules(environment: Mapping[str, str] = os.environ) -> list[str] | str:
    """Environment modules that are loaded, in order."""
    if "LOADEDMODULES" in environment:
        return [name for name in environment["LOADEDMODULES"].split(":") if name]
    if "MODULESHOME" in environment or "LMOD_CMD" in environment:
        return []
    return not_applicable("this host has no environment modules")


def settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables of the environment that change a measurement: threads, binding, MPI, NCCL, gloo, devices."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(SETTINGS) and not SECRET.search(name)
    }


def job_of(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """scheduler, job id, restarts and node list of the job this process belongs to, as the scheduler writes them."""
    if job := environment.get("SLURM_JOB_ID"):
        array = environment.get("SLURM_ARRAY_JOB_ID")
        return _job("slurm", f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}" if array else job,
                    environment.get("SLURM_JOB_NODELIST"), environment.get("SLURM_RESTART_COUNT"))  # fmt: skip
    if job := environment.get("PBS_JOBID"):
        lines = _text(Path(environment.get("PBS_NODEFILE", ""))).splitlines() if "PBS_NODEFILE" in environment else []
        return _job("pbs", job, ",".join(dict.fromkeys(lines)))
    if job := environment.get("LSB_JOBID"):
        index = environment.get("LSB_JOBINDEX", "0")
        return _job("lsf", f"{job}[{index}]" if index != "0" else job,
                    ",".join(dict.fromkeys(environment.get("LSB_HOSTS", "").split())))  # fmt: skip
    if "FLUX_URI" in environment:
        job = environment.get("FLUX_JOB_ID") or run_tool(["flux", "getattr", "jobid"]).strip()
        return _job("flux", job, run_tool(["flux", "getattr", "hostlist"]).strip())
    return _job("none", not_applicable("no scheduler runs this job"), platform.node())


def _job(scheduler: str, job_id: str, nodes: str | None, restarts: str | None = None) -> dict[str, Any]:
    return {"scheduler": scheduler, "job_id": job_id, "node_list": nodes or platform.node(),
            "restarts": int(restarts or 0)}  # fmt: skip


def run_tool(words: Sequence[str]) -> str:
    """What a tool prints; empty where it is missing, fails or hangs."""
    try:
        return subprocess.run(
            list(words), capture_output=True, text=True, check=True, timeout=TOOL_TIMEOUT_S, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
