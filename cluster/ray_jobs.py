"""The target `ray`: a job of an existing Ray cluster, through its Jobs API. Owns the entrypoint and what travels with it.

The token is read by Ray itself from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (with RAY_AUTH_MODE=token) of the calling shell; it is on no
command line and in no file of the job.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from uniaudio.cluster.job import Job, Record, create_folder, write_record
from uniaudio.cluster.target import State, Status
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config
from uniaudio.errors import UserError

_STATES: dict[str, State] = {"PENDING": "queued", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "cancelled"}
_CONFIG = "UNIAUDIO_JOB_CONFIG"
_IN_A_FOLDER = f'cd "$(mktemp -d)" && printf %s "${_CONFIG}" > config.yaml'


def request(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    """Arguments of Ray's submit_job: the resolved config travels as a variable, and is written into a temporary folder of the entrypoint.

    Not as Ray's working_dir: a node's agent that unpacks that anew (one that was started again, or a second node of the host) removes the
    folder below the processes that run in it.
    A farm spreads over the cluster by its own actors; a training asks for the node's GPUs and CPUs for its one entrypoint.
    """
    resources = cluster.resources
    words = [cluster.environment.python or "python", "-m", "uniaudio", job.command, job.config_file.name]
    environment: dict[str, Any] = {"env_vars": {**cluster.environment.variables, _CONFIG: dump_config(job.config)}}
    if cluster.ray.pip:
        environment["pip"] = list(cluster.ray.pip)
    content: dict[str, Any] = {
        "submission_id": job.name,
        "runtime_env": environment,
        "metadata": dict(cluster.ray.metadata),
    }
    if isinstance(job.config, FarmConfig):
        words.append("ray_address=auto")
    else:
        if resources.gpus_per_node:
            content["entrypoint_num_gpus"] = resources.gpus_per_node
        if resources.cpus_per_process:
            content["entrypoint_num_cpus"] = resources.cpus_per_process * resources.ranks_per_node
    return {"entrypoint": f"{_IN_A_FOLDER} && exec {shlex.join(words)}", **content}


def submit(job: Job, cluster: ClusterConfig) -> Record:
    """Makes the job's folder and submits; UserError where the cluster cannot be reached or refuses."""
    with _faults(cluster.ray.address):
        client = JobSubmissionClient(cluster.ray.address)
        create_folder(job)
        id = client.submit_job(**request(job, cluster))
    return write_record(job, kind="ray", id=id, address=cluster.ray.address, output=f"uniaudio jobs logs {job.name}")


def status(record: Record) -> Status:
    """What the cluster says."""
    with _faults(record.address):
        info = JobSubmissionClient(record.address).get_job_info(record.id)
    word = str(getattr(info.status, "value", info.status))
    return Status(_STATES.get(word, "unknown"), f"{word}: {info.message or ''}".rstrip(": "))


def output(record: Record, start: int) -> bytes:
    """The job's output from byte `start`."""
    with _faults(record.address):
        return JobSubmissionClient(record.address).get_job_logs(record.id).encode()[start:]


def cancel(record: Record) -> None:
    """Asks the entrypoint to end (SIGTERM, and SIGKILL a few seconds later)."""
    with _faults(record.address):
        JobSubmissionClient(record.address).stop_job(record.id)


@contextmanager
def _faults(address: str) -> Iterator[None]:
    """Ray's errors of connection, token and request as one line."""
    try:
        yield
    except ConnectionError as error:
        raise UserError(
            "no Ray cluster answers", seen=address, remedy="ray.address is the dashboard's, such as http://HOST:8265"
        ) from error
    except AuthenticationError as error:
        remedy = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
        raise UserError("the Ray cluster refuses the token", seen=address, remedy=remedy) from error
    except RuntimeError as error:
        raise UserError("the Ray cluster refused", seen=str(error).splitlines()[0]) from error
