"""Namespaces of the shaped network: one per host, each with a TUN device that the switch serves.

Nothing outlives the process that made it, however that ends: namespaces are not named, so each lasts as long as the
processes in it, and all processes are told by the kernel to end with the one that started them. It does not own how
packets travel (``switch.py``) nor what runs on the hosts.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from shaped.lifetime import end_with_parent
from shaped.shape import STATISTICS, Shape

DEVICE = "net0"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
RESEND_AFTER = "5s"  # nothing is lost, but a queue can be longer than the 200 ms after which TCP would think so
# Windows wide enough for every path and for a rank that wakes late, narrow enough that what a packet acknowledges is
# never so old when it arrives that the kernel discards it (RFC 5961: older than the widest window); no idle connection
# starts slowly again.
KERNEL_SETTINGS = {
    "tcp_congestion_control": "reno", "tcp_slow_start_after_idle": "0", "tcp_no_metrics_save": "1",
    "tcp_wmem": "4096 65536 131072", "tcp_rmem": "4096 1048576 4194304",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """A sentence that says why this host or user can have no shaped network; None where it can."""
    if not sys.platform.startswith("linux"):
        return f"the shaped network needs Linux, this is {sys.platform}: run it on a Linux host as root"
    if os.geteuid() != 0:
        return "the shaped network needs root for namespaces and TUN devices: run it as root"
    missing = [name for name in ("ip", "unshare", "nsenter", "setpriv", "chrt", "mount") if shutil.which(name) is None]
    if missing:
        return f"the shaped network needs {' and '.join(missing)}: install iproute2 and util-linux"
    if not Path("/dev/net/tun").exists():
        return "the shaped network needs /dev/net/tun: load the kernel's module tun"
    if subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, check=False).returncode:
        return "the kernel refuses new network namespaces (a container without CAP_SYS_ADMIN?): run it on the host"
    if subprocess.run(["chrt", "--fifo", "2", "true"], capture_output=True, check=False).returncode:
        return "the kernel refuses real-time scheduling (a container without CAP_SYS_NICE?): run it on the host"
    return None


class ShapedNetwork:
    """A context: inside it the hosts exist and reach each other at ``shape.address(host)``."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._holders: list[subprocess.Popen[str]] = []
        self._devices: list[int] = []
        self._switch: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="shaped_network_")
        self._statistics_file = os.memfd_create("shaped_network")
        os.ftruncate(self._statistics_file, 8 * len(STATISTICS))
        self._statistics = np.frombuffer(mmap.mmap(self._statistics_file, 8 * len(STATISTICS)), dtype=np.float64)

    def __enter__(self) -> Self:
        try:
            hosts = range(self.shape.num_hosts)
            names = "".join(f"{self.shape.address(host)} {self.shape.host_name(host)}\n" for host in hosts)
            self.names_file.write_text("127.0.0.1 localhost\n" + names)
            for host in hosts:
                self._holders.append(self._start_holder(host))
                self._devices.append(self._open_device(host))
                self._configure(host)
            self._switch = self._start_switch()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """For files that last as long as the network."""
        return Path(self._folder.name)

    @property
    def names_file(self) -> Path:
        return self.folder / "hosts"

    def statistics(self) -> dict[str, float]:
        """Of the switch so far, by the names in ``STATISTICS``, and the TCP segments that hosts have sent again."""
        resent = sum(_segments_sent_again(holder.pid) for holder in self._holders)
        return {**dict(zip(STATISTICS, self._statistics.tolist(), strict=True)), "resent": resent}

    def words_on(self, host: int) -> list[str]:
        """The words that put a command on a host."""
        return ["nsenter", "--target", str(self._holders[host].pid), "--net", "--uts", "--mount", "--"]

    def start(
        self, host: int, words: Sequence[str], environment: Mapping[str, str], output: int
    ) -> subprocess.Popen[str]:
        """Start a command on a host, in a session of its own so that ``launch.stop`` reaches its children too.

        output: where its standard output goes, as subprocess has it.
        """
        return subprocess.Popen(
            [*self.words_on(host), *words], env={**os.environ, **environment}, text=True, start_new_session=True,
            preexec_fn=end_with_parent, stdout=output,
        )  # fmt: skip

    def residents(self) -> list[int]:
        """Processes on the hosts, but for those that hold the namespaces."""
        namespaces = {_network_of(holder.pid) for holder in self._holders} - {None}
        holders = {holder.pid for holder in self._holders}
        processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in processes if pid not in holders and _network_of(pid) in namespaces]

    def close(self) -> None:
        """End whatever runs on the hosts, the switch and the hosts."""
        for pid in self.residents():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in [*([self._switch] if self._switch else []), *self._holders]:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        for device in self._devices:
            os.close(device)
        self._switch, self._holders, self._devices = None, [], []
        self._folder.cleanup()

    def _start_holder(self, host: int) -> subprocess.Popen[str]:
        """The process that keeps a host's namespaces: its network, its name, its /sys and /etc/hosts."""
        prepare = (
            f"mount -t sysfs none /sys && mount --bind {self.names_file} /etc/hosts && "
            f"hostname {self.shape.host_name(host)} && ip link set lo up && echo ready && exec cat"
        )
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", prepare], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        _expect_ready(holder, f"host {host}")
        return holder

    def _open_device(self, host: int) -> int:
        def make() -> int:
            device = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
            return device

        return _inside(f"/proc/{self._holders[host].pid}/ns/net", make)

    def _configure(self, host: int) -> None:
        settings = " && ".join(f"echo {value} > /proc/sys/net/ipv4/{name}" for name, value in KERNEL_SETTINGS.items())
        commands = (
            f"ip link set {DEVICE} mtu {self.shape.packet_bytes} txqueuelen 10000 up && "
            f"ip addr add {self.shape.address(host)}/24 dev {DEVICE} && {settings} && "
            f"ip route change 10.77.0.0/24 dev {DEVICE} src {self.shape.address(host)} rto_min {RESEND_AFTER}"
        )
        subprocess.run([*self.words_on(host), "sh", "-c", commands], check=True)

    def _start_switch(self) -> subprocess.Popen[str]:
        files = [*self._devices, self._statistics_file]
        switch = subprocess.Popen(
            [sys.executable, "-m", "shaped.switch", json.dumps(asdict(self.shape)), *map(str, files)],
            cwd=Path(__file__).parents[1], pass_fds=files, stdout=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=end_with_parent,
        )  # fmt: skip
        _expect_ready(switch, "the switch")
        return switch


def _segments_sent_again(pid: int) -> int:
    """TCP's RetransSegs in the network namespace of a process."""
    lines = Path(f"/proc/{pid}/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


def _network_of(pid: int) -> str | None:
    """The network namespace of a process; None where it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


def _inside(namespace: str, make: Callable[[], int]) -> int:
    """Call make in a thread that has joined a namespace: the other threads stay where they are."""
    made: list[int] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            descriptor = os.open(namespace, os.O_RDONLY)
            if _libc.setns(descriptor, 0) != 0:
                raise OSError(ctypes.get_errno(), f"setns to {namespace}")
            os.close(descriptor)
            made.append(make())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _expect_ready(process: subprocess.Popen[str], name: str) -> None:
    """Wait until the process says that it is ready."""
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"{name} of the shaped network did not start (exit code {process.wait()})")
