"""What a host tells about itself, read from made-up kernels' files and stand-ins for the tools of drivers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from janus import host_facts
from janus.host_facts import is_not_applicable


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def stand_in(folder: Path, name: str, text: str) -> None:
    """An executable that prints a text, and fails without arguments."""
    (folder / f"{name}.txt").write_text(text)
    path = folder / name
    path.write_text(f"#!/bin/sh\n[ $# -gt 0 ] || exit 1\ncat {folder}/{name}.txt\n")
    path.chmod(0o755)


def test_clocks_come_from_cpufreq_where_it_is(tmp_path):
    cores = {}
    for core, mhz in enumerate((1500, 2600)):
        base = f"cpu{core}/cpufreq"
        cores |= {f"{base}/scaling_governor": "powersave\n", f"{base}/scaling_driver": "acpi-cpufreq\n",
                  f"{base}/scaling_min_freq": "1500000\n", f"{base}/scaling_max_freq": "3400000\n",
                  f"{base}/scaling_cur_freq": f"{mhz}000\n"}  # fmt: skip
    assert host_facts.cpu_clocks(write_tree(tmp_path, cores), tmp_path) == {
        "source": "cpufreq", "cores": 2, "governors": ["powersave"], "drivers": ["acpi-cpufreq"],
        "scaling_min_mhz": [1500, 1500], "scaling_max_mhz": [3400, 3400], "scaling_cur_mhz": [1500, 2600],
    }  # fmt: skip


def test_clocks_come_from_cpuinfo_else_are_not_applicable_by_reason(tmp_path):
    proc = write_tree(tmp_path / "proc", {"cpuinfo": "cpu MHz\t\t: 2000.5\ncpu MHz\t\t: 2400.0\nmodel name\t: X 9\n"})
    clocks = host_facts.cpu_clocks(tmp_path / "none", proc)
    assert isinstance(clocks, dict)
    assert clocks["mhz"] == [2000.5, 2400.0]
    assert host_facts.cpu_name(proc) == "X 9"
    assert is_not_applicable(host_facts.cpu_clocks(tmp_path / "none", tmp_path / "none"))


def test_no_gpu_and_no_driver_is_told_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host_facts, "AMD_DRIVER", tmp_path / "none")
    assert host_facts.gpus() == []
    assert is_not_applicable(host_facts.gpu_driver((), tmp_path))


def test_nvidia_gpus_tell_clocks_power_and_driver(tmp_path, monkeypatch):
    # form: nvidia-smi --query-gpu=... --format=csv,noheader of driver 550 on a host with two H100
    clocks = "1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz"
    rest = f"NVIDIA H100 80GB HBM3, 550.54.15, P0, {clocks}, 700.00 W, Enabled, Disabled"
    stand_in(tmp_path, "nvidia-smi", f"0, GPU-a, {rest}\n1, GPU-b, {rest}\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = host_facts.gpus()
    assert [gpu["index"] for gpu in found] == ["0", "1"]
    assert (found[0]["clocks.sm"], found[0]["power.limit"]) == ("1980 MHz", "700.00 W")
    assert host_facts.gpu_driver(found) == "550.54.15"


def test_an_answer_of_another_form_is_no_gpu(tmp_path, monkeypatch):
    stand_in(tmp_path, "nvidia-smi", 'Field "mig.mode.current" is not a valid field to query.\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert host_facts.gpus() == []


def test_amd_gpus_are_told_card_by_card(tmp_path, monkeypatch):
    # form: rocm-smi --json of ROCm 6, shortened
    cards = {"card0": {"Card series": "AMD Instinct MI250X", "sclk clock speed:": "(1700Mhz)"},
             "system": {"Driver version": "6.3.6"}}  # fmt: skip
    stand_in(tmp_path, "rocm-smi", json.dumps(cards))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = host_facts.gpus()
    assert found[0] == {"index": "card0", **cards["card0"]}
    assert host_facts.gpu_driver(found) == "6.3.6"


def test_a_tool_that_fails_says_nothing():
    assert host_facts.run_tool(["false"]) == ""
    assert host_facts.run_tool(["/no/such/tool"]) == ""


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}, ("slurm", "7", "n[1-2]", 0)),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_NODELIST": "n1",
             "SLURM_RESTART_COUNT": "1"},
            ("slurm", "7_2", "n1", 1),
        ),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "0", "LSB_HOSTS": "a a b b"}, ("lsf", "5", "a,b", 0)),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "3", "LSB_HOSTS": "a"}, ("lsf", "5[3]", "a", 0)),
    ],
)  # fmt: skip
def test_the_job_is_known_by_its_schedulers_variables(environment, wanted):
    job = host_facts.job_of(environment)
    assert (job["scheduler"], job["job_id"], job["node_list"], job["restarts"]) == wanted


def test_pbs_nodes_come_from_its_file_each_once(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("x1\nx1\nx2\nx2\n")
    job = host_facts.job_of({"PBS_JOBID": "12.server", "PBS_NODEFILE": str(nodes)})
    assert (job["scheduler"], job["job_id"], job["node_list"]) == ("pbs", "12.server", "x1,x2")


def test_flux_is_asked_for_what_it_does_not_export(tmp_path, monkeypatch):
    (tmp_path / "flux").write_text('#!/bin/sh\n[ "$2" = jobid ] && echo f23xyz || echo "corona[1-2]"\n')
    (tmp_path / "flux").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    job = host_facts.job_of({"FLUX_URI": "local:///x"})
    assert (job["scheduler"], job["job_id"], job["node_list"]) == ("flux", "f23xyz", "corona[1-2]")


def test_without_a_scheduler_there_is_no_job_id_by_name():
    job = host_facts.job_of({})
    assert job["scheduler"] == "none"
    assert is_not_applicable(job["job_id"])


def test_modules_are_those_loaded():
    assert host_facts.modules({"LOADEDMODULES": "gcc/13:cray-mpich/8"}) == ["gcc/13", "cray-mpich/8"]
    assert host_facts.modules({"LMOD_CMD": "/opt/lmod"}) == []
    assert is_not_applicable(host_facts.modules({}))


def test_settings_hold_what_changes_a_measurement_and_no_secret():
    found = host_facts.settings({"OMP_NUM_THREADS": "1", "NCCL_DEBUG": "INFO", "HOME": "/root", "OMPI_MCA_btl": "tcp",
                                 "TORCH_TOKEN": "x", "CUDA_API_KEY": "y"})  # fmt: skip
    assert found == {"NCCL_DEBUG": "INFO", "OMPI_MCA_btl": "tcp", "OMP_NUM_THREADS": "1"}


def test_cores_are_written_as_ranges(monkeypatch):
    monkeypatch.setattr(host_facts.os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 7, 8})
    assert host_facts.usable_cores() == "0-2,5,7-8"


def test_a_process_grows_older():
    first = host_facts.process_age_s()
    assert 0 < first <= host_facts.process_age_s()


def test_reading_a_host_never_imports_torch():
    code = "import sys, janus.host_facts, janus.source_digest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
