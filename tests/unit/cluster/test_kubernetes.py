"""The manifests: golden files, the published client's models for PyTorchJob and pods, and the fields of KubeRay's API for RayJob.

No cluster has seen them. `UNIAUDIO_UPDATE_GOLDEN=1 pytest` writes the golden files anew.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from uniaudio.cluster.cli import submit
from uniaudio.cluster.job import Job
from uniaudio.cluster.kubernetes import dump, manifests, render
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
CONFIG_IS_ELSEWHERE = "(the resolved config)\n"
# ray.io/v1 of KubeRay's API reference (ray-project/kuberay docs/reference/api.md at 0057210e): the fields that are used, and their types.
RAY_JOB = {
    "spec": {
        "entrypoint": str,
        "submissionMode": str,
        "shutdownAfterJobFinishes": bool,
        "backoffLimit": int,
        "activeDeadlineSeconds": int,
        "rayClusterSpec": dict,
    },
    "cluster": {"rayVersion": str, "headGroupSpec": dict, "workerGroupSpecs": list},
    "head": {"rayStartParams": dict, "template": dict},
    "workers": {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict, "template": dict},
}


def job_of(what: str) -> Job:
    paths = {"train": ["data.shards=/data/shards", "train.output_dir=/data/run"], "farm": ["manifest=/data/m.jsonl", "output_dir=/data/s"]}
    if what == "train":
        return Job(load_config(RunConfig, "paper_1b", folder="runs", overrides=paths[what]), Path("/jobs/train-paper-1b-1"), Path("/"))
    farm = load_config(FarmConfig, "demo", folder="farms", overrides=[*paths[what], "gpus_per_worker=1"])
    return Job(farm, Path("/jobs/tokenize-demo-1"), Path("/"))


def cluster(training: str = "PyTorchJob") -> ClusterConfig:
    """Every knob; a TrainJob leaves the host's network to its runtime."""
    settings = EVERY_KNOB | {"training": training, "host_network": training == "PyTorchJob"}
    return validate(ClusterConfig, SECTIONS | {"kubernetes": settings}, source="cluster.yaml")


@pytest.mark.parametrize(("what", "training"), [("train", "PyTorchJob"), ("train", "TrainJob"), ("farm", "PyTorchJob")])
def test_manifests_are_the_golden_ones(what, training):
    path = GOLDEN / f"kubernetes_{'TrainJob' if training == 'TrainJob' else what}.yaml"
    config, workload = manifests(job_of(what), cluster(training))
    config["data"] = {"config.yaml": CONFIG_IS_ELSEWHERE}  # every new key of a run would change it
    text = dump([config, workload])
    if os.environ.get("UNIAUDIO_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


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


def test_the_trainers_models_know_every_field_of_the_train_job():
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    training = manifests(job_of("train"), cluster("TrainJob"))[1]
    assert models.TrainerV1alpha1TrainJob.from_dict(training).to_dict() == training
    training["spec"]["trainer"]["numNode"] = 2
    assert models.TrainerV1alpha1TrainJob.from_dict(training).to_dict() != training


def test_a_train_job_runs_the_layout_in_the_runtimes_container():
    spec = manifests(job_of("train"), cluster("TrainJob"))[1]["spec"]
    assert spec["trainer"]["numNodes"] * spec["trainer"]["numProcPerNode"] == job_of("train").config.parallel.world_size
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pods = replicated["template"]["spec"]["template"]["spec"]
    assert {mount["name"] for mount in pods["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pods["volumes"]}
    assert replicated["name"] == pods["containers"][0]["name"] == "node"


def test_ray_job_has_the_fields_and_types_of_its_api_and_pods_that_the_client_knows():
    models = pytest.importorskip("kubernetes.client.models", reason="pip install kubernetes")
    spec = manifests(job_of("farm"), cluster())[1]["spec"]
    ray = spec["rayClusterSpec"]
    (workers,) = ray["workerGroupSpecs"]
    for part, tree in (("spec", spec), ("cluster", ray), ("head", ray["headGroupSpec"]), ("workers", workers)):
        assert {key: type(value) for key, value in tree.items()} == RAY_JOB[part], part
    for group in (ray["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert through_client(models, group["template"], "V1PodTemplateSpec") == group["template"]
    assert "workers=16" in spec["entrypoint"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("train", "pytorchjob.kubeflow.org"), ("TrainJob", "trainjob.trainer.kubeflow.org"), ("farm", "rayjob.ray.io")],
)
def test_kubectl_reads_the_manifests(name, kind):
    """Its own parser, without a cluster: `apply --dry-run=client` asks a server for the kinds."""
    command = [
        "kubectl",
        "label",
        "--local",
        "--dry-run=client",
        "--output=name",
        f"--filename={GOLDEN / f'kubernetes_{name}.yaml'}",
        "a=b",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    job = "tokenize-demo-1" if name == "farm" else "train-paper-1b-1"
    assert (done.returncode, done.stdout.split()) == (0, [f"configmap/{job}", f"{kind}/{job}"])


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
