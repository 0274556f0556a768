"""The target `skypilot`: a task file, rendered for `sky jobs launch`. Owns its content; talks to no cloud.

A training runs torchrun on every machine, a farm one part of its units on each. The resolved config travels inside the task file. Outputs
lie in a bucket that is mounted, so that a job whose spot machines are taken away goes on with others.
"""

from typing import Any

from uniaudio.cluster.job import Job
from uniaudio.cluster.kubernetes import dump
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config

_PORT = 29500
_END = "END_OF_CONFIG"


def render(job: Job, cluster: ClusterConfig) -> str:
    """The task file."""
    head = f"# {job.command} {job.name}, written by `uniaudio submit`: sky jobs launch FILE\n"
    return head + dump([task(job, cluster)])


def task(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    """SkyPilot's task as a mapping (docs.skypilot.co, reference/yaml-spec)."""
    settings, environment = cluster.skypilot, cluster.environment
    content: dict[str, Any] = {"name": job.name, "num_nodes": cluster.resources.nodes, "resources": _resources(cluster)}
    if environment.variables:
        content["envs"] = dict(environment.variables)
    if settings.secrets:
        content["secrets"] = dict.fromkeys(settings.secrets)  # null: taken from the shell that launches
    if settings.file_mounts:
        content["file_mounts"] = {path: {"source": bucket, "mode": "MOUNT"} for path, bucket in settings.file_mounts.items()}
    if environment.setup:
        content["setup"] = "".join(f"{line}\n" for line in environment.setup)
    return {**content, "run": _run(job, cluster)}


def _resources(cluster: ClusterConfig) -> dict[str, Any]:
    resources, settings = cluster.resources, cluster.skypilot
    wanted: dict[str, Any] = {"use_spot": settings.use_spot, "job_recovery": {"max_restarts_on_errors": settings.max_restarts}}
    if settings.infra:
        wanted["infra"] = settings.infra
    if resources.gpus_per_node:
        wanted["accelerators"] = f"{settings.accelerator or resources.gpu}:{resources.gpus_per_node}"
    if resources.cpus_per_node:
        wanted["cpus"] = f"{resources.cpus_per_node}+"
    if resources.memory_gb_per_node:
        wanted["memory"] = f"{resources.memory_gb_per_node}+"
    if settings.disk_size_gb:
        wanted["disk_size"] = settings.disk_size_gb
    if cluster.environment.container:
        wanted["image_id"] = f"docker:{cluster.environment.container}"
    return wanted


def _run(job: Job, cluster: ClusterConfig) -> str:
    """The lines that each machine runs."""
    python = cluster.environment.python or "python3"
    lines = ["set -e", f"cat > ~/uniaudio.yaml <<'{_END}'", dump_config(job.config).rstrip(), _END]
    if isinstance(job.config, FarmConfig):
        part = ' part="$SKYPILOT_NODE_RANK/$SKYPILOT_NUM_NODES"' if cluster.resources.nodes > 1 else ""
        lines.append(f"{python} -m uniaudio tokenize ~/uniaudio.yaml{part}")
    else:
        lines += [
            "export CUDA_DEVICE_MAX_CONNECTIONS=1",
            'FIRST=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
            f'{python} -m torch.distributed.run --nnodes="$SKYPILOT_NUM_NODES" --node-rank="$SKYPILOT_NODE_RANK" \\',
            f'  --nproc-per-node={cluster.resources.ranks_per_node} --master-addr="$FIRST" --master-port={_PORT} \\',
            "  -m uniaudio train ~/uniaudio.yaml",
        ]
    return "\n".join(lines) + "\n"
