"""Wrong jobs are refused before they queue, each with its key, what was seen and what to do."""

import json

import pytest
import torch

from uniaudio.cluster.validate import check_job, layout_equation, state_gb
from uniaudio.configs.cluster import ClusterConfig, looks_secret
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config, shipped, validate
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.model.model import MultiScaleTransformer

SLURM = {"kind": "slurm", "check_paths": False, "resources": {"nodes": 2, "gpus_per_node": 8}}
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


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"kind": "lsf"}, r"kind: .*'local', 'slurm', 'ray' or 'kubernetes' \| seen: lsf"),
        ({"knid": "slurm"}, r"unknown key knid .*allowed: .*kind"),
        ({"kind": "slurm", "slurm": {"partitoin": "gpu"}}, r"unknown key slurm\.partitoin .*allowed: .*partition"),
        ({"kind": "slurm", "ray": {}}, "section ray given, but kind is slurm"),
        ({"slurm": {"partition": "gpu"}}, "section slurm given, but kind is local"),
        ({"kind": "slurm", "slurm": {"partition": "gpu; rm -rf /"}}, r"slurm\.partition: .*pattern"),
        ({"kind": "slurm", "slurm": {"extra": ["--nodes=4"]}}, r"extra: --nodes is set by resources\.nodes"),
        ({"kind": "slurm", "slurm": {"extra": ["-p gpu"]}}, "extra: '-p gpu' is no long option"),
        ({"kind": "slurm", "slurm": {"extra": ["--comment=a\nrm -rf /"]}}, r"slurm\.extra\.0: .*no line breaks"),
        ({"kind": "slurm", "slurm": {"srun_extra": ["rm"]}}, "srun_extra: 'rm' is no long option"),
        ({"kind": "slurm", "slurm": {"master_port": 80}}, r"slurm\.master_port: .*1024"),
        ({"kind": "slurm", "resources": {"nodes": 0}}, r"resources\.nodes: .*greater than or equal to 1 \| seen: 0"),
        (
            {"kind": "slurm", "resources": {"time_limit_minutes": 5}},
            "time_limit_minutes 5 leaves no time to work: slurm.signal_seconds is 300",
        ),
        ({"environment": {"variables": {"WANDB_API_KEY": "x"}}}, "WANDB_API_KEY looks like a secret"),
        ({"environment": {"variables": {"DATABASE": "https://me:pass@host/"}}}, "DATABASE looks like a secret"),
        ({"environment": {"variables": {"A B": "x"}}}, "pattern"),
        ({"kind": "slurm", "environment": {"variables": {"A": "x\ny"}}}, "no line breaks"),
        ({"kind": "slurm", "environment": {"wheelhouse": "/w"}}, "wheelhouse needs python"),
        ({"kind": "slurm", "environment": {"container_mounts": ["/a:/a"]}}, "container_mounts without container"),
        ({"environment": {"container": "image"}}, "kind local runs in the environment that is there"),
        ({"kind": "ray", "resources": {"nodes": 2}}, r"resources\.nodes 2: kind ray starts a job on one node"),
        ({"kind": "ray", "ray": {"address": "http://user:pw@host:8265"}}, r"ray\.address: .*pattern"),
        ({"kind": "kubernetes"}, r"kind kubernetes needs environment\.container"),
        (
            {"kind": "kubernetes", "environment": {"container": "i"}, "kubernetes": {"volumes": [{"claim": "c", "path": "data"}]}},
            r"kubernetes\.volumes\.0\.path: .*pattern",
        ),
    ],
)
def test_wrong_cluster_config_is_refused_with_its_key(sections, message):
    with pytest.raises(UserError, match=message):
        cluster(**sections)


