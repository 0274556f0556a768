"""The target `kubernetes`: manifests, rendered for `kubectl apply`. Owns their content; talks to no cluster.

A training is a Kubeflow PyTorchJob (kubeflow.org/v1: one pod a node, torchrun in each), a farm a KubeRay RayJob (ray.io/v1). The resolved
config travels in a ConfigMap. Values of secrets stay in the cluster's Secrets.
"""

from typing import Any

import yaml

from uniaudio.cluster.job import Job
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config

Manifest = dict[str, Any]
_CONFIG_FOLDER = "/etc/uniaudio"


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
    return head + yaml.dump_all(manifests(job, cluster), Dumper=_Plain, sort_keys=False, allow_unicode=True)


def manifests(job: Job, cluster: ClusterConfig) -> list[Manifest]:
    """ConfigMap first, then the job."""
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, cluster),
        "data": {"config.yaml": dump_config(job.config)},
    }
    return [config, _ray_job(job, cluster, job.config) if isinstance(job.config, FarmConfig) else _pytorch_job(job, cluster)]


def _pytorch_job(job: Job, cluster: ClusterConfig) -> Manifest:
    """One master and nodes - 1 workers; the operator sets the rendezvous (PET_*) that torchrun reads."""
    resources = cluster.resources
    command = ["python3", "-m", "torch.distributed.run", "-m", "uniaudio", "train", f"{_CONFIG_FOLDER}/config.yaml"]
    template = _pod(job, cluster, name="pytorch", command=command)
    # A pod that was told to end saves and exits with an error of torchrun's: it is started again and resumes.
    replica = {"restartPolicy": "OnFailure", "template": template}
    replicas: dict[str, Any] = {"Master": {"replicas": 1, **replica}}
    if resources.nodes > 1:
        replicas["Worker"] = {"replicas": resources.nodes - 1, **replica}
    policy: dict[str, Any] = {"backoffLimit": cluster.kubernetes.backoff_limit, "cleanPodPolicy": "Running"}
    if resources.time_limit_minutes:
        policy["activeDeadlineSeconds"] = 60 * resources.time_limit_minutes
    spec = {"nprocPerNode": str(resources.ranks_per_node), "runPolicy": policy, "pytorchReplicaSpecs": replicas}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": _metadata(job, cluster), "spec": spec}


def _ray_job(job: Job, cluster: ClusterConfig, farm: FarmConfig) -> Manifest:
    """A Ray cluster of `nodes` pods that lives as long as the farm: a head that also works, and workers."""
    resources = cluster.resources
    template = _pod(job, cluster, name="ray", command=None)
    cpus = (resources.cpus_per_process or 1) * resources.ranks_per_node
    per_node = int(cpus / farm.cpus_per_worker)
    if farm.gpus_per_worker:
        per_node = min(per_node, int(resources.gpus_per_node / farm.gpus_per_worker))
    workers = farm.workers or resources.nodes * max(1, per_node)
    ray_cluster: dict[str, Any] = {
        "rayVersion": cluster.kubernetes.ray_version,
        "headGroupSpec": {"rayStartParams": {"num-cpus": str(cpus)}, "template": template},
    }
    if resources.nodes > 1:
        count = resources.nodes - 1
        group = {"groupName": "workers", "replicas": count, "minReplicas": count, "maxReplicas": count}
        ray_cluster["workerGroupSpecs"] = [{**group, "rayStartParams": {"num-cpus": str(cpus)}, "template": template}]
    spec: dict[str, Any] = {
        "entrypoint": f"python3 -m uniaudio tokenize {_CONFIG_FOLDER}/config.yaml ray_address=auto workers={workers}",
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": True,
        "backoffLimit": cluster.kubernetes.backoff_limit,
        "rayClusterSpec": ray_cluster,
    }
    if resources.time_limit_minutes:
        spec["activeDeadlineSeconds"] = 60 * resources.time_limit_minutes
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(job, cluster), "spec": spec}


def _metadata(job: Job, cluster: ClusterConfig) -> Manifest:
    settings = cluster.kubernetes
    labels = {"app.kubernetes.io/name": "uniaudio", "app.kubernetes.io/instance": job.name, **settings.labels}
    metadata: Manifest = {"name": job.name, "namespace": settings.namespace, "labels": labels}
    return {**metadata, "annotations": settings.annotations} if settings.annotations else metadata


def _pod(job: Job, cluster: ClusterConfig, *, name: str, command: list[str] | None) -> Manifest:
    """A pod template of one node; `command` None: the image's own."""
    settings = cluster.kubernetes
    variables: list[Manifest] = [{"name": key, "value": value} for key, value in cluster.environment.variables.items()]
    variables += [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}} for key, secret in settings.secrets.items()
    ]
    if name == "pytorch":
        variables.append({"name": "CUDA_DEVICE_MAX_CONNECTIONS", "value": "1"})
    mounts: list[Manifest] = [{"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": job.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{settings.shared_memory_gb}Gi"}},
    ]
    for number, volume in enumerate(settings.volumes):
        mounts.append({"name": f"data-{number}", "mountPath": volume.path, **({"readOnly": True} if volume.read_only else {})})
        volumes.append({"name": f"data-{number}", "persistentVolumeClaim": {"claimName": volume.claim}})
    amounts = _amounts(cluster)
    container: Manifest = {"name": name, "image": cluster.environment.container}
    if command:
        container["command"] = command
    container |= {"env": variables, "resources": {"limits": amounts, "requests": amounts}, "volumeMounts": mounts}
    spec: Manifest = {"containers": [container], "volumes": volumes}
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    if settings.node_selector:
        spec["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    if settings.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if settings.topology_key:
        term = {"labelSelector": {"matchLabels": {"app.kubernetes.io/instance": job.name}}, "topologyKey": settings.topology_key}
        spec["affinity"] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    if command:
        spec["terminationGracePeriodSeconds"] = 300  # a training that is told to end saves
    return {"metadata": {"labels": _metadata(job, cluster)["labels"]}, "spec": spec}


def _amounts(cluster: ClusterConfig) -> dict[str, str]:
    """CPU, memory, GPUs of one pod."""
    resources, settings = cluster.resources, cluster.kubernetes
    amounts: dict[str, str] = {}
    if resources.cpus_per_process:
        amounts["cpu"] = str(resources.cpus_per_process * resources.ranks_per_node)
    if resources.memory_gb_per_node:
        amounts["memory"] = f"{resources.memory_gb_per_node}Gi"
    if resources.gpus_per_node:
        amounts[settings.gpu_resource] = str(resources.gpus_per_node)
    return {**amounts, **settings.extra_limits}
