"""A job held against its cluster before it queues: layout, devices, memory, paths, time. Pure but for looking at paths; imports no engine.

Each fault is a UserError with the key, the value seen, what is allowed and what to do.
"""

import json
from pathlib import Path

from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

_RESERVED_GB = 2.0  # CUDA context, NCCL buffers, fragmentation: never there for weights


def check_job(config: RunConfig | FarmConfig, cluster: ClusterConfig, *, inputs_exist: bool = True) -> None:
    """Raises UserError for the first thing that could not work; returns where the job may queue.

    `inputs_exist`: shards or manifest are there already, and not made by a job before this one.
    """
    look = cluster.check_paths and inputs_exist
    if isinstance(config, RunConfig):
        _check_run(config, cluster)
        if look:
            _check_shards(config)
    else:
        _check_farm(config, cluster)
        if look:
            _check_manifest(config)


def layout_equation(run: RunConfig, cluster: ClusterConfig) -> tuple[str, str]:
    """Both sides with every factor: what the run needs, what the cluster starts."""
    parallel, resources = run.parallel, cluster.resources
    needs = (
        f"tensor {parallel.tensor_parallel_size} x pipeline {parallel.pipeline_parallel_size} x data {parallel.data_parallel_size}"
        f" = {parallel.world_size} processes"
    )
    starts = f"nodes {resources.nodes} x processes_per_node {resources.ranks_per_node} = {resources.nodes * resources.ranks_per_node}"
    return needs, starts


def state_gb(run: RunConfig) -> float:
    """Weights, gradients and Adam's moments on one GPU, in GB: a lower bound, without activations, embeddings of positions and biases."""
    model, parallel = run.model, run.parallel
    blocks = (model.global_layers + model.local_layers) * (4 * model.width**2 + 2 * model.width * model.ffn_width)
    share = parallel.data_parallel_size
    weights, gradients, optimizer = (2.0, 2.0, 12.0) if run.train.precision == "bf16" else (4.0, 4.0, 8.0)
    if parallel.zero_stage >= 1:
        optimizer /= share
    if parallel.zero_stage >= 2:
        gradients /= share
    if parallel.zero_stage >= 3:
        weights /= share
    return blocks * (weights + gradients + optimizer) / (parallel.tensor_parallel_size * parallel.pipeline_parallel_size) / 1e9


def _check_run(run: RunConfig, cluster: ClusterConfig) -> None:
    if cluster.kind != "local" or "resources" in cluster.model_fields_set:
        _check_layout(run, cluster)
        _check_devices(run, cluster)
    _check_memory(run, cluster)
    _check_places({"data.shards": run.data.shards, "train.output_dir": run.train.output_dir}, cluster)


def _check_layout(run: RunConfig, cluster: ClusterConfig) -> None:
    needs, starts = layout_equation(run, cluster)
    parallel, resources = run.parallel, cluster.resources
    total = resources.nodes * resources.ranks_per_node
    if parallel.world_size != total:
        rest = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        remedy = f"parallel.data_parallel_size={total // rest}" if total % rest == 0 else "another layout, or other resources"
        raise UserError("the layout does not fill the cluster's resources", seen=needs, allowed=starts, remedy=remedy)
    if resources.ranks_per_node % parallel.tensor_parallel_size and parallel.tensor_parallel_size > 1:
        raise UserError(
            "parallel.tensor_parallel_size: a tensor-parallel group would cross nodes",
            seen=needs,
            allowed=f"a divisor of processes_per_node {resources.ranks_per_node}",
            remedy="tensor parallelism inside a node, pipeline and data between nodes",
        )


def _check_devices(run: RunConfig, cluster: ClusterConfig) -> None:
    resources = cluster.resources
    if run.train.device == "cuda" and not resources.gpus_per_node:
        raise UserError("train.device cuda on nodes without GPUs", seen="resources.gpus_per_node 0", remedy="set it, or train.device=cpu")
    if run.train.device == "cpu" and resources.gpus_per_node:
        seen = f"resources.gpus_per_node {resources.gpus_per_node}"
        raise UserError(
            "train.device cpu would leave the GPUs of the nodes unused", seen=seen, remedy="train.device=cuda, or gpus_per_node: 0"
        )
    if resources.gpus_per_node and resources.ranks_per_node != resources.gpus_per_node:
        raise UserError(
            "resources.processes_per_node is not the number of GPUs",
            seen=resources.ranks_per_node,
            allowed=resources.gpus_per_node,
            remedy="leave processes_per_node out: one process a GPU",
        )
    if run.parallel.backend == "nccl" and not resources.gpus_per_node:
        raise UserError("parallel.backend nccl on nodes without GPUs", seen="resources.gpus_per_node 0", allowed="auto, gloo")


