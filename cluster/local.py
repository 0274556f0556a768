"""The target `local`: the job as processes of this machine, in the foreground. Owns their output; imports no package it starts."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from uniaudio.cluster.job import OUTPUT, Job, Record, create_folder, write_record
from uniaudio.cluster.target import Status, read_output
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.errors import UserError


def render(job: Job, cluster: ClusterConfig) -> str:
    """The command as one can paste it into a shell."""
    variables = [f"{name}={value}" for name, value in cluster.environment.variables.items()]
    return shlex.join([*(["env", *variables] if variables else []), *job.argv(cluster.environment.python or sys.executable)])


def run(job: Job, cluster: ClusterConfig) -> int:
    """Runs the job and returns its exit code. Its output goes to the terminal and to the job's folder."""
    create_folder(job)
    output = job.folder / OUTPUT
    environment = {**os.environ, **cluster.environment.variables}
    command = job.argv(cluster.environment.python or sys.executable)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    write_record(job, kind="local", id=str(process.pid), output=str(output))
    try:
        with output.open("ab") as file:
            copy_output(process, [file.fileno(), sys.stdout.fileno()])
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def status(record: Record) -> Status:
    """Whether its process still runs; the exit code went to whoever started it."""
    alive = Path(f"/proc/{record.id}/cmdline")
    if alive.exists() and str(Path(record.output).parent).encode() in alive.read_bytes():
        return Status("running", f"process {record.id}")
    return Status("unknown", "the process has ended; its exit code went to the terminal that started it")


def output(record: Record, start: int) -> bytes:
    """The job's output from byte `start`."""
    return read_output(record.output, start)


def cancel(record: Record) -> None:
    """Asks the process to save and end."""
    if status(record).state != "running":
        raise UserError("the job's process has ended", seen=record.name)
    os.kill(int(record.id), signal.SIGTERM)


def copy_output(process: "subprocess.Popen[bytes]", targets: Sequence[int]) -> None:
    """Copies the process's output to every file descriptor until it closes."""
    assert process.stdout is not None
    while block := os.read(process.stdout.fileno(), 65536):
        for target in targets:
            os.write(target, block)
