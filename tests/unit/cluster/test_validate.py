"""Wrong jobs are refused before they queue, each with its key, what was seen and what to do."""

import pytest
from refused_jobs import make_files

from uniaudio.cluster.fit import describe
from uniaudio.cluster.validate import check_job, layout_equation
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config, shipped, validate
from uniaudio.configs.run import RunConfig
from uniaudio.configs.secrets import find_secret, looks_secret

SLURM = {"kind": "slurm", "check_paths": False, "resources": {"nodes": 2, "gpus_per_node": 8}}
FARM_NODES = SLURM | {"resources": {"nodes": 2, "gpus_per_node": 8, "cpus_per_process": 12}}
CPU = {"kind": "slurm", "check_paths": False, "resources": {"nodes": 2}}


def cluster(**sections: object) -> ClusterConfig:
    return validate(ClusterConfig, sections, source="cluster.yaml")


def run(name: str = "paper_1b", *overrides: str) -> RunConfig:
    return load_config(RunConfig, name, folder="runs", overrides=overrides)


def farm(*overrides: str) -> FarmConfig:
    return load_config(FarmConfig, "demo", folder="farms", overrides=overrides)


@pytest.mark.parametrize("name", shipped("clusters"))
def test_every_shipped_cluster_loads(name):
    assert load_config(ClusterConfig, name, folder="clusters").kind == name


def test_right_jobs_pass():
    check_job(run(), cluster(**SLURM))
    check_job(farm("gpus_per_worker=1", "workers=16"), cluster(**FARM_NODES))
    assert layout_equation(run(), cluster(**SLURM))[1] == "nodes 2 x processes_per_node 8 = 16"


def test_what_a_run_needs_is_told():
    sections = SLURM | {"resources": {"nodes": 2, "gpus_per_node": 8, "gpu": "H100", "time_limit_minutes": 1440}}
    memory, time = describe(run(), cluster(**sections))
    assert memory.startswith("memory of a GPU, estimated from below: weights 1.9 + gradients 5.8 + optimizer 0.7 + activations 19.3 =")
    assert time == "time: about 40.1 h at 40% of H100's peak, 2 attempts within the limit"


def test_a_long_run_passes_where_slurm_queues_it_again():
    check_job(run(), cluster(**SLURM | {"resources": {"nodes": 2, "gpus_per_node": 8, "gpu": "H100", "time_limit_minutes": 60}}))


def test_a_checkpoint_of_the_same_model_is_no_fault(tmp_path, monkeypatch):
    make_files(tmp_path)
    words = ("data.shards=shards", "data.tasks=[tts, sound]", "model.text_width=32", "train.output_dir=old")
    monkeypatch.chdir(tmp_path)
    check_job(run("paper_1b", *words), cluster(**SLURM | {"check_paths": True}))


def test_references_to_secrets_are_none():
    assert find_secret({"setup": ["export HF_TOKEN=$MY_TOKEN", "module load cuda"]}) is None
    assert find_secret({"a": [{"b": "export HF_TOKEN=abc"}]}) == "a.0.b"


@pytest.mark.parametrize("name", ["HF_TOKEN", "apiKey", "AWS_SECRET_ACCESS_KEY", "db.password"])
def test_secret_names(name):
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "NCCL_DEBUG", "OMP_NUM_THREADS"])
def test_names_that_only_look_alike_are_allowed(name):
    assert not looks_secret(name, "https://host:80/path")
