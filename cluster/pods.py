"""Pods of a job on Kubernetes: metadata, container, volumes, placement. What holds the pods: kubernetes.py."""

from typing import Any

from uniaudio.cluster.job import Job
from uniaudio.configs.cluster import ClusterConfig

Manifest = dict[str, Any]
CONFIG_FOLDER = "/etc/uniaudio"


def metadata(job: Job, cluster: ClusterConfig) -> Manifest:
    """Name, namespace, labels and annotations of everything that belongs to the job."""
    settings = cluster.kubernetes
    labels = {"app.kubernetes.io/name": "uniaudio", "app.kubernetes.io/instance": job.name, **settings.labels}
    found: Manifest = {"name": job.name, "namespace": settings.namespace, "labels": labels}
    return {**found, "annotations": settings.annotations} if settings.annotations else found


def pod(job: Job, cluster: ClusterConfig, *, name: str, command: list[str] | None) -> Manifest:
    """A pod template of one node; `command` None: the image's own."""
    settings = cluster.kubernetes
    variables: list[Manifest] = [{"name": key, "value": value} for key, value in cluster.environment.variables.items()]
    variables += [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}} for key, secret in settings.secrets.items()
    ]
    if command:
        variables.append({"name": "CUDA_DEVICE_MAX_CONNECTIONS", "value": "1"})
    mounts: list[Manifest] = [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": job.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{settings.shared_memory_gb}Gi"}},
    ]
    for number, volume in enumerate(settings.volumes):
        mounts.append({"name": f"data-{number}", "mountPath": volume.path, **({"readOnly": True} if volume.read_only else {})})
        volumes.append({"name": f"data-{number}", "persistentVolumeClaim": {"claimName": volume.claim}})
    limits = amounts(cluster)
    container: Manifest = {"name": name, "image": cluster.environment.container}
    if command:
        container["command"] = command
    container |= {"env": variables, "resources": {"limits": limits, "requests": limits}, "volumeMounts": mounts}
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
    return {"metadata": {"labels": metadata(job, cluster)["labels"]}, "spec": spec}


def amounts(cluster: ClusterConfig) -> dict[str, str]:
    """CPU, memory, GPUs of one pod."""
    resources, settings = cluster.resources, cluster.kubernetes
    found: dict[str, str] = {}
    if resources.cpus_per_process:
        found["cpu"] = str(resources.cpus_per_process * resources.ranks_per_node)
    if resources.memory_gb_per_node:
        found["memory"] = f"{resources.memory_gb_per_node}Gi"
    if resources.gpus_per_node:
        found[settings.gpu_resource] = str(resources.gpus_per_node)
    return {**found, **settings.extra_limits}
