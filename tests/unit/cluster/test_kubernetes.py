"""The manifests: golden files, the published client's models for PyTorchJob and pods, and the fields of KubeRay's API for RayJob.

No cluster has seen them. `UNIAUDIO_UPDATE_GOLDEN=1 pytest` writes the golden files anew.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from uniaudio.cluster.cli import submit
from uniaudio.cluster.job import Job
from uniaudio.cluster.kubernetes import manifests, render
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config, validate
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
EVERY_KNOB = {
    "namespace": "audio",
    "image_pull_secrets": ["registry"],
    "service_account": "trainer",
    "volumes": [{"claim": "data", "path": "/data"}, {"claim": "corpus", "path": "/corpus", "read_only": True}],
    "secrets": {"MLFLOW_TRACKING_PASSWORD": {"name": "mlflow", "key": "password"}},
    "node_selector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "topology_key": "topology.kubernetes.io/zone",
    "labels": {"kueue.x-k8s.io/queue-name": "audio"},
    "annotations": {"owner": "audio"},
    "extra_limits": {"rdma/ib": "1"},
    "host_network": True,
}
SECTIONS = {
    "kind": "kubernetes",
    "check_paths": False,
    "resources": {"nodes": 2, "gpus_per_node": 8, "cpus_per_process": 12, "memory_gb_per_node": 512, "time_limit_minutes": 600},
    "environment": {"container": "registry.example.com/uniaudio:0.1.0", "variables": {"NCCL_SOCKET_IFNAME": "eth0"}},
    "kubernetes": EVERY_KNOB,
}
FIELDS_OF_RAY_JOB = {  # https://ray-project.github.io/kuberay/reference/api/, ray.io/v1
    "spec": {"entrypoint", "submissionMode", "shutdownAfterJobFinishes", "backoffLimit", "activeDeadlineSeconds", "rayClusterSpec"},
    "cluster": {"rayVersion", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "workers": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def job_of(what: str) -> Job:
    paths = {"train": ["data.shards=/data/shards", "train.output_dir=/data/run"], "farm": ["manifest=/data/m.jsonl", "output_dir=/data/s"]}
    if what == "train":
        return Job(load_config(RunConfig, "paper_1b", folder="runs", overrides=paths[what]), Path("/jobs/train-paper-1b-1"), Path("/"))
    farm = load_config(FarmConfig, "demo", folder="farms", overrides=[*paths[what], "gpus_per_worker=1"])
    return Job(farm, Path("/jobs/tokenize-demo-1"), Path("/"))


def cluster() -> ClusterConfig:
    return validate(ClusterConfig, SECTIONS, source="cluster.yaml")


@pytest.mark.parametrize("what", ["train", "farm"])
def test_manifests_are_the_golden_ones(what):
    path = GOLDEN / f"kubernetes_{what}.yaml"
    if os.environ.get("UNIAUDIO_UPDATE_GOLDEN"):
        path.write_text(render(job_of(what), cluster()))
    assert render(job_of(what), cluster()) == path.read_text()


@pytest.mark.parametrize("what", ["train", "farm"])
def test_rendered_yaml_reads_back_to_the_manifests(what):
    assert list(yaml.safe_load_all(render(job_of(what), cluster()))) == manifests(job_of(what), cluster())
    config = manifests(job_of(what), cluster())[0]["data"]["config.yaml"]
    assert type(job_of(what).config).model_validate(yaml.safe_load(config)) == job_of(what).config


def through_client(models: Any, tree: dict, kind: str) -> dict:
    """What the client's models keep of a manifest: fields that they do not know are gone, wrong types raise."""
    client = pytest.importorskip("kubernetes.client", reason="pip install kubernetes kubeflow-training").ApiClient()
    response = type("Response", (), {"data": yaml.safe_dump(tree)})
    original = client._ApiClient__deserialize

    def deserialize(data: Any, klass: Any) -> Any:
        return original(data, getattr(models, klass) if isinstance(klass, str) and hasattr(models, klass) else klass)

    client._ApiClient__deserialize = deserialize
    return client.sanitize_for_serialization(deserialize(yaml.safe_load(response.data), kind))


def test_the_clients_models_know_every_field_of_the_training():
    models = pytest.importorskip("kubeflow.training.models", reason="pip install kubeflow-training")
    config, training = manifests(job_of("train"), cluster())
    assert through_client(models, training, "KubeflowOrgV1PyTorchJob") == training
    assert through_client(models, config, "V1ConfigMap") == config


def test_an_unknown_field_would_be_noticed():
    models = pytest.importorskip("kubeflow.training.models", reason="pip install kubeflow-training")
    training = manifests(job_of("train"), cluster())[1]
    training["spec"]["nprocPerNod"] = "8"
    assert through_client(models, training, "KubeflowOrgV1PyTorchJob") != training


def test_ray_job_has_only_fields_of_its_api_and_pods_that_the_client_knows():
    models = pytest.importorskip("kubernetes.client.models", reason="pip install kubernetes")
    spec = manifests(job_of("farm"), cluster())[1]["spec"]
    ray = spec["rayClusterSpec"]
    (workers,) = ray["workerGroupSpecs"]
    for part, tree in (("spec", spec), ("cluster", ray), ("head", ray["headGroupSpec"]), ("workers", workers)):
        assert set(tree) <= FIELDS_OF_RAY_JOB[part], part
    for group in (ray["headGroupSpec"], workers):
        assert through_client(models, group["template"], "V1PodTemplateSpec") == group["template"]
    assert "workers=16" in spec["entrypoint"]


def test_pods_fill_the_layout():
    spec = manifests(job_of("train"), cluster())[1]["spec"]
    pods = sum(replica["replicas"] for replica in spec["pytorchReplicaSpecs"].values())
    assert pods * int(spec["nprocPerNode"]) == job_of("train").config.parallel.world_size


def test_submit_without_dry_run_says_that_it_starts_nothing(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(SECTIONS))
    words = ["paper_1b", "--cluster", str(path), "data.shards=/data/shards", "train.output_dir=/data/run"]
    with pytest.raises(UserError, match="starts nothing .*kubectl apply"):
        CliRunner().invoke(submit, words, catch_exceptions=False)
    printed = CliRunner().invoke(submit, [*words, "--dry-run"], catch_exceptions=False).stdout
    assert [tree["kind"] for tree in yaml.safe_load_all(printed)] == ["ConfigMap", "PyTorchJob"]