def _check_memory(run: RunConfig, cluster: ClusterConfig) -> None:
    memory = cluster.resources.gpu_memory_gb
    if memory is None or run.train.device == "cpu":
        return
    needed = state_gb(run)
    if needed > memory - _RESERVED_GB:
        raise UserError(
            "the model's weights, gradients and optimizer state alone do not fit on a GPU",
            seen=f"{needed:.1f} GB (precision {run.train.precision}, zero_stage {run.parallel.zero_stage}), without activations",
            allowed=f"resources.gpu_memory_gb {memory:g} less {_RESERVED_GB:g}",
            remedy="more tensor or pipeline parallelism, or a higher parallel.zero_stage",
        )


def _check_places(places: dict[str, str], cluster: ClusterConfig) -> None:
    """Where the nodes do not share this working folder, paths must be absolute."""
    if cluster.kind not in ("ray", "kubernetes"):
        return
    for key, place in places.items():
        if not Path(place).is_absolute() and "://" not in place:
            raise UserError(
                f"{key} is relative, and {cluster.kind} nodes have another working folder", seen=place, remedy="an absolute path"
            )
    mounts = [volume.path for volume in cluster.kubernetes.volumes]
    for key, place in places.items():
        if cluster.kind == "kubernetes" and not any(Path(place).is_relative_to(mount) for mount in mounts):
            raise UserError(f"{key} lies on no volume of kubernetes.volumes", seen=place, allowed=", ".join(mounts) or "none mounted")


def _check_shards(run: RunConfig) -> None:
    folder = Path(run.data.shards)
    if not folder.is_dir():
        remedy = "make them with `uniaudio tokenize`, or check_paths: false where this machine does not see the nodes' files"
        raise UserError("data.shards: no such folder", seen=folder, remedy=remedy)
    sidecars = sorted(folder.glob("train-*.json"))
    if not sidecars:
        raise UserError(
            "data.shards holds no published training shard (train-*.json)", seen=folder, remedy="run `uniaudio tokenize` to its end"
        )
    tokenizers = json.loads(sidecars[0].read_text(encoding="utf-8")).get("tokenizers", {})
    if "audio" not in tokenizers:
        raise UserError("the shards hold no audio codes", seen=", ".join(tokenizers) or "no view", remedy="a farm with the view audio")


def _check_farm(farm: FarmConfig, cluster: ClusterConfig) -> None:
    resources = cluster.resources
    if cluster.kind != "local" and farm.ray_address is not None:
        raise UserError("ray_address is set by the cluster's job", seen=farm.ray_address, remedy="leave it out")
    if cluster.kind in ("slurm", "kubernetes"):
        if farm.gpus_per_worker and not resources.gpus_per_node:
            raise UserError("gpus_per_worker on nodes without GPUs", seen=farm.gpus_per_worker, allowed="0, or set resources.gpus_per_node")
        if resources.gpus_per_node and not farm.gpus_per_worker:
            seen = f"resources.gpus_per_node {resources.gpus_per_node}"
            raise UserError("gpus_per_worker 0 would leave the GPUs unused", seen=seen, remedy="gpus_per_worker=1, or gpus_per_node: 0")
        gpus = resources.nodes * resources.gpus_per_node
        if farm.workers and farm.workers * farm.gpus_per_worker > gpus:
            seen = f"workers {farm.workers} x gpus_per_worker {farm.gpus_per_worker:g}"
            raise UserError("more workers than GPUs: they would wait for ever", seen=seen, allowed=f"{gpus} GPUs")
    places = {"manifest": farm.manifest, "output_dir": farm.output_dir}
    _check_places(places, cluster)


def _check_manifest(farm: FarmConfig) -> None:
    if not Path(farm.manifest).is_file():
        remedy = "`uniaudio corpus manifest` writes one, or check_paths: false where this machine does not see the nodes' files"
        raise UserError("manifest: no such file", seen=farm.manifest, remedy=remedy)
