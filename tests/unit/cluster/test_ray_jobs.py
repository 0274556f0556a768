"""What is sent to a Ray cluster, and what is said where none answers. A real one: tests/integration/test_ray_jobs.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from uniaudio.cluster import ray_jobs
from uniaudio.cluster.cli import submit
from uniaudio.cluster.job import Job, Record
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config, load_config, validate
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

FARM = load_config(FarmConfig, "demo", folder="farms", overrides=["manifest=/data/m.jsonl", "output_dir=/data/shards"])


def cluster(**sections: object) -> ClusterConfig:
    return validate(ClusterConfig, {"kind": "ray", "check_paths": False, **sections}, source="cluster.yaml")


def test_a_farm_joins_the_cluster_it_runs_on():
    content = ray_jobs.request(
        Job(FARM, Path("/jobs/tokenize-demo-1"), Path("/")), cluster(ray={"pip": ["uniaudio"], "metadata": {"a": "b"}})
    )
    assert content["entrypoint"].endswith(" && exec python -m uniaudio tokenize config.yaml ray_address=auto")
    assert content["runtime_env"] == {"env_vars": {"UNIAUDIO_JOB_CONFIG": dump_config(FARM)}, "pip": ["uniaudio"]}
    assert content["metadata"] == {"a": "b"}


def test_the_entrypoint_finds_the_config_in_a_folder_that_is_not_rays(tmp_path):
    """`sh -c`, as Ray starts it; a stand-in for the interpreter says where it is and what lies there."""
    python = tmp_path / "a python"
    python.write_text('#!/bin/sh\n[ "$PWD" != "$WAS" ] && shift 3 && cat "$1"\n')
    python.chmod(0o755)
    content = ray_jobs.request(Job(FARM, Path("/jobs/tokenize-demo-1"), Path("/")), cluster(environment={"python": str(python)}))
    variables = {**os.environ, **content["runtime_env"]["env_vars"], "TMPDIR": str(tmp_path), "WAS": str(tmp_path)}
    command = ["/bin/sh", "-c", content["entrypoint"]]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == dump_config(FARM)


def test_a_training_asks_for_the_resources_of_its_node():
    config = load_config(RunConfig, "paper_1b", folder="runs", overrides=["parallel.data_parallel_size=8"])
    resources = {"gpus_per_node": 8, "cpus_per_process": 4}
    content = ray_jobs.request(Job(config, Path("/jobs/train-1"), Path("/")), cluster(resources=resources))
    assert (content["entrypoint_num_gpus"], content["entrypoint_num_cpus"]) == (8, 32)


def test_the_token_is_in_nothing_that_is_shown_or_sent(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "do-not-show-me")
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"kind": "ray", "check_paths": False, "job_dir": str(tmp_path / "jobs")}))
    words = ["demo", "--farm", "--cluster", str(path), "--dry-run", "manifest=/data/m.jsonl", "output_dir=/data/shards"]
    result = CliRunner().invoke(submit, words, catch_exceptions=False)
    assert json.loads(result.stdout)["submission_id"] == "tokenize-demo-1"
    assert "do-not-show-me" not in result.output


def test_an_address_without_a_cluster_is_named_and_leaves_no_job(tmp_path):
    job = Job(FARM, tmp_path / "tokenize-demo-1", tmp_path)
    with pytest.raises(UserError, match=r"no Ray cluster answers .*seen: http://127\.0\.0\.1:9"):
        ray_jobs.submit(job, cluster(ray={"address": "http://127.0.0.1:9"}))
    assert not job.folder.exists()
    with pytest.raises(UserError, match="no Ray cluster answers"):
        ray_jobs.cancel(Record("tokenize-demo-1", "ray", "tokenize-demo-1", "tokenize", "now", "http://127.0.0.1:9"))