@pytest.mark.parametrize(
    ("sections", "config", "message"),
    [
        (
            SLURM,
            run("paper_1b", "parallel.data_parallel_size=8"),
            r"seen: tensor 1 x pipeline 1 x data 8 = 8 processes \| allowed: nodes 2 x processes_per_node 8 = 16 .*data_parallel_size=16",
        ),
        (SLURM, run("paper_1b", "parallel.pipeline_parallel_size=3"), r"pipeline 3 x data 16 = 48 .*remedy: another layout"),
        (
            SLURM | {"resources": {"nodes": 4, "gpus_per_node": 2}},
            run("paper_1b", "parallel.tensor_parallel_size=4", "parallel.data_parallel_size=2"),
            r"a tensor-parallel group would cross nodes .*divisor of processes_per_node 2",
        ),
        (CPU, run("paper_1b", "parallel.data_parallel_size=2"), r"train\.device cuda on nodes without GPUs"),
        (SLURM, run("paper_1b", "train.device=cpu"), r"train\.device cpu would leave the GPUs .*gpus_per_node 8"),
        (
            SLURM | {"resources": {"nodes": 2, "gpus_per_node": 4, "processes_per_node": 8}},
            run(),
            r"resources\.processes_per_node is not the number of GPUs \| seen: 8 \| allowed: 4",
        ),
        (
            CPU,
            run("paper_1b", "train.device=auto", "parallel.backend=nccl", "parallel.data_parallel_size=2"),
            r"parallel\.backend nccl on nodes without GPUs",
        ),
        (
            SLURM | {"resources": {"nodes": 2, "gpus_per_node": 8, "gpu_memory_gb": 24}},
            run(
                "large_7b",
                "parallel.tensor_parallel_size=1",
                "parallel.pipeline_parallel_size=1",
                "parallel.data_parallel_size=16",
                "parallel.zero_stage=1",
            ),
            r"do not fit on a GPU .*gpu_memory_gb 24 .*zero_stage",
        ),
        ({"kind": "ray", "check_paths": False}, run("demo_cpu", "parallel.tensor_parallel_size=1"), r"data\.shards is relative"),
        (
            {"kind": "kubernetes", "check_paths": False, "environment": {"container": "i"}},
            run("demo_cpu", "parallel.tensor_parallel_size=1", "data.shards=/data/s", "train.output_dir=/data/o"),
            r"data\.shards lies on no volume .*none mounted",
        ),
        ({"check_paths": True}, run("demo_cpu", "data.shards=/no/such"), r"data\.shards: no such folder .*uniaudio tokenize"),
        (CPU, farm("ray_address=1.2.3.4:6379"), "ray_address is set by the cluster's job"),
        (CPU, farm("gpus_per_worker=1"), r"gpus_per_worker on nodes without GPUs \| seen: 1\.0"),
        (SLURM, farm(), r"gpus_per_worker 0 would leave the GPUs unused"),
        (SLURM, farm("gpus_per_worker=1", "workers=17"), r"workers 17 x gpus_per_worker 1 .*allowed: 16 GPUs"),
        ({"check_paths": True}, farm("manifest=/no/such"), "manifest: no such file"),
    ],
)
def test_wrong_job_never_queues(sections, config, message):
    with pytest.raises(UserError, match=message):
        check_job(config, cluster(**sections))


@pytest.mark.parametrize(
    ("sidecar", "message"), [(None, "no published training shard"), ({"tokenizers": {"midi": "f0/1"}}, "no audio codes .*seen: midi")]
)
def test_shards_that_cannot_be_trained_on_are_refused(sidecar, message, tmp_path):
    if sidecar:
        (tmp_path / "train-000000.json").write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match=message):
        check_job(run("demo_cpu", f"data.shards={tmp_path}"), cluster())


def test_right_jobs_pass():
    check_job(run(), cluster(**SLURM))
    check_job(farm("gpus_per_worker=1", "workers=16"), cluster(**SLURM))
    assert layout_equation(run(), cluster(**SLURM))[1] == "nodes 2 x processes_per_node 8 = 16"


def test_memory_is_a_close_lower_bound_of_the_real_parameters():
    """16 bytes a parameter in fp32 without ZeRO: 4 of weight, 4 of gradient, 8 of Adam."""
    config = run("paper_1b", "parallel.zero_stage=0", "train.precision=fp32")
    with torch.device("meta"):
        model = MultiScaleTransformer(config.model, load_vocabulary("paper", 3), seed=None)
    real = 16 * sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert 0.95 * real < state_gb(config) < real
    assert state_gb(run("paper_1b", "parallel.zero_stage=3", "parallel.data_parallel_size=16")) == pytest.approx(state_gb(config) / 16)


@pytest.mark.parametrize("name", ["HF_TOKEN", "apiKey", "AWS_SECRET_ACCESS_KEY", "db.password"])
def test_secret_names(name):
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "NCCL_DEBUG", "OMP_NUM_THREADS"])
def test_names_that_only_look_alike_are_allowed(name):
    assert not looks_secret(name, "https://host:80/path")
