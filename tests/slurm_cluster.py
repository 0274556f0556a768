"""A real Slurm on this machine, as root: one controller and several node daemons, all state below one folder.

Needs the Debian packages slurmctld, slurmd, slurm-client and munge. Names of the nodes do not resolve: a job's `slurm.master_address` is
127.0.0.1. Accounting is off, so `scontrol` alone knows of jobs that have ended.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

PATIENCE = 6
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
KillWait=20
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,default_queue_depth=10
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"Slurm is not installed: no {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd must run as root"


class SlurmCluster:
    """`environment` makes Slurm's commands talk to it."""

    def __init__(self, folder: Path, *, nodes: int = 2, cpus: int = 2) -> None:
        self.folder, self.nodes = folder, [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        (folder / "state").mkdir(parents=True)
        folder.chmod(0o755)
        ports = _free_ports(nodes + 1)
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=2000 State=UNKNOWN"
            for name, port in zip(self.nodes, ports)
        ]
        text = _CONFIG.format(folder=folder, host=host, port=ports[-1], nodes="\n".join(lines), count=nodes)
        (folder / "slurm.conf").write_text(text)

    def start(self) -> None:
        """Returns once every node is idle."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        names = {
            "key-file": key.name,
            "socket": "munge.sock",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        self._run(["munged", "--force", *(f"--{option}={self.folder / name}" for option, name in names.items())])
        self._run(["slurmctld", "-c", "-f", str(self.folder / "slurm.conf")])
        for name in self.nodes:
            self.start_node(name)
        self.wait_for(lambda: self.run("sinfo", "--noheader", "--format=%T").split() == ["idle"], seconds=60)

    def start_node(self, name: str) -> None:
        """Starts the daemon of one node."""
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        self._run(["slurmd", "-N", name, "-f", str(self.folder / "slurm.conf")])

    def kill_node(self, name: str) -> None:
        """Kills the daemon of one node and everything below it, as when its power fails."""
        daemon = psutil.Process(int((self.folder / f"slurmd.{name}.pid").read_text()))
        tasks = [process for process in psutil.process_iter() if self._runs_on(process, name)]
        steps = {parent for process in tasks if (parent := process.parent()) and parent.name() == "slurmstepd"}
        for process in [daemon, *steps, *tasks]:
            process.kill()

    def kill_training(self, node: str) -> None:
        """Kills one process of a training on a node, as the kernel does where memory runs out."""
        command = ["-m", "uniaudio", "train"]
        next(process for process in psutil.process_iter() if self._runs_on(process, node) and process.cmdline()[1:4] == command).kill()

    def _runs_on(self, process: psutil.Process, node: str) -> bool:
        """Whether it belongs to a job of this cluster on that node."""
        try:
            variables = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False
        return variables.get("SLURMD_NODENAME") == node and variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]

    def stop(self) -> None:
        """Cancels every job, then ends the daemons by the process ids that they wrote down."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, check=False, capture_output=True)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.run("squeue", "--noheader").strip():
            time.sleep(0.5)
        for path in [*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid", self.folder / "munged.pid"]:
            _end(path)

    def run(self, *command: str) -> str:
        """Output of a command of Slurm."""
        return self._run(list(command))

    def wait_for(self, what, *, seconds: float) -> None:
        """Until `what()` is true: `seconds` on a machine of its own, a few times that where others work too."""
        deadline = time.monotonic() + PATIENCE * seconds
        while not what():
            assert time.monotonic() < deadline, (
                "waited in vain\n" + self.run("squeue") + (self.folder / "slurmctld.log").read_text()[-3000:]
            )
            time.sleep(0.2)

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


def _end(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return
