"""A job held against its cluster before it queues: layout, devices, memory, paths, time. Pure but for looking at paths; imports no engine.

Each fault is a UserError with the key, the value seen, what is allowed and what to do.
"""

from pathlib import Path

from uniaudio.cluster.fit import check_memory, check_time
from uniaudio.cluster.inputs import check_checkpoint, check_manifest, check_shards
from uniaudio.configs.cluster import ClusterConfig, ResourcesConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.secrets import find_secret
from uniaudio.errors import UserError


def check_job(config: RunConfig | FarmConfig, cluster: ClusterConfig, *, inputs_exist: bool = True) -> None:
    """Raises UserError for the first thing that could not work; returns where the job may queue.

    `inputs_exist`: shards or manifest are there already, and not made by a job before this one.
    """
    if secret := find_secret(config.model_dump(mode="json")):
        raise UserError(
            f"{secret} holds a password, and a job's config is written down and shown",
            remedy="export it in the shell that submits, or use the store of the cluster",
        )
    if isinstance(config, RunConfig):
        _check_run(config, cluster)
        if cluster.check_paths:
            check_checkpoint(config)
        if cluster.check_paths and inputs_exist:
            check_shards(config)
    else:
        _check_farm(config, cluster)
        if cluster.check_paths and inputs_exist:
            check_manifest(config)


def layout_equation(run: RunConfig, cluster: ClusterConfig) -> tuple[str, str]:
    """Both sides with every factor: what the run needs, what the cluster starts."""
    parallel, resources = run.parallel, cluster.resources
    needs = (
        f"tensor {parallel.tensor_parallel_size} x pipeline {parallel.pipeline_parallel_size} x data {parallel.data_parallel_size}"
        f" = {parallel.world_size} processes"
    )
    starts = f"nodes {resources.nodes} x processes_per_node {resources.ranks_per_node} = {resources.nodes * resources.ranks_per_node}"
    return needs, starts


def farm_workers(farm: FarmConfig, resources: ResourcesConfig) -> int:
    """Actors of a farm over all nodes: as configured, else as many as the CPUs and GPUs that are asked for can hold."""
    if farm.workers:
        return farm.workers
    per_node = int((resources.cpus_per_node or 1) / farm.cpus_per_worker)
    if farm.gpus_per_worker:
        per_node = min(per_node, int(resources.gpus_per_node / farm.gpus_per_worker))
    return resources.nodes * per_node


def _check_run(run: RunConfig, cluster: ClusterConfig) -> None:
    if cluster.slurm.array:
        raise UserError("slurm.array is for farms", seen=cluster.slurm.array, remedy="leave it out: a training is one job")
    if cluster.kind != "local" or "resources" in cluster.model_fields_set:
        _check_layout(run, cluster)
        _check_devices(run, cluster)
    check_memory(run, cluster)
    check_time(run, cluster)
    for folder in run.data.folders:
        _check_places({"data.shards": folder, "train.output_dir": run.train.output_dir}, cluster)


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


def _check_places(places: dict[str, str], cluster: ClusterConfig) -> None:
    """Where the nodes do not share this working folder, paths must be absolute."""
    if cluster.kind not in ("ray", "kubernetes", "skypilot"):
        return
    for key, place in places.items():
        if not Path(place).is_absolute() and "://" not in place:
            raise UserError(
                f"{key} is relative, and {cluster.kind} nodes have another working folder", seen=place, remedy="an absolute path"
            )
    mounts = [volume.path for volume in cluster.kubernetes.volumes] or list(cluster.skypilot.file_mounts)
    key_of = {"kubernetes": "volume of kubernetes.volumes", "skypilot": "bucket of skypilot.file_mounts"}
    for key, place in places.items():
        if cluster.kind in key_of and "://" not in place and not any(Path(place).is_relative_to(mount) for mount in mounts):
            raise UserError(
                f"{key} lies on no {key_of[cluster.kind]}",
                seen=place,
                allowed=", ".join(mounts) or "none mounted",
                remedy="mount what holds it",
            )


def _check_farm(farm: FarmConfig, cluster: ClusterConfig) -> None:
    resources = cluster.resources
    if cluster.slurm.array and farm.part:
        raise UserError("part is set by slurm.array", seen=farm.part, remedy="leave one of the two out")
    if cluster.kind != "local" and farm.ray_address is not None:
        raise UserError("ray_address is set by the cluster's job", seen=farm.ray_address, remedy="leave it out")
    if cluster.kind in ("slurm", "kubernetes", "skypilot"):
        if farm.gpus_per_worker and not resources.gpus_per_node:
            raise UserError("gpus_per_worker on nodes without GPUs", seen=farm.gpus_per_worker, allowed="0, or set resources.gpus_per_node")
        if resources.gpus_per_node and not farm.gpus_per_worker:
            seen = f"resources.gpus_per_node {resources.gpus_per_node}"
            raise UserError("gpus_per_worker 0 would leave the GPUs unused", seen=seen, remedy="gpus_per_worker=1, or gpus_per_node: 0")
        _check_farm_workers(farm, cluster)
    places = {"manifest": farm.manifest, "output_dir": farm.output_dir}
    _check_places(places, cluster)


def _check_farm_workers(farm: FarmConfig, cluster: ClusterConfig) -> None:
    """A farm over several nodes must be able to place every worker: one that cannot be placed is waited for without end."""
    resources = cluster.resources
    if resources.nodes == 1 and cluster.kind == "slurm":
        return  # the farm counts the CPUs of its node by itself
    if resources.cpus_per_node is None:
        remedy = "set it: the CPUs asked for decide how many workers fit"
        raise UserError("a farm on a cluster of its own needs resources.cpus_per_process", seen="none", remedy=remedy)
    fitting = farm_workers(farm.model_copy(update={"workers": None}), resources)
    if not 0 < farm_workers(farm, resources) <= fitting:
        raise UserError(
            "workers do not fit the nodes",
            seen=f"workers {farm.workers or 'as many as fit'} of {farm.cpus_per_worker:g} CPUs and {farm.gpus_per_worker:g} GPUs",
            allowed=f"{fitting}: nodes {resources.nodes} x ({resources.cpus_per_node} CPUs, {resources.gpus_per_node} GPUs)",
            remedy="fewer workers, a smaller cpus_per_worker, or a larger resources.cpus_per_process",
        )
