"""A tiny run and batches made from integers: step and row decide every code, so all layouts see the same global batch."""

import hashlib
import resource
import time
from pathlib import Path
from typing import Any

import recorded_graphs
import torch

from uniaudio.configs.run import RunConfig
from uniaudio.pretrain import checkpoint, checkpoint_writer
from uniaudio.pretrain.checkpoint import Identity
from uniaudio.pretrain.checkpoint_writer import CheckpointWriter
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.graphs import GraphedLayers
from uniaudio.pretrain.grow import load_initial
from uniaudio.pretrain.optim import learning_rate
from uniaudio.pretrain.parallel import layout as layouts
from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.train import make_model

ROWS, FRAMES, DOCUMENTS, STATES, WIDTH = 4, 24, 4, 4, 32


def tiny_run(
    output_dir: Path | str,
    *,
    rows: int = ROWS,
    accumulation: int = 1,
    zero: int = 0,
    precision: str = "fp32",
    finetune: dict[str, Any] | None = None,
    init_from: str | None = None,
    **parallel: Any,
) -> RunConfig:
    """A run of rows x accumulation x data_parallel_size rows a step."""
    model = {
        "width": 32,
        "num_heads": 2,
        "ffn_width": 64,
        "global_layers": 3,
        "local_layers": 1,
        "max_positions": 64,
        "text_width": WIDTH,
        "kernels": "torch",
    }
    data = {"shards": "unused", "tasks": ["tts", "sound"], "frames_per_row": FRAMES, "rows_per_micro_batch": rows}
    return RunConfig.model_validate(
        {
            "model": model,
            "data": data,
            "parallel": {"zero_stage": zero, **parallel},
            "optim": {"lr": 0.01, "warmup_steps": 2, "weight_decay": 0.1, "clip_norm": 0.5, "gradient_accumulation": accumulation},
            "finetune": finetune or {},
            "train": {
                "output_dir": str(output_dir),
                "steps": 20,
                "device": "cpu",
                "precision": precision,
                "keep_checkpoints": 2,
                "init_from": init_from,
            },
        }
    )


def global_batch(step: int, rows: int) -> Batch:
    """Rows 0..rows-1 of a step: documents of unequal length, a different number of targets in every row, text states in some."""
    batches = [_row(step, row) for row in range(rows)]
    return Batch(*(torch.cat(parts) for parts in zip(*(batch.as_tuple() for batch in batches))))


def _row(step: int, row: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 * step + row)
    cut = 5 + int(torch.randint(0, 12, (), generator=generator))
    codes = torch.randint(128, 700, (1, FRAMES, 3), generator=generator)
    codes[:, FRAMES - 2 :] = 0
    starts = torch.full((1, DOCUMENTS), FRAMES, dtype=torch.int32)
    starts[0, :3] = torch.tensor([0, cut, FRAMES - 2])
    positions = torch.cat([torch.arange(cut), torch.arange(FRAMES - 2 - cut), torch.arange(2)])[None].int()
    mask = torch.zeros((1, FRAMES, 3), dtype=torch.int8)
    mask[:, 3:cut] = 1
    mask[:, cut + 2 : FRAMES - 2 - row] = 1
    tasks = torch.full((1, DOCUMENTS), -1, dtype=torch.int32)
    tasks[0, :2] = torch.tensor([row % 2, (row + step) % 2])
    states = torch.zeros(1, STATES, WIDTH)
    places = torch.full((1, STATES), -1, dtype=torch.int32)
    if row % 2:
        states[0, :2], places[0, :2] = torch.randn(2, WIDTH, generator=generator), torch.tensor([1, 2], dtype=torch.int32)
    return Batch(codes, mask, starts, torch.zeros_like(starts), positions, states, places, tasks)


def rank_batches(run: RunConfig, layout: Layout, step: int) -> list[Batch]:
    """This rank's micro-batches of a step, cut from the global batch."""
    rows, size, count = run.data.rows_per_micro_batch, layout.data_parallel_size, run.optim.gradient_accumulation
    whole = global_batch(step, rows * size * count)
    first = [(micro * size + layout.data_parallel_rank) * rows for micro in range(count)]
    return [Batch(*(tensor[start : start + rows] for tensor in whole.as_tuple())) for start in first]


def make_engine(run: RunConfig) -> Engine:
    """The engine of this rank (environment set)."""
    device = torch.device("cpu")
    layout = layouts.initialize(run.parallel, device)
    vocabulary = load_vocabulary(run.model.vocabulary, run.model.num_codebooks)
    return Engine(run, make_model(run, vocabulary, layout, device), layout, device=device)


def step_once(run: RunConfig, engine: Engine, step: int) -> dict[str, Any]:
    """Step `step` (1 is the first)."""
    statistics = engine.train_step(rank_batches(run, engine.layout, step), learning_rate=learning_rate(run.optim, step, run.train.steps))
    sums, counts = statistics.loss_sums_KQ, statistics.counts_KQ
    norm = float(statistics.gradient_norm) if statistics.gradient_norm is not None else None
    return {"loss": float(sums.sum() / counts.sum()), "sums": sums.tolist(), "counts": counts.tolist(), "norm": norm}


def identity(run: RunConfig) -> Identity:
    """What its checkpoints say."""
    return Identity(run, load_vocabulary(run.model.vocabulary, run.model.num_codebooks), "run-1", "commit-1")


