"""Wrong jobs as a user would write them: (what is wrong, cluster config, words of `uniaudio submit`); `make_files` makes what they name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from random_shards import write_random_shards

from uniaudio.configs.vocabulary import load_table
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard

Case = tuple[str, dict[str, Any], list[str]]
GPUS = {"kind": "slurm", "resources": {"nodes": 2, "gpus_per_node": 8, "cpus_per_process": 12}}
CPUS = {"kind": "slurm", "resources": {"nodes": 2}}
KUBERNETES = {"kind": "kubernetes", "environment": {"container": "image"}, "check_paths": False}
RUN = ["paper_1b", "data.shards=shards", "data.tasks=[tts, sound]", "model.text_width=32"]
FARM = ["demo", "--farm", "manifest=manifest.jsonl", "output_dir=out"]


def gpus(**resources: Any) -> dict[str, Any]:
    return {**GPUS, "resources": {**GPUS["resources"], **resources}}


def slurm(**settings: Any) -> dict[str, Any]:
    return {**GPUS, "slurm": settings}


CLUSTERS: list[Case] = [
    ("a kind of target that there is not", {"kind": "lsf"}, RUN),
    ("a key written wrongly", {"knid": "slurm"}, RUN),
    ("a key of a section written wrongly", slurm(partitoin="gpu"), RUN),
    ("a section of another kind", {"kind": "slurm", "ray": {}}, RUN),
    ("a shell command in a directive", slurm(partition="gpu; rm -rf /"), RUN),
    ("a directive given twice", slurm(extra=["--nodes=4"]), RUN),
    ("a short option", slurm(extra=["-p gpu"]), RUN),
    ("a line break in a directive", slurm(extra=["--comment=a\nrm -rf /"]), RUN),
    ("a word that is no option of srun", slurm(srun_extra=["rm"]), RUN),
    ("a port that only root may open", slurm(master_port=80), RUN),
    ("no node", gpus(nodes=0), RUN),
    ("a limit that the signal eats up", gpus(time_limit_minutes=5), RUN),
    ("a token in a variable", {**GPUS, "environment": {"variables": {"WANDB_API_KEY": "x"}}}, RUN),
    ("a password in a URL", {**GPUS, "environment": {"variables": {"STORE": "https://me:pass@host/"}}}, RUN),
    ("a token in a line of setup", {**GPUS, "environment": {"setup": ["export HF_TOKEN=abc"]}}, RUN),
    ("wheels without an interpreter", {**GPUS, "environment": {"wheelhouse": "/wheels"}}, RUN),
    ("mounts without a container", {**GPUS, "environment": {"container_mounts": ["/a:/a"]}}, RUN),
    ("a container on this machine", {"environment": {"container": "image"}}, RUN),
    ("a Ray job on several nodes", {"kind": "ray", "resources": {"nodes": 2}}, RUN),
    ("a password in Ray's address", {"kind": "ray", "ray": {"address": "http://user:pw@host:8265"}}, RUN),
    ("Kubernetes without an image", {"kind": "kubernetes"}, RUN),
    ("a relative mount", {**KUBERNETES, "kubernetes": {"volumes": [{"claim": "c", "path": "data"}]}}, RUN),
    ("an array of nodes", {"kind": "slurm", "resources": {"nodes": 2}, "slurm": {"array": 4}}, FARM),
    ("a GPU without a name in a cloud", {"kind": "skypilot", "resources": {"gpus_per_node": 8}}, RUN),
]
JOBS: list[Case] = [
    ("too few processes for the nodes", GPUS, [*RUN, "parallel.data_parallel_size=8"]),
    ("a layout that no data-parallel size saves", GPUS, [*RUN, "parallel.pipeline_parallel_size=3"]),
    (
        "a tensor-parallel group over two nodes",
        {"kind": "slurm", "resources": {"nodes": 4, "gpus_per_node": 2}},
        [*RUN, "parallel.tensor_parallel_size=4", "parallel.data_parallel_size=2"],
    ),
    ("CUDA on nodes without GPUs", CPUS, [*RUN, "parallel.data_parallel_size=2"]),
    ("GPUs that nobody would use", GPUS, [*RUN, "train.device=cpu"]),
    ("two processes a GPU", gpus(gpus_per_node=4, processes_per_node=8), RUN),
    ("NCCL without GPUs", CPUS, [*RUN, "train.device=auto", "parallel.backend=nccl", "parallel.data_parallel_size=2"]),
    (
        "states that do not fit on a GPU",
        gpus(gpu_memory_gb=24),
        ["large_7b", *RUN[1:], "parallel.tensor_parallel_size=1", "parallel.data_parallel_size=16"],
    ),
    ("activations that do not fit on a GPU", gpus(gpu_memory_gb=80), [*RUN, "data.rows_per_micro_batch=32"]),
    ("a run longer than its limit, not queued again", {**gpus(gpu="H100", time_limit_minutes=600), "slurm": {"requeue": False}}, RUN),
    ("a limit that is over before the first step", {**gpus(gpu="H100", time_limit_minutes=3), "slurm": {"signal_seconds": 60}}, RUN),
    (
        "a training as a job array",
        {"kind": "slurm", "resources": {"gpus_per_node": 1}, "slurm": {"array": 4}},
        [*RUN, "parallel.data_parallel_size=1"],
    ),
    ("no such folder of shards", GPUS, [*RUN, "data.shards=elsewhere"]),
    ("a folder without shards", GPUS, [*RUN, "data.shards=empty"]),
    ("shards without what a task needs", GPUS, [*RUN, "data.tasks=[s_edit, se]", "data.shards=music_only"]),
    ("shards of fewer levels than the model", GPUS, [*RUN, "model.num_codebooks=4"]),
    ("text states of another width", GPUS, [*RUN, "model.text_width=768"]),
    ("a damaged index of a shard", GPUS, [*RUN, "data.shards=damaged"]),
    ("a checkpoint of another vocabulary", GPUS, [*RUN, "train.output_dir=old", "model.vocabulary=released"]),
    ("a checkpoint of another model", GPUS, [*RUN, "train.output_dir=old", "model.global_layers=12"]),
    ("a relative path on a Ray cluster", {"kind": "ray", "check_paths": False}, ["demo_cpu", "parallel.tensor_parallel_size=1"]),
    ("a path on no volume", KUBERNETES, ["demo_cpu", "parallel.tensor_parallel_size=1", "data.shards=/data/s", "train.output_dir=/data/o"]),
    ("a password in the path of the shards", GPUS, [*RUN, "data.shards=https://me:pass@host/shards"]),
    ("the address of a cluster that the job starts itself", CPUS, [*FARM, "ray_address=1.2.3.4:6379"]),
    ("GPU workers without GPUs", CPUS, [*FARM, "gpus_per_worker=1"]),
    ("a farm that would leave the GPUs unused", GPUS, FARM),
    (
        "a farm of several nodes that does not know its CPUs",
        {"kind": "slurm", "resources": {"nodes": 2, "gpus_per_node": 8}},
        [*FARM, "gpus_per_worker=1"],
    ),
    ("more workers than fit", GPUS, [*FARM, "gpus_per_worker=1", "workers=17"]),
    ("workers larger than a node", GPUS, [*FARM, "gpus_per_worker=1", "cpus_per_worker=97"]),
    ("a part of a part", {"kind": "slurm", "slurm": {"array": 4}}, [*FARM, "part=0/2"]),
    ("no such manifest", {"kind": "slurm"}, [*FARM, "manifest=elsewhere.jsonl"]),
    ("a manifest that is none", {"kind": "slurm"}, [*FARM, "manifest=notes.jsonl"]),
    (
        "a dependency on another kind of target",
        {"kind": "ray", "check_paths": False},
        [*FARM, "manifest=/m.jsonl", "output_dir=/o", "--after", "tokenize-demo-1"],
    ),
]


def make_files(folder: Path) -> None:
    """Shards, checkpoint and manifests that the cases name, below the folder that they run in."""
    sizes = {"codebooks": 3, "text_width": 32, "frames": (20, 30)}
    write_random_shards(folder / "shards", clips=6, valid_clips=0, **sizes)
    write_random_shards(folder / "damaged", clips=6, valid_clips=0, **sizes)
    (folder / "damaged" / "train-000000.index.npz").write_bytes(b"half")
    (folder / "empty").mkdir()
    clip = TokenizedClip("a", {"id": "a", "kind": "music", "seconds": 1.0}, {"audio": np.zeros((50, 3), np.uint16)})
    write_shard(folder / "music_only", "train", 0, [clip], tokenizers={"audio": "random/1"})
    (folder / "manifest.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    (folder / "notes.jsonl").write_text('{"audio_filepath": "a.wav"}\nremember the milk\n')
    table = load_table("paper")
    numbering = {"reserved": table.reserved, "specials": table.specials, "mask": table.audio_mask, "ranges": table.ranges(3)}
    model = {"width": 1536, "num_heads": 12, "ffn_width": 6144, "global_layers": 24, "local_layers": 8, "max_positions": 3000}
    model |= {"text_width": 32, "embedding": "sum", "link": "shared"}
    step = folder / "old" / "checkpoints" / "step-00000010"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text(json.dumps({"vocabulary": {"table": numbering}, "config": {"model": model}}))
