"""`uniaudio submit` to this machine."""

import shlex

import pytest
from click.testing import CliRunner

from uniaudio.cluster.cli import submit
from uniaudio.cluster.local import Job, check_environment, render, run
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.errors import UserError


def test_dry_run_prints_a_command_that_parses_back(tmp_path):
    result = CliRunner().invoke(submit, ["demo_cpu", "train.steps=7", "train.output_dir=a b", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert shlex.split(result.output)[-2:] == ["train.steps=7", "train.output_dir=a b"]


def test_wrong_config_is_refused_before_anything_starts():
    with pytest.raises(UserError, match="tensor_parallel_size"):
        CliRunner().invoke(submit, ["demo_cpu", "parallel.tensor_parallel_size=3"], catch_exceptions=False)


def test_secret_in_cluster_config_is_refused():
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        check_environment({"WANDB_API_KEY": "x"})


def test_job_output_lands_in_terminal_and_log(tmp_path, capfd):
    job = Job("config", "demo_cpu", ("train.steps=5",))
    assert run(job, ClusterConfig(log_dir=str(tmp_path))) == 0
    assert "steps: 5" in (tmp_path / "config-demo_cpu.log").read_text()
    assert "steps: 5" in capfd.readouterr().out


def test_failing_job_passes_its_exit_code_on(tmp_path):
    assert run(Job("config", "no_such_run"), ClusterConfig(log_dir=str(tmp_path))) == 2


def test_render_quotes_words():
    assert render(Job("train", "a b.yaml")).endswith("train 'a b.yaml'")
