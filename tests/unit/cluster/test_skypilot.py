"""The task file: a golden one, the fields of SkyPilot's reference, and the lines that its machines run."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from uniaudio.cluster.cli import submit
from uniaudio.cluster.job import Job
from uniaudio.cluster.skypilot import render, task
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config, validate
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "skypilot.yaml"
SECTIONS = {
    "kind": "skypilot",
    "check_paths": False,
    "resources": {"nodes": 2, "gpus_per_node": 8, "gpu": "H100", "cpus_per_process": 12, "memory_gb_per_node": 512},
    "environment": {"container": "registry.example.com/uniaudio:1", "variables": {"NCCL_DEBUG": "WARN"}, "setup": ["nvidia-smi"]},
    "skypilot": {"infra": "aws/us-east-1", "file_mounts": {"/data": "s3://bucket"}, "secrets": ["HF_TOKEN"], "disk_size_gb": 512},
}
# docs.skypilot.co/en/latest/reference/yaml-spec.html
FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes", "file_mounts", "setup", "run", "config"}
OF_RESOURCES = {"infra", "accelerators", "cpus", "memory", "use_spot", "disk_size", "image_id", "job_recovery"}
PATHS = ["data.shards=/data/shards", "train.output_dir=/data/run"]


def cluster() -> ClusterConfig:
    return validate(ClusterConfig, SECTIONS, source="cluster.yaml")


def training() -> Job:
    return Job(load_config(RunConfig, "paper_1b", folder="runs", overrides=PATHS), Path("/jobs/train-paper-1b-1"), Path("/"))


def test_task_is_the_golden_one():
    content = task(training(), cluster())
    begin, end = content["run"].index("model:"), content["run"].index("END_OF_CONFIG\nexport")
    text = yaml.safe_dump({**content, "run": content["run"][:begin] + "(the resolved config)\n" + content["run"][end:]}, sort_keys=False)
    if os.environ.get("UNIAUDIO_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_task_has_only_fields_of_the_reference_and_no_value_of_a_secret():
    content = yaml.safe_load(render(training(), cluster()))
    assert content == task(training(), cluster())
    assert set(content) <= FIELDS and set(content["resources"]) <= OF_RESOURCES
    assert content["secrets"] == {"HF_TOKEN": None}


@pytest.mark.parametrize("rank", [0, 1])
def test_the_lines_of_a_machine_start_torchrun_on_the_config(rank, tmp_path):
    """In a shell with SkyPilot's variables and a stand-in for Python that shows its words."""
    python = tmp_path / "python3"
    python.write_text('#!/bin/bash\necho "$@"\n')
    python.chmod(0o755)
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), **variables}
    done = subprocess.run(["bash", "-c", task(training(), cluster())["run"]], env=environment, capture_output=True, text=True, check=True)
    words = f"-m torch.distributed.run --nnodes=2 --node-rank={rank} --nproc-per-node=8 --master-addr=10.0.0.1 --master-port=29500"
    assert done.stdout == f"{words} -m uniaudio train {tmp_path}/uniaudio.yaml\n"
    assert load_config(RunConfig, tmp_path / "uniaudio.yaml", folder="runs") == training().config


def test_each_machine_makes_a_part_of_a_farm():
    farm = load_config(FarmConfig, "demo", folder="farms", overrides=["manifest=/data/m.jsonl", "output_dir=/data/s"])
    assert task(Job(farm, Path("/jobs/f"), Path("/")), cluster())["run"].endswith(
        'python3 -m uniaudio tokenize ~/uniaudio.yaml part="$SKYPILOT_NODE_RANK/$SKYPILOT_NUM_NODES"\n'
    )


def test_outputs_outside_the_bucket_and_a_start_are_refused(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(SECTIONS))
    with pytest.raises(UserError, match=r"train\.output_dir lies on no bucket of skypilot\.file_mounts .*allowed: /data"):
        CliRunner().invoke(submit, ["paper_1b", "--cluster", str(path), PATHS[0], "train.output_dir=/run"], catch_exceptions=False)
    with pytest.raises(UserError, match=r"starts nothing .*sky jobs launch job\.yaml"):
        CliRunner().invoke(submit, ["paper_1b", "--cluster", str(path), *PATHS], catch_exceptions=False)
