"""The target `local`: the job as processes of this machine. Owns the command line it runs; imports no package it starts."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uniaudio.configs.cluster import ClusterConfig
from uniaudio.errors import UserError

# Names that look like secrets: they come from the caller's environment and are never written to a config or a log.
_SECRET_WORDS = ("token", "secret", "password", "key")


@dataclass(frozen=True)
class Job:
    """A command line of this project: `uniaudio train RUN overrides...` or `uniaudio tokenize FARM overrides...`."""

    command: str
    config: str
    overrides: tuple[str, ...] = ()

    @property
    def argv(self) -> list[str]:
        """The words to execute: no shell in between."""
        return [sys.executable, "-m", "uniaudio", self.command, self.config, *self.overrides]


def check_environment(environment: dict[str, str]) -> None:
    """Refuses secrets in a cluster config."""
    for name in environment:
        if any(word in name.lower() for word in _SECRET_WORDS):
            raise UserError("cluster.environment holds what looks like a secret", seen=name, remedy="export it in the shell that submits")


def render(job: Job) -> str:
    """The command as one can paste it into a shell."""
    return shlex.join(job.argv)


def run(job: Job, cluster: ClusterConfig) -> int:
    """Runs the job in the foreground; returns its exit code. Its output goes to the terminal and to a file of log_dir."""
    log = Path(cluster.log_dir) / f"{job.command}-{Path(job.config).stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(job.argv, env={**os.environ, **cluster.environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        with log.open("ab") as file:
            copy_output(process, [file.fileno(), sys.stdout.fileno()])
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def copy_output(process: "subprocess.Popen[bytes]", targets: Sequence[int]) -> None:
    """Copies the process's output to every file descriptor until it closes."""
    assert process.stdout is not None
    while block := os.read(process.stdout.fileno(), 65536):
        for target in targets:
            os.write(target, block)
