"""The target `kubernetes`: manifests, rendered for `kubectl apply`. Owns their content; talks to no cluster.

A training is a Kubeflow PyTorchJob (kubeflow.org/v1) or a TrainJob (trainer.kubeflow.org/v1alpha1): one pod a node, torchrun in each.
A farm is a KubeRay RayJob (ray.io/v1). The resolved config travels in a ConfigMap. Values of secrets stay in the cluster's Secrets.
"""

from typing import Any

import yaml

from uniaudio.cluster.job import Job
from uniaudio.cluster.pods import CONFIG_FOLDER, Manifest, metadata, pod
from uniaudio.cluster.validate import farm_workers
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config

# The operators set the rendezvous (PET_*) that torchrun reads.
_TORCHRUN = ["python3", "-m", "torch.distributed.run", "-m", "uniaudio", "train", f"{CONFIG_FOLDER}/config.yaml"]


class _Plain(yaml.SafeDumper):
    """Writes a part that occurs twice out twice, and text of several lines as such."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Plain.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def render(job: Job, cluster: ClusterConfig) -> str:
    """All manifests of the job as one YAML stream."""
    head = f"# {job.command} {job.name}, written by `uniaudio submit`: kubectl apply -f FILE\n"
    return head + dump(manifests(job, cluster))


def dump(trees: list[Manifest]) -> str:
    """Manifests as one YAML stream."""
    return yaml.dump_all(trees, Dumper=_Plain, sort_keys=False, allow_unicode=True)


def manifests(job: Job, cluster: ClusterConfig) -> list[Manifest]:
    """ConfigMap first, then the job."""
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, cluster),
        "data": {"config.yaml": dump_config(job.config)},
    }
    if isinstance(job.config, FarmConfig):
        return [config, _ray_job(job, cluster, job.config)]
    return [config, _pytorch_job(job, cluster) if cluster.kubernetes.training == "PyTorchJob" else _train_job(job, cluster)]


def _pytorch_job(job: Job, cluster: ClusterConfig) -> Manifest:
    """One master and nodes - 1 workers."""
    resources = cluster.resources
    template = pod(job, cluster, name="pytorch", command=_TORCHRUN)
    # A pod that was told to end saves and exits with an error of torchrun's: it is started again and resumes.
    replica = {"restartPolicy": "OnFailure", "template": template}
    replicas: dict[str, Any] = {"Master": {"replicas": 1, **replica}}
    if resources.nodes > 1:
        replicas["Worker"] = {"replicas": resources.nodes - 1, **replica}
    policy: dict[str, Any] = {"backoffLimit": cluster.kubernetes.backoff_limit, "cleanPodPolicy": "Running"}
    if resources.time_limit_minutes:
        policy["activeDeadlineSeconds"] = 60 * resources.time_limit_minutes
    spec = {"nprocPerNode": str(resources.ranks_per_node), "runPolicy": policy, "pytorchReplicaSpecs": replicas}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata(job, cluster), "spec": spec}


def _train_job(job: Job, cluster: ClusterConfig) -> Manifest:
    """What the runtime's container `node` runs; everything about its pods that a TrainJob may say goes into a patch of the runtime."""
    template = pod(job, cluster, name="node", command=_TORCHRUN)
    pods = template["spec"]
    (container,) = pods["containers"]
    patch = {**pods, "containers": [{"name": "node", "volumeMounts": container["volumeMounts"]}]}
    replicated = {"name": "node", "template": {"spec": {"template": {"metadata": template["metadata"], "spec": patch}}}}
    spec: dict[str, Any] = {
        "runtimeRef": {"name": cluster.kubernetes.runtime},
        "trainer": {
            "image": container["image"],
            "command": container["command"],
            "env": container["env"],
            "numNodes": cluster.resources.nodes,
            "numProcPerNode": cluster.resources.ranks_per_node,
            "resourcesPerNode": container["resources"],
        },
        "runtimePatches": [{"manager": "uniaudio/submit", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}}}],
    }
    if cluster.resources.time_limit_minutes:
        spec["activeDeadlineSeconds"] = 60 * cluster.resources.time_limit_minutes
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata(job, cluster), "spec": spec}


def _ray_job(job: Job, cluster: ClusterConfig, farm: FarmConfig) -> Manifest:
    """A Ray cluster of `nodes` pods that lives as long as the farm: a head that also works, and workers."""
    resources = cluster.resources
    template = pod(job, cluster, name="ray", command=None)
    cpus, workers = resources.cpus_per_node, farm_workers(farm, resources)
    ray_cluster: dict[str, Any] = {
        "rayVersion": cluster.kubernetes.ray_version,
        "headGroupSpec": {"rayStartParams": {"num-cpus": str(cpus)}, "template": template},
    }
    if resources.nodes > 1:
        count = resources.nodes - 1
        group = {"groupName": "workers", "replicas": count, "minReplicas": count, "maxReplicas": count}
        ray_cluster["workerGroupSpecs"] = [{**group, "rayStartParams": {"num-cpus": str(cpus)}, "template": template}]
    spec: dict[str, Any] = {
        "entrypoint": f"python3 -m uniaudio tokenize {CONFIG_FOLDER}/config.yaml ray_address=auto workers={workers}",
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": True,
        "backoffLimit": cluster.kubernetes.backoff_limit,
        "rayClusterSpec": ray_cluster,
    }
    if resources.time_limit_minutes:
        spec["activeDeadlineSeconds"] = 60 * resources.time_limit_minutes
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata(job, cluster), "spec": spec}
