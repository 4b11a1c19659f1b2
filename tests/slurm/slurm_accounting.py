"""The same cluster with accounting: mariadbd and slurmdbd in its folder. It owns starting these two."""

from __future__ import annotations

import socket

from slurm_cluster import PROGRAMS, Cluster, free_ports, slurm

ACCOUNTING_PROGRAMS = (*PROGRAMS, "slurmdbd", "mariadbd", "sacct", "sacctmgr")
CONFIGURATION = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage_port}
StorageUser=root
StorageLoc=accounting
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""


class AccountingCluster(Cluster):
    """A cluster whose ended jobs sacct remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.port, self.storage_port = free_ports(2, first=18000)
        self.accounting = (
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
            f"AccountingStoragePort={self.port}\nAccountingStoragePass={self.folder}/munge/socket"
        )

    def start_services(self) -> None:
        """Start the data base and slurmdbd, and make the cluster known to them."""
        data = self.folder / "data"
        data.mkdir()
        self.start_daemon(
            "mariadbd", "mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-grant-tables",
            f"--socket={data}/socket", f"--port={self.storage_port}", "--bind-address=127.0.0.1",
            f"--pid-file={data}/pid",
        )  # fmt: skip
        self.wait_for("the data base", (data / "socket").exists)
        path = self.folder / "slurmdbd.conf"
        host = socket.gethostname().partition(".")[0]
        path.write_text(
            CONFIGURATION.format(folder=self.folder, host=host, port=self.port, storage_port=self.storage_port)
        )
        path.chmod(0o600)
        self.start_data_base_daemon()
        words = ("sacctmgr", "--immediate", "add", "cluster", "janus")
        self.wait_for("slurmdbd", lambda: slurm(*words, check=False).returncode == 0)

    def start_data_base_daemon(self) -> None:
        self.start_daemon("slurmdbd", "slurmdbd", "-D")
