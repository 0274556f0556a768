"""`uniaudio submit` to this machine, and the job's folder."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from uniaudio.cluster.cli import submit
from uniaudio.cluster.job import Job, create_folder, plan_job, read_record, read_records, write_record
from uniaudio.cluster.local import run
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder that looks like one of shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "train-000000.json").write_text(json.dumps({"tokenizers": {"audio": "codec/1"}}))
    return folder


@pytest.fixture
def cluster_file(tmp_path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"kind: local\ncheck_paths: false\njob_dir: {tmp_path / 'jobs'}\n")
    return path


def test_dry_run_prints_a_command_that_parses_back_and_writes_nothing(shards, cluster_file, tmp_path):
    words = ["demo_cpu", "--cluster", str(cluster_file), f"data.shards={shards}", "train.output_dir=a b", "--dry-run"]
    result = CliRunner().invoke(submit, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert shlex.split(result.stdout) == [sys.executable, "-m", "uniaudio", "train", f"{tmp_path}/jobs/train-demo-cpu-1/config.yaml"]
    assert "layout: tensor 2 x pipeline 1 x data 1 = 2 processes\n" in result.stderr
    assert not (tmp_path / "jobs").exists()


def test_job_runs_its_frozen_config_and_passes_its_exit_code_on(shards, cluster_file, tmp_path, capfd):
    """The shard is empty of clips, so the training itself refuses it: with exit code 2, on the terminal and in the folder."""
    words = ["demo_cpu", "--cluster", str(cluster_file), f"data.shards={shards}", f"train.output_dir={tmp_path}/run"]
    with pytest.raises(SystemExit) as ended:
        submit.main([*words, "parallel.tensor_parallel_size=1"], standalone_mode=False)
    folder = tmp_path / "jobs" / "train-demo-cpu-1"
    assert ended.value.code == 2
    assert "uniaudio: error:" in capfd.readouterr().out
    assert "uniaudio: error:" in (folder / "output.log").read_text()
    assert load_config(RunConfig, folder / "config.yaml", folder="runs").parallel.tensor_parallel_size == 1
    assert read_record(folder).kind == "local"


def test_names_count_up_and_records_list_in_order(tmp_path):
    config = load_config(RunConfig, "demo_cpu", folder="runs")
    for number in (1, 2):
        job = plan_job(config, "My Run_é", tmp_path)
        assert job.name == f"train-my-run-{number}"
        create_folder(job)
        write_record(job, kind="local", id=str(number))
    assert [record.id for record in read_records(tmp_path)] == ["1", "2"]
    with pytest.raises(UserError, match="another submission"):
        create_folder(job)


def test_unknown_and_damaged_records_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no such job \| seen: train-x-1 \| allowed: none yet"):
        read_record(tmp_path / "train-x-1")
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(UserError, match="record is damaged"):
        read_record(tmp_path)


def test_a_farm_is_a_job_too(tmp_path):
    farm = load_config(FarmConfig, "demo", folder="farms")
    job = plan_job(farm, "demo", tmp_path)
    assert job.argv("py") == ["py", "-m", "uniaudio", "tokenize", str(job.config_file)]


def test_a_job_whose_interpreter_is_missing_fails_loudly(tmp_path):
    cluster = ClusterConfig.model_validate({"job_dir": str(tmp_path), "environment": {"python": "/no/such/python"}})
    job = Job(load_config(RunConfig, "demo_cpu", folder="runs"), tmp_path / "train-x-1", tmp_path)
    with pytest.raises(FileNotFoundError):
        run(job, cluster)
