"""One rank of a training, from its config to its exit code: puts device, layout, data, model, engine and outputs together."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from uniaudio.atomic import publish_bytes
from uniaudio.configs.load import dump_config
from uniaudio.configs.run import RunConfig
from uniaudio.configs.stages import stage_layers
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain import checkpoint, launch
from uniaudio.pretrain.checkpoint import Identity, Restored
from uniaudio.pretrain.data.loader import DataPosition, Loader, can_evaluate, make_loader
from uniaudio.pretrain.data.memory import BatchMemory
from uniaudio.pretrain.data.remote import local_folder
from uniaudio.pretrain.data.shared import AnyLoader, open_shared, reading_group
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.finished import record_finished
from uniaudio.pretrain.grow import load_initial
from uniaudio.pretrain.metrics import Clock, MetricsFile
from uniaudio.pretrain.model import adapters
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.optim import host_threads
from uniaudio.pretrain.parallel import layout as layouts
from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.parallel.tensor import choose_backend
from uniaudio.pretrain.progress import Progress
from uniaudio.pretrain.step_log import Outputs
from uniaudio.pretrain.tracking import Tracker, farm_runs, flatten, git_commit, shard_tokenizers
from uniaudio.pretrain.trainer import PREEMPTED, Trainer
from uniaudio.pretrain.watchdog import Watchdog
from uniaudio.signals import WITH_CTRL_C, stop_requests

# Keys that decide which documents stand in which row (shards and tasks do too: with others a resume is refused).
_ORDERING = (
    "data.seed", "data.frames_per_row", "data.max_documents_per_row", "data.max_text_states_per_row", "data.shards_per_block",
    "data.prompt_seconds", "data.too_long", "data.mix.",
)  # fmt: skip
logger = get_logger("train")


@dataclass
class Loaders:
    """Batches of both splits; `valid` is None where no held-out clip serves a task."""

    train: AnyLoader
    valid: AnyLoader | None

    def close(self) -> None:
        """Ends the workers of both."""
        self.train.close()
        if self.valid is not None:
            self.valid.close()


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """This rank's device; UserError where CUDA is asked for and there is none for it."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local_rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            "train.device cuda: no GPU for this process",
            seen=f"local rank {local_rank}, {count} GPUs",
            remedy="fewer processes a host, or train.device=cpu",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def set_threads(run: RunConfig, device: torch.device) -> None:
    """CPU threads of torch's operations: as configured, else the host's cores shared among its processes.

    Beside a GPU one, since what is left for the CPU is small, and many threads that wait for each other hold up the launches.
    """
    torch.set_num_threads(run.train.threads or (1 if device.type == "cuda" else launch.cores_of_a_process()))


def make_model(run: RunConfig, vocabulary: Vocabulary, layout: Layout, device: torch.device) -> MultiScaleTransformer:
    """The model of this rank, with the kernels of its device."""
    backend = choose_backend(run.model.kernels, device)
    if run.model.attention != "kernels" and not (device.type == "cuda" and run.train.precision == "bf16"):
        raise UserError(
            f"model.attention={run.model.attention} needs CUDA and bf16",
            seen=f"device {device.type}, train.precision {run.train.precision}",
            remedy="set model.attention=kernels",
        )
    products = ", products of the blocks in fp8" if run.train.fp8 else ""
    attention = backend if run.model.attention == "kernels" else run.model.attention
    logger.info("device %s, precision %s, kernels %s, global attention %s%s", device, run.train.precision, backend, attention, products)
    # Initial values are drawn on as many threads as torch may use, of which there is one beside a GPU: 7 B parameters take a minute on it.
    with host_threads(run.train.threads or launch.cores_of_a_process()):
        model = MultiScaleTransformer(
            run.model,
            vocabulary,
            num_tasks=len(run.data.tasks),
            tensor_parallel=layout.tensor,
            backend=backend,
            recompute=run.parallel.recompute,
            fp8=run.train.fp8,
            stage=stage_layers(run, vocabulary.size, layout.pipeline_rank) if layout.pipeline_size > 1 else None,
            seed=run.train.seed,
        )
    if run.finetune.active:
        adapters.prepare(model, run.finetune, seed=run.train.seed)
        counts = [sum(p.numel() for p in model.parameters() if p.requires_grad == trained) for trained in (True, False)]
        logger.info("%.3f M parameters are trained, %.1f M frozen", *(count / 1e6 for count in counts))
    return model


def make_loaders(run: RunConfig, vocabulary: Vocabulary, layout: Layout, device: torch.device) -> Loaders:
    """Train and valid loaders of this rank's data-parallel share, at the beginning of the data; of ranks with one share the first reads."""
    share: dict[str, Any] = {
        "data_parallel_rank": layout.data_parallel_rank,
        "data_parallel_size": layout.data_parallel_size,
        "gradient_accumulation": run.optim.gradient_accumulation,
    }
    share["pin"] = device.type == "cuda"

    def open_split(split: str) -> AnyLoader:
        def open_reader() -> Loader:
            return make_loader(run.data, run.model, vocabulary, split=split, **share)

        if layout.world_size == layout.data_parallel_size:
            return open_reader()
        group, source = reading_group(layout.data_parallel_size, run.parallel.tensor_parallel_size, layout.world_size)
        return open_shared(open_reader, group, source, BatchMemory(run.data, run.model), pin=share["pin"])

    return Loaders(open_split("train"), open_split("valid") if can_evaluate(run.data) else None)


