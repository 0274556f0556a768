"""Where a job runs and on what: this machine, Slurm, a Ray cluster or Kubernetes.

Owns the sections of a cluster config and what can be refused from them alone; `uniaudio.cluster.validate` holds a job against them.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from uniaudio.configs.section import Section

_SECRET_WORDS = {"token", "tokens", "secret", "secrets", "password", "passwd", "passphrase", "key", "apikey", "credential", "credentials"}
_CREDENTIALS_IN_URL = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
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
    "--array": "nothing: one job, one run",
    "--export": "environment.variables",
}


def _one_line(text: str) -> str:
    if any(ord(character) < 32 for character in text):
        raise ValueError("no line breaks or control characters")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, Field(pattern=r"^[\w.,:@%/+&|*\[\]-]+$", description="one word")]
Variables = dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Line]


def looks_secret(name: str, value: str = "") -> bool:
    """Whether a variable's name has a word such as TOKEN or KEY, or its value is a URL with a password."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return bool(_SECRET_WORDS & set(words)) or bool(_CREDENTIALS_IN_URL.search(value))


class ResourcesConfig(Section):
    """What one job asks for. A run's layout must fill nodes x processes_per_node exactly."""

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    gpu_memory_gb: float | None = Field(None, gt=0, description="memory of one GPU: lets a model that cannot fit be refused")
    processes_per_node: int | None = Field(None, ge=1, description="ranks of a training on a node; one a GPU (CPU: one) unless given")
    cpus_per_process: int | None = Field(None, ge=1)
    memory_gb_per_node: int | None = Field(None, ge=1)
    time_limit_minutes: int | None = Field(None, ge=1, description="the scheduler ends the job then; its own default unless given")

    @property
    def ranks_per_node(self) -> int:
        """Processes of a training on one node."""
        return self.processes_per_node or max(1, self.gpus_per_node)


class EnvironmentConfig(Section):
    """Where the nodes find `uniaudio`. Secrets come from your own environment or from the cluster's store, never from here."""

    python: Line | None = Field(None, description="interpreter of a venv that all nodes see; the one that submits unless given")
    wheelhouse: Line | None = Field(
        None, description="folder of wheels (make wheelhouse): each node builds a venv of them, without network"
    )
    container: Line | None = Field(None, description="image that has uniaudio installed")
    container_mounts: tuple[Line, ...] = Field((), description="HOST:CONTAINER pairs, such as /data:/data")
    setup: tuple[Line, ...] = Field((), description="shell lines before the job, such as `module load cuda/13.0`")
    variables: Variables = Field(default_factory=dict, description="set for the job, such as NCCL_SOCKET_IFNAME")

    @model_validator(mode="after")
    def _no_secrets(self) -> "EnvironmentConfig":
        for name, value in self.variables.items():
            if looks_secret(name, value):
                raise ValueError(f"variables.{name} looks like a secret; export it in the shell that submits, or use the cluster's store")
        if self.wheelhouse and (self.container or self.python is None):
            raise ValueError("wheelhouse needs python (the node's interpreter that has torch) and excludes container")
        if self.container_mounts and not self.container:
            raise ValueError("container_mounts without container")
        return self


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
    topology_key: Line | None = Field(None, description="keeps the pods of a training in one such domain, e.g. topology.kubernetes.io/zone")
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    gpu_resource: Word = "nvidia.com/gpu"
    extra_limits: dict[str, str] = Field(default_factory=dict, description="other resources of a pod, such as rdma/ib: 1")
    host_network: bool = False
    backoff_limit: int = Field(3, ge=0)
    ray_version: Word = Field("2.60.0", description="of the image; the KubeRay operator wants to know")


class ClusterConfig(Section):
    """What `uniaudio submit --cluster` reads: `kind`, and the section of that kind."""

    kind: Literal["local", "slurm", "ray", "kubernetes"] = "local"
    job_dir: str = Field("work/jobs", description="a folder a job: resolved config, script, output, record")
    check_paths: bool = Field(True, description="the submitting machine sees the nodes' files: missing shards are refused")
    resources: ResourcesConfig = ResourcesConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    slurm: SlurmConfig = SlurmConfig()
    ray: RayConfig = RayConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()

    @model_validator(mode="after")
    def _one_kind(self) -> "ClusterConfig":
        for section in ("slurm", "ray", "kubernetes"):
            if section != self.kind and section in self.model_fields_set:
                raise ValueError(f"section {section} given, but kind is {self.kind}")
        limit = self.resources.time_limit_minutes
        if self.kind == "slurm" and limit is not None and limit * 60 < 2 * self.slurm.signal_seconds:
            raise ValueError(
                f"resources.time_limit_minutes {limit} leaves no time to work: slurm.signal_seconds is {self.slurm.signal_seconds}"
            )
        if self.kind == "kubernetes" and not self.environment.container:
            raise ValueError("kind kubernetes needs environment.container, an image that has uniaudio installed")
        if self.kind == "kubernetes" and (self.environment.python or self.environment.setup or self.environment.container_mounts):
            raise ValueError("kind kubernetes takes environment.container and .variables; mounts are kubernetes.volumes")
        if self.kind in ("local", "ray") and (self.environment.container or self.environment.wheelhouse or self.environment.setup):
            raise ValueError(f"kind {self.kind} runs in the environment that is there: no container, wheelhouse or setup")
        if self.kind in ("local", "ray") and self.resources.nodes > 1:
            raise ValueError(f"resources.nodes {self.resources.nodes}: kind {self.kind} starts a job on one node")
        return self
