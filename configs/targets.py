"""The sections of a cluster config that belong to one kind of target each: Slurm, Ray, Kubernetes, SkyPilot."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from uniaudio.configs.section import Section

# What the Slurm script sets by itself, and the key of this config that sets it; `extra` may not say it a second time.
SLURM_OWN = {
    "--job-name": "the run's name",
    "--nodes": "resources.nodes",
    "--ntasks": "resources.processes_per_node",
    "--ntasks-per-node": "resources.processes_per_node",
    "--cpus-per-task": "resources.cpus_per_process",
    "--gpus-per-node": "resources.gpus_per_node",
    "--gres": "resources.gpus_per_node",
    "--mem": "resources.memory_gb_per_node",
    "--time": "resources.time_limit_minutes",
    "--partition": "slurm.partition",
    "--account": "slurm.account",
    "--qos": "slurm.qos",
    "--constraint": "slurm.constraint",
    "--exclude": "slurm.exclude",
    "--reservation": "slurm.reservation",
    "--signal": "slurm.signal_seconds",
    "--requeue": "slurm.requeue",
    "--no-requeue": "slurm.requeue",
    "--output": "job_dir",
    "--error": "job_dir",
    "--open-mode": "job_dir",
    "--array": "slurm.array",
    "--export": "environment.variables",
}


def _one_line(text: str) -> str:
    if any(ord(character) < 32 for character in text):
        raise ValueError("no line breaks or control characters")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, Field(pattern=r"^[\w.,:@%/+&|*\[\]-]+$", description="one word")]


class SlurmConfig(Section):
    """sbatch directives, and how a job that was stopped or has failed comes back."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    exclude: Word | None = Field(None, description="nodes to leave out")
    reservation: Word | None = None
    extra: tuple[Line, ...] = Field((), description="any other sbatch directive, such as --switches=1@12:00:00")
    srun_extra: tuple[Line, ...] = Field((), description="options of srun, such as --cpu-bind=cores")
    array: int | None = Field(None, ge=2, le=10_000, description="a farm as a job array of this many parts, one node each")
    array_at_once: int | None = Field(None, ge=1, description="so many parts of the array at a time; all unless given")
    launcher: Literal["srun", "torchrun"] = Field("srun", description="srun starts every rank itself, or one torchrun a node")
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    signal_seconds: int = Field(
        300, ge=10, description="this long before the limit the job is asked to save: longer than a step and a save"
    )
    requeue: bool = Field(True, description="a job that saved before its limit, or lost a node, queues again and resumes")
    retries: int = Field(3, ge=0, description="tries again after a crash, over the whole job")
    fast_seconds: int = Field(120, ge=0, description="an attempt that ends sooner than this is a fast one")
    max_fast: int = Field(3, ge=1, description="this many fast attempts in a row end the job")
    master_address: Word | None = Field(None, description="address of the first node, where its name does not resolve")
    master_port: int | None = Field(None, ge=1024, le=65535, description="rendezvous; worked out from the job's number unless given")

    @model_validator(mode="after")
    def _directives(self) -> "SlurmConfig":
        for line in self.extra:
            name = re.split(r"[=\s]", line, maxsplit=1)[0]
            if not re.fullmatch(r"--[a-z][a-z-]*", name):
                raise ValueError(f"extra: {line!r} is no long option such as --switches=1")
            if name in SLURM_OWN:
                raise ValueError(f"extra: {name} is set by {SLURM_OWN[name]}")
        if self.array_at_once and not self.array:
            raise ValueError("array_at_once without array")
        for line in self.srun_extra:
            if not line.startswith("--"):
                raise ValueError(f"srun_extra: {line!r} is no long option such as --cpu-bind=cores")
        return self


class RayConfig(Section):
    """An existing Ray cluster. The token is RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH of the shell that submits."""

    address: Line = Field("http://127.0.0.1:8265", pattern=r"^https?://[^/@\s]+$", description="the dashboard's address")
    pip: tuple[Line, ...] = Field((), description="packages of the job's own environment (runtime_env); none: the nodes' own")
    metadata: dict[str, Line] = Field(default_factory=dict)


class SecretReference(Section):
    """A key of a Kubernetes Secret that exists already."""

    name: Word
    key: Word


class VolumeConfig(Section):
    """A claim of a persistent volume, mounted in every pod."""

    claim: Word
    path: str = Field(..., pattern=r"^/[^\s:]*$")
    read_only: bool = False


class KubernetesConfig(Section):
    """Namespace, image and placement of the pods."""

    namespace: Word = "default"
    image_pull_secrets: tuple[Word, ...] = ()
    service_account: Word | None = None
    volumes: tuple[VolumeConfig, ...] = ()
    shared_memory_gb: int = Field(16, ge=1, description="/dev/shm of a pod: NCCL and loader workers use it")
    secrets: dict[str, SecretReference] = Field(default_factory=dict, description="variable -> Secret that holds its value")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, str], ...] = ()
    training: Literal["PyTorchJob", "TrainJob"] = Field(
        "PyTorchJob", description="Kubeflow's training operator (v1) or Trainer (v2, with the runtime named below)"
    )
    runtime: Word = Field("torch-distributed", description="TrainJob: the ClusterTrainingRuntime")
    topology_key: Line | None = Field(None, description="keeps the pods of a training in one such domain, e.g. topology.kubernetes.io/zone")
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    gpu_resource: Word = "nvidia.com/gpu"
    extra_limits: dict[str, str] = Field(default_factory=dict, description="other resources of a pod, such as rdma/ib: 1")
    host_network: bool = False
    backoff_limit: int = Field(3, ge=0)
    ray_version: Word = Field("2.60.0", description="of the image; the KubeRay operator wants to know")


class SkyPilotConfig(Section):
    """A task file for `sky jobs launch`: machines of a cloud, with recovery of spot machines."""

    infra: Line | None = Field(None, description="where, such as aws/us-east-1 or k8s/CONTEXT; anywhere unless given")
    accelerator: Word | None = Field(None, description="name of the GPU as SkyPilot says it, such as H100; resources.gpu unless given")
    use_spot: bool = True
    disk_size_gb: int | None = Field(None, ge=1)
    file_mounts: dict[str, Line] = Field(default_factory=dict, description="path on the machines -> bucket, such as /data: s3://bucket")
    secrets: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = Field(
        (), description="names of variables whose values `sky jobs launch --secret NAME` takes from your shell"
    )
    max_restarts: int = Field(3, ge=0, description="tries again after a fault of the job itself; spot recovery does not count")
