"""Where a job runs and on what: this machine, Slurm, a Ray cluster, Kubernetes or machines of a cloud.

Owns the sections that all kinds share and what can be refused from a cluster config alone; `uniaudio.cluster.validate` holds a job
against it. The sections of one kind each: targets.py.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from uniaudio.configs.secrets import find_secret, find_secret_name
from uniaudio.configs.section import Section
from uniaudio.configs.targets import KubernetesConfig, Line, RayConfig, SkyPilotConfig, SlurmConfig

Variables = dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Line]


class ResourcesConfig(Section):
    """What one job asks for. A run's layout must fill nodes x processes_per_node exactly."""

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    gpu_memory_gb: float | None = Field(None, gt=0, description="memory of one GPU: lets a model that cannot fit be refused")
    gpu: Literal["A100", "H100", "H200", "B200"] | None = Field(None, description="lets a run be held against the time limit")
    expected_mfu: float = Field(0.4, gt=0, le=1, description="share of the GPU's peak that a training reaches")
    processes_per_node: int | None = Field(None, ge=1, description="ranks of a training on a node; one a GPU (CPU: one) unless given")
    cpus_per_process: int | None = Field(None, ge=1)
    memory_gb_per_node: int | None = Field(None, ge=1)
    time_limit_minutes: int | None = Field(None, ge=1, description="the scheduler ends the job then; its own default unless given")

    @property
    def ranks_per_node(self) -> int:
        """Processes of a training on one node."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def cpus_per_node(self) -> int | None:
        """CPUs asked for on one node; None: the scheduler's default."""
        return self.cpus_per_process * self.ranks_per_node if self.cpus_per_process else None


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
    def _consistent(self) -> "EnvironmentConfig":
        if self.wheelhouse and (self.container or self.python is None):
            raise ValueError("wheelhouse needs python (the node's interpreter that has torch) and excludes container")
        if self.container_mounts and not self.container:
            raise ValueError("container_mounts without container")
        return self


class PreflightConfig(Section):
    """What every node shows before a job starts on it; a node that does not is named and left out of the next try."""

    enabled: bool = Field(True, description="Slurm: before every attempt of a job on several nodes")
    free_disk_gb: float = Field(10.0, ge=0, description="in the folder of the outputs and in the node's temporary folder")
    clock_seconds: float = Field(2.0, gt=0, description="largest difference between the clocks of two nodes")
    all_reduce_gb_per_second: float | None = Field(
        None, gt=0, description="expected bus bandwidth over all ranks; without it a node is held against the median of the others"
    )
    slow_fraction: float = Field(0.7, gt=0, lt=1, description="below this share of the expected or median speed a node is slow")
    seconds: int = Field(180, ge=10, description="a node that has not answered by then is left out")


class ClusterConfig(Section):
    """What `uniaudio submit --cluster` reads: `kind`, and the section of that kind."""

    kind: Literal["local", "slurm", "ray", "kubernetes", "skypilot"] = "local"
    job_dir: str = Field("work/jobs", description="a folder a job: resolved config, script, output, record")
    check_paths: bool = Field(True, description="the submitting machine sees the nodes' files: missing shards are refused")
    resources: ResourcesConfig = ResourcesConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    slurm: SlurmConfig = SlurmConfig()
    ray: RayConfig = RayConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    skypilot: SkyPilotConfig = SkyPilotConfig()
    preflight: PreflightConfig = PreflightConfig()

    @model_validator(mode="after")
    def _one_kind(self) -> "ClusterConfig":
        for section in ("slurm", "ray", "kubernetes", "skypilot"):
            if section != self.kind and section in self.model_fields_set:
                raise ValueError(f"section {section} given, but kind is {self.kind}")
        named = {"environment.variables": self.environment.variables, "ray.metadata": self.ray.metadata}
        named |= {"kubernetes.labels": self.kubernetes.labels, "kubernetes.annotations": self.kubernetes.annotations}
        secrets = [f"{section}.{name}" for section, variables in named.items() if (name := find_secret_name(variables))]
        if secret := secrets[0] if secrets else find_secret(self.model_dump(mode="json")):
            raise ValueError(f"{secret} looks like a secret; export it in the shell that submits, or use the cluster's store")
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
        if self.kubernetes.training == "TrainJob" and self.kubernetes.host_network:
            raise ValueError("kubernetes.host_network with training TrainJob: set it in the ClusterTrainingRuntime")
        if self.slurm.array and self.resources.nodes > 1:
            raise ValueError(
                f"slurm.array {self.slurm.array}: a part of a farm runs on one node; resources.nodes is {self.resources.nodes}"
            )
        if self.kind == "skypilot" and self.resources.gpus_per_node and not (self.skypilot.accelerator or self.resources.gpu):
            raise ValueError("kind skypilot with GPUs needs resources.gpu or skypilot.accelerator, the name to ask for")
        if self.kind == "skypilot" and (self.environment.wheelhouse or self.environment.container_mounts):
            raise ValueError("kind skypilot takes environment.container, .setup, .python and .variables; mounts are skypilot.file_mounts")
        return self