def poisoned(*, config: dict[str, Any]) -> dict[str, Any]:
    """Two steps, one of which one rank's batch is not finite, and another: is every parameter what it was after the bad one?"""
    run = RunConfig.model_validate(config)
    engine = make_engine(run)

    def weights() -> list[torch.Tensor]:
        engine.state.link()
        return [engine.state.read(slot)["weight"].clone() for slot in engine.slots]

    good = [step_once(run, engine, step) for step in (1, 2)]
    before, batches = weights(), rank_batches(run, engine.layout, 3)
    if engine.layout.data_parallel_rank == 0:
        batches[-1].text_states_BSC.fill_(float("nan"))
    bad = engine.train_step(batches, learning_rate=0.01)
    same = all(torch.equal(new, old) for new, old in zip(weights(), before))
    assert bad.gradient_norm is not None
    return {"same": same, "norm": float(bad.gradient_norm), "after": step_once(run, engine, 4)["loss"], "before": good[-1]["loss"]}


def waits(*, config: dict[str, Any]) -> list[str]:
    """Where the fifth step would make the host wait for a GPU: tensors read as numbers, counted, and whole-device waits."""
    import traceback

    from deepspeed.accelerator import get_accelerator

    run = RunConfig.model_validate(config)
    engine = make_engine(run)
    for step in range(1, 5):  # DeepSpeed's timers begin late
        step_once(run, engine, step)
    batches, found = rank_batches(run, engine.layout, 5), []

    def note(*_: object, **__: object) -> float:
        found.append("".join(traceback.format_stack(limit=4)[:-1]))
        return 1.0

    names = ("item", "tolist", "nonzero")
    original = [getattr(torch.Tensor, name) for name in names]
    get_accelerator().synchronize = note
    for name in names:
        setattr(torch.Tensor, name, note)
    engine.train_step(batches, learning_rate=1e-3)
    for name, method in zip(names, original):
        setattr(torch.Tensor, name, method)
    return found


def parts(*, config: dict[str, Any]) -> dict[str, Any]:
    """What a step, and an evaluation behind it, take by the stopwatch; and by the clock."""
    run = RunConfig.model_validate(config)
    engine = make_engine(run)
    before = time.perf_counter()
    step_once(run, engine, 1)
    step = time.perf_counter() - before
    engine.evaluate(rank_batches(run, engine.layout, 999))
    return {"parts": engine.stopwatch.read(), "step": step}


def changed(*, config: dict[str, Any], steps: int) -> dict[str, list[str]]:
    """Some steps from train.init_from: the parameters that are not bit for bit what they were, and those that AdamW has a state of."""
    run = RunConfig.model_validate(config)
    engine = make_engine(run)
    load_initial(Path(str(run.train.init_from)), engine, identity(run).vocabulary)
    before = {slot.name: slot.parameter.detach().clone() for slot in engine.slots}
    for step in range(1, steps + 1):
        step_once(run, engine, step)
    engine.state.link()
    return {
        "changed": [slot.name for slot in engine.slots if not torch.equal(before[slot.name], slot.parameter)],
        "state": [slot.name for slot in engine.slots if "exp_avg" in engine.state.read(slot)],
        "optimized": [sum(tensor.numel() for tensor in engine.state.optimized())],
    }


def whole_weights(*, config: dict[str, Any], steps: int) -> dict[str, Any]:
    """The numbers of some steps, and the bytes (hashed) of every parameter that all tensor-parallel ranks have whole."""
    run = RunConfig.model_validate(config)
    engine = make_engine(run)
    numbers = [step_once(run, engine, step) for step in range(1, steps + 1)]
    engine.state.link()  # waits for the last step's weights
    bits = {slot.name: slot.parameter.detach().view(torch.uint8).numpy().tobytes() for slot in engine.slots if not slot.cut}
    engine.close()
    return {"steps": numbers, "whole": {name: hashlib.sha256(value).hexdigest() for name, value in bits.items()}}


def graphed(*, config: dict[str, Any], steps: int) -> dict[str, Any]:
    """`whole_weights` with graphs, of recorded calls instead of CUDA's; and how many there were."""
    recorded_graphs.stand_in()
    captured, capture = [], GraphedLayers.capture
    GraphedLayers.capture = lambda self, batch: captured.append(self) or capture(self, batch)
    Engine._wants_graphs = lambda self: True
    found = whole_weights(config=config, steps=steps)
    assert not any(graphs.captured for graphs in captured), "a graph that holds a collective keeps NCCL from leaving its communicator"
    return {**found, "captured": len(captured)}


def train(*, config: dict[str, Any], stop: int, save_at: tuple[int, ...] = (), resume: bool = False, file_limit: int = 0) -> dict[str, Any]:
    """Steps up to `stop`, from the newest checkpoint or from the start; the numbers of each step, and an evaluation at the end.

    `file_limit`: no file may grow beyond it, as on a full disk (EFBIG instead of ENOSPC).
    """
    run = RunConfig.model_validate(config)
    engine = make_engine(run)
    root = Path(run.train.output_dir) / "checkpoints"
    checkpoint_writer.LEAST_BYTES = 1 << 18  # so that even this model is cut into several files
    restored = checkpoint.restore(root, engine, identity(run).vocabulary) if resume else None
    writer = CheckpointWriter(root, engine, identity(run), keep=run.train.keep_checkpoints, keep_every=run.train.keep_every)
    start = restored.step if restored else 0
    if not restored and run.train.init_from:
        load_initial(Path(run.train.init_from), engine, identity(run).vocabulary)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    steps = []
    for step in range(start + 1, stop + 1):
        steps.append(step_once(run, engine, step))
        if step in save_at:
            writer.save(step, next_row=step * ROWS)
    writer.wait()
    held_out = engine.evaluate(rank_batches(run, engine.layout, 999))
    return {"start": start, "steps": steps, "valid": float(held_out.loss_sums_KQ.sum() / held_out.counts_KQ.sum())}