def train(run: RunConfig, *, started: Callable[[], None] = lambda: None) -> int:
    """Trains as one rank of the layout (RANK and its like set); returns the exit code: 0 done, 75 stopped by a signal and saved.

    `started`: called when all ranks are here, and a signal is noted and agreed on, so that a step is finished and saved.
    """
    launch.join(run.parallel)
    device = choose_device(run.train.device)
    set_threads(run, device)
    torch.manual_seed(run.train.seed)
    layout = layouts.initialize(run.parallel, device)
    vocabulary = load_vocabulary(run.model.vocabulary, run.model.num_codebooks)
    loaders = make_loaders(run, vocabulary, layout, device)  # before the engine: faults in the data show at once
    engine = Engine(run, make_model(run, vocabulary, layout, device), layout, device=device)
    restored = _start_from(run, engine, vocabulary)
    if restored:
        _require_order(restored, engine.gather(loaders.train.order)[0])
        loaders.train.position = DataPosition(**restored.manifest["data_position"])
    if restored and restored.step >= run.train.steps:
        logger.warning("nothing to do: %s is of step %d and train.steps is %d", restored.path, restored.step, run.train.steps)
    identity = Identity(run, vocabulary, None, git_commit(), shard_tokenizers(local_folder(run.data.folders[0], run.data)))
    watchdog = Watchdog(layout.rank, layout.world_size)
    engine.greatest(0)  # a rank that a signal ends in its start is not waited for by one that would save
    with stop_requests(WITH_CTRL_C) as came:
        started()
        try:
            code = _fit(engine, identity, loaders, restored, watchdog, came)
        finally:
            loaders.close()
            engine.close()
    if layout.rank == 0 and code == 0:
        record_finished(run, run.train.steps)
    layouts.shutdown()
    return code


def _fit(engine: Engine, identity: Identity, loaders: Loaders, restored: Restored | None, watchdog: Watchdog, came: Collection[int]) -> int:
    """Trains, and writes as rank 0; returns `Trainer.fit`'s. Signals are noted already: none ends the process with its outputs open."""
    outputs = _open_outputs(identity.run, restored, identity.git_commit) if engine.layout.rank == 0 else Outputs()
    status = "FAILED"
    try:
        trainer = Trainer(
            engine,
            replace(identity, mlflow_run_id=outputs.tracker.run_id if outputs.tracker else None),
            train=loaders.train,
            valid=loaders.valid,
            outputs=outputs,
            watchdog=watchdog,
            start=restored.step if restored else 0,
            clock=Clock(**restored.manifest.get("clock", {})) if restored else None,
        )
        code = trainer.fit(came)
        status = "KILLED" if code == PREEMPTED else "FINISHED"
    finally:
        _close_outputs(outputs, status)
    return code


def _start_from(run: RunConfig, engine: Engine, vocabulary: Vocabulary) -> Restored | None:
    """The newest checkpoint of output_dir, else the weights of train.init_from, else the initial values."""
    root = Path(run.train.output_dir) / "checkpoints"
    restored = checkpoint.restore(root, engine, vocabulary) if run.train.resume else None
    if restored:
        logger.info("resumed from %s", restored.path)
        if engine.layout.rank == 0:
            _tell_differences(run, restored)
    elif run.train.init_from:
        path = load_initial(Path(run.train.init_from), engine, vocabulary)
        logger.info("weights from %s", path)
    return restored


def _tell_differences(run: RunConfig, restored: Restored) -> None:
    """What this run's config says differently from the checkpoint's."""
    before, now = flatten(checkpoint.recorded_run(restored.path, restored.manifest)), flatten(run)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    for key in changed:
        logger.warning("the checkpoint was made with %s=%s; now %s", key, before.get(key, "(unset)"), now.get(key, "(unset)"))
    if reordered := [key for key in changed if key.startswith(_ORDERING)]:
        logger.warning(
            "%s: documents stand in another order now, and the checkpoint's place in the old one is kept: some come again, others late; "
            "data.mix.schedule changes a mixture without that", ", ".join(reordered),
        )  # fmt: skip


def _require_order(restored: Restored, order: dict[str, str]) -> None:
    """UserError where the checkpoint's place in the data is one in the order of other shards, or of tasks that are defined otherwise."""
    for what, before in restored.manifest.get("data_order", {}).items():
        if before != order[what]:
            raise UserError(
                f"checkpoint {restored.path} has its place in the order of other {what}",
                seen=order[what],
                allowed=before,
                remedy=f"give it the {what} it was made with (what came since goes to a folder of its own), or begin with its weights: "
                "train.init_from, and another train.output_dir",
            )


def _open_outputs(run: RunConfig, restored: Restored | None, commit: str) -> Outputs:
    output_dir = Path(run.train.output_dir)
    publish_bytes(output_dir / "config.yaml", dump_config(run).encode())
    tags = {"git_commit": commit, **farm_runs(local_folder(run.data.folders[0], run.data))}
    start = restored.step if restored else 0
    file = MetricsFile(output_dir / "metrics.jsonl", resume_step=start)  # before the run of MLflow: it may refuse what it finds
    tracker = Tracker(run, run_id=restored.manifest["mlflow_run_id"] if restored else None, tags=tags)
    return Outputs(tracker, file, Progress(run.train.steps, start))


def _close_outputs(outputs: Outputs, status: str) -> None:
    if outputs.progress:
        outputs.progress.close()
    if outputs.file:
        outputs.file.close()
    if outputs.tracker:
        outputs.tracker.finish(status)
