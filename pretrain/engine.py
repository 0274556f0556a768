"""DeepSpeed around the one model: forward, backward, gradient reduction, optimizer step, for every layout.

Owns the process groups' use and the normalisation of the loss. Does not own the loop (`trainer`), each parameter's state by canonical name
(`parallel.named_state`, here `state`), files (`checkpoint`) or the schedule (`optim`). Batches come in on the CPU; statistics go out as
tensors on the device.

The loss of a step is sum(losses) / N over all target codes of all micro-batches of all data-parallel ranks. DeepSpeed divides each
micro-batch's loss by the accumulation and averages gradients over the data-parallel ranks, so a micro-batch hands it
sum(its losses) x (data_parallel_size x accumulation / N).
"""

import bisect
import contextlib
import io
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from uniaudio.configs.rules import wants_graphs
from uniaudio.configs.run import RunConfig
from uniaudio.configs.stages import stage_bounds, stage_layers
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain import launch
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.graphs import GraphedLayers
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.optim import gradient_norm, host_threads, make_optimizer
from uniaudio.pretrain.parallel.deepspeed_start import deepspeed_config, import_deepspeed, init_process_group
from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.parallel.named_state import NamedState, make_slot
from uniaudio.pretrain.parallel.tensor import choose_backend
from uniaudio.pretrain.parallel.whole_gradients import sum_in_backward, sum_once
from uniaudio.pretrain.parallel.zero_one import ZeroOneStep
from uniaudio.pretrain.stopwatch import Stopwatch

logger = get_logger("engine")

PIECES = 8  # of the forward pass: the first one's weights travel alone, and a CUDA graph each costs the host some 10 us


@dataclass
class StepStatistics:
    """What a step left behind, on the device, equal on all ranks.

    loss_sums_KQ, counts_KQ: float64; sums over all ranks and micro-batches by task and level. gradient_norm: before clipping.
    """

    loss_sums_KQ: torch.Tensor
    counts_KQ: torch.Tensor
    gradient_norm: torch.Tensor | float | None = None


class Engine:
    """One model under one layout. `num_tasks` is K of the statistics.

    Parameters exist before DeepSpeed wraps them, so `slots` is the same list of names under ZeRO, tensor and pipeline parallelism; `state`
    reads and writes what training keeps of each.
    """

    def __init__(self, run: RunConfig, model: MultiScaleTransformer, layout: Layout, *, device: torch.device) -> None:
        self.run, self.layout, self.device = run, layout, device
        self.dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
        self._micro_batches = run.optim.gradient_accumulation
        self._totals = torch.zeros((2, len(run.data.tasks), run.model.num_codebooks), dtype=torch.float64, device=device)
        self._loss_scale = torch.ones((), device=device)
        self._norm: torch.Tensor | float | None = None
        self.stopwatch = Stopwatch(device)
        self._plain = run.parallel.zero_stage == 0
        self._kernel_step = self.dtype == torch.bfloat16 and run.parallel.zero_stage == 1
        self._step: ZeroOneStep | None = None
        self._model, self._warm = model, False
        self._initialize(model)
        self._graphs = self._make_graphs() if self._wants_graphs() else []

    # ---- set-up ----

    def _initialize(self, model: MultiScaleTransformer) -> None:
        deepspeed = import_deepspeed(self.device)
        init_process_group(self.device)
        self.control_group = dist.new_group(backend="gloo")  # what the host must know: no wait for the device
        self.background_group = dist.new_group(backend="gloo")  # for the thread that writes checkpoints
        deepspeed.init_distributed(dist.get_backend(), dist_init_required=False)
        if self.run.parallel.zero_stage == 3:
            for block in (*model.global_blocks, *model.local_blocks):
                block.let_layers_run_alone()
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        with contextlib.redirect_stdout(io.StringIO()):  # PipelineModule and its grid print their layers
            module = self._as_pipeline(model) if self.layout.pipeline_size > 1 else model.to(self.device)
            self.slots = [make_slot(names[id(p)], p, self.layout) for p in module.parameters()]
            for slot in self.slots:
                # DeepSpeed counts a parameter in the norm where it is marked as cut, and others on tensor rank 0 only.
                # Marked like this each parameter counts exactly once under every layout.
                slot.parameter.model_parallel = slot.cut or self.layout.tensor.rank == 0
            whole = [slot.parameter for slot in self.slots if not slot.cut]
            if self.layout.tensor.group is not None and not (self._plain or self._kernel_step):
                sum_in_backward(whole, self.layout.tensor.group)
            named = [(slot.name, slot.parameter) for slot in self.slots if slot.trained]
            self._base = make_optimizer(self.run.optim, named, cut_apart=self._kernel_step)
            if self._plain:
                self._base.register_step_pre_hook(self._clip)
            self._deepspeed, *_ = deepspeed.initialize(
                model=module,
                optimizer=self._base,
                mpu=self._mpu(),
                config=deepspeed_config(self.run, self.device),
                dist_init_required=False,
            )
        if self.layout.pipeline_size > 1:
            from uniaudio.pretrain.parallel.stages import Pipeline

            self._pipeline = Pipeline(self._deepspeed, self.stopwatch)
        counters_on = torch.device("cpu") if self._kernel_step or self.run.parallel.offload_optimizer else self.device
        self._state = NamedState(
            self.slots, self.layout, zero_stage=self.run.parallel.zero_stage, wrapped=self._deepspeed, optimizer=self._base,
            dtype=self.dtype, device=self.device, counters_on=counters_on,
        )  # fmt: skip
        if self._kernel_step:
            self._install_kernel_step()
        elif not self._plain:
            self._deepspeed.optimizer.check_grad_overflow = True  # in fp32 too: a norm that is not finite changes nothing

    def _install_kernel_step(self) -> None:
        layout = self.layout
        self._state.prepare(0)
        self._step = ZeroOneStep(
            self._deepspeed.optimizer,
            clip_norm=self.run.optim.clip_norm,
            direct=self._micro_batches == layout.data_parallel_size == layout.pipeline_size == 1,
            pieces=self._pieces(),
            data_group=layout.data_parallel_group,
            data_parallel=(layout.data_parallel_rank, layout.data_parallel_size),
            model_group=self._model_group,
            tensor_group=layout.tensor.group,
            backend=choose_backend(self.run.model.kernels, self.device),
            stopwatch=self.stopwatch,
        )

    def _wants_graphs(self) -> bool:
        cuda = self.device.type == "cuda"
        if self.run.train.cuda_graphs is True and not cuda:
            raise UserError("train.cuda_graphs: no CUDA device", seen=self.device, allowed="cuda", remedy="set train.cuda_graphs=auto")
        return cuda and wants_graphs(self.run)

    def _make_graphs(self) -> list[GraphedLayers]:
        """Of the layers here before the head, one for each micro-batch under way: in 1F1B as many as stages from here to the last."""
        layout, (layers, _) = self.layout, self._own_layers()
        under_way = min(layout.pipeline_size - layout.pipeline_rank, self._micro_batches)
        graphs = [
            GraphedLayers(layers, continues=not layout.is_first_stage, cuts=self._cuts(layers), before_piece=self._wait_for_weights)
            for _ in range(under_way)
        ]
        return graphs if graphs[0].trained else []

    def _own_layers(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """This stage's layers before the head, and the head where it is here."""
        own = stage_layers(self.run, self._model.vocabulary_size, self.layout.pipeline_rank)
        layers = self._model.as_layers()[own.start : own.stop]
        count = len(layers) - self.layout.is_last_stage
        return layers[:count], layers[count:]

    def _cuts(self, layers: list[nn.Module]) -> list[int]:
        """Where to cut them into PIECES of about as many parameters, if there are weights to wait for."""
        if self.layout.data_parallel_size == 1 or not layers:
            return []
        ends = list(itertools.accumulate(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers))
        cuts = {bisect.bisect_left(ends, ends[-1] * number / PIECES) + 1 for number in range(1, PIECES)}
        return sorted(cut for cut in cuts if cut < len(layers))

    def _pieces(self) -> list[list[nn.Parameter]]:
        """The trained parameters of each piece of the layers, and of the head."""
        layers, head = self._own_layers()
        runs = [layers[start:stop] for start, stop in itertools.pairwise([0, *self._cuts(layers), len(layers)])]
        return [[own for layer in run for own in layer.parameters() if own.requires_grad] for run in (*runs, head)]

    def _wait_for_weights(self, piece: int | None = None) -> None:
        if self._step is not None:
            self._step.wait_for_weights(piece)

    @property
    def state(self) -> NamedState:
        """What training keeps of each parameter; weights that were still on their way are there."""
        self._wait_for_weights()
        return self._state

    def _prepare_graphs(self, batch: Batch) -> None:
        """Captures them after the first step, which has compiled the kernels; after that they stay."""
        if self._graphs and self._warm and not self._graphs[0].captured:
            before = time.perf_counter()
            example = batch.as_tuple() if self.layout.is_first_stage else self._pipeline.received
            for graphs in self._graphs:
                graphs.capture(example)
            in_turn = itertools.cycle(self._graphs)  # who began first is through first
            if self._step is not None:
                self._step.overlaps = True
            holder = self._stages if self.layout.pipeline_size > 1 else self._model
            holder.graphs = lambda state: next(in_turn)(state)
            logger.info("the layers before the head run as CUDA graphs from here on; captured in %.1f s", time.perf_counter() - before)
        self._warm = True

    def _as_pipeline(self, model: MultiScaleTransformer) -> nn.Module:
        from uniaudio.pretrain.parallel.stages import Stages

        layers = model.named_layers()
        bounds = stage_bounds(self.run, model.vocabulary_size)
        logger.info("pipeline stages: %s", "; ".join(f"{layers[a][0]}..{layers[b - 1][0]}" for a, b in itertools.pairwise(bounds)))
        os.environ.setdefault("LOCAL_RANK", str(self.device.index or 0))
        self._stages = Stages([layer for _, layer in layers], bounds, self.run.parallel, loss=self._pipeline_loss)
        self._model_group = self._stages.model_group
        return self._stages

    def _mpu(self) -> object | None:
        if self.layout.pipeline_size > 1:
            return None  # the PipelineModule's grid is its own
        self._model_group = self.layout.tensor.group
        if self.layout.tensor.size == 1:
            return None
        from uniaudio.pretrain.parallel.groups import DeepSpeedGroups

        return DeepSpeedGroups()

    def close(self) -> None:
        """Ends the last step and lets the CUDA graphs go; to be called before the process groups are left."""
        self._wait_for_weights()
        for graphs in self._graphs:
            graphs.release()

    # ---- a step ----

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float) -> StepStatistics:
        """One optimizer step over this rank's micro-batches (`gradient_accumulation` of them); a collective call."""
        if len(batches) != self._micro_batches:
            raise ValueError(f"{len(batches)} micro-batches; optim.gradient_accumulation is {self._micro_batches}")
        for group in self._base.param_groups:
            group["lr"] = learning_rate
        target_counts = [self._own_targets(batch) for batch in batches]  # while they lie on the host
        batches = [batch.to(self.device, float_dtype=self.dtype) for batch in batches]
        self._set_loss_scale(batches)
        self._totals.zero_()
        self._prepare_graphs(batches[0])
        self.stopwatch.start()
        if self.layout.pipeline_size > 1:
            self._pipeline.train(batches, target_counts)
        else:
            if not self._model.training:
                self._deepspeed.train()  # sets some 300 modules, one by one
            for batch, target_count in zip(batches, target_counts):
                sums_KQ, counts_KQ = self._deepspeed(batch.as_tuple(), target_count=target_count)
                self.stopwatch.mark("forward")
                self._deepspeed.backward(self._collect(sums_KQ, counts_KQ))
                self.stopwatch.mark("backward")
                with self._step_threads():
                    self._deepspeed.step()
                self.stopwatch.mark("optimizer")
        if not self._plain:
            self._norm = self._deepspeed.get_global_grad_norm()
        return self._statistics(self._norm)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> StepStatistics:
        """Loss sums of this rank's batches together with all others'; weights unchanged. Every rank gives as many batches."""
        self._wait_for_weights()
        batches = [batch.to(self.device, float_dtype=self.dtype) for batch in batches]
        self._loss_scale.fill_(1.0)
        self._totals.zero_()
        if self.layout.pipeline_size > 1:
            self._pipeline.evaluate(batches)
        else:
            self._deepspeed.eval()
            for batch in batches:
                self._collect(*self._deepspeed(batch.as_tuple()))
        return self._statistics(None)

    def _step_threads(self) -> contextlib.AbstractContextManager[None]:
        """All cores for a step on the host: beside a GPU one thread is the rule."""
        if not self.run.parallel.offload_optimizer:
            return contextlib.nullcontext()
        return host_threads(self.run.train.threads or launch.cores_of_a_process())

    def _own_targets(self, batch: Batch) -> int:
        """Target codes of the frames that this rank computes the loss of."""
        mask_XQ = batch.target_mask_BTQ.flatten(0, 1)
        return int(mask_XQ[self.layout.tensor.own(len(mask_XQ))].count_nonzero())

    def _set_loss_scale(self, batches: Sequence[Batch]) -> None:
        count = torch.stack([batch.target_mask_BTQ.count_nonzero() for batch in batches]).sum()
        if self.layout.data_parallel_size > 1:
            dist.all_reduce(count, group=self.layout.data_parallel_group)
        self._loss_scale.copy_(self.layout.data_parallel_size * self._micro_batches / count.clamp(min=1))

    def _collect(self, sums_KQ: torch.Tensor, counts_KQ: torch.Tensor) -> torch.Tensor:
        """Adds a micro-batch to the totals; returns its share of the loss for the backward pass."""
        self._totals[0] += sums_KQ.detach()
        self._totals[1] += counts_KQ
        return sums_KQ.sum() * self._loss_scale

    def _pipeline_loss(self, outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        return self._collect(*outputs)

    def _clip(self, *_: object) -> None:
        """Before the plain optimizer's step: the norm over the whole model, and all gradients scaled to `clip_norm` at most.

        A norm that is not finite skips the update on the device (torch's fused AdamW reads `found_inf`), so the host need not look.
        """
        gradients = [slot.parameter.grad for slot in self.slots if slot.parameter.grad is not None]
        if self.layout.tensor.group is not None:
            whole = [slot.parameter.grad for slot in self.slots if not slot.cut and slot.parameter.grad is not None]
            sum_once(whole, self.layout.tensor.group)
        counted = [slot.parameter.grad for slot in self.slots if slot.parameter.model_parallel and slot.parameter.grad is not None]
        norm = gradient_norm(counted, self._model_group)
        self._base.found_inf = (~norm.isfinite()).float()
        torch._foreach_mul_(gradients, (self.run.optim.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self._norm = norm

    def _statistics(self, norm: torch.Tensor | float | None) -> StepStatistics:
        """One all-reduce over the world: ranks that hold no loss add zeros."""
        totals = self._totals.clone() if self.layout.is_last_stage else torch.zeros_like(self._totals)
        if self.layout.world_size > 1:
            dist.all_reduce(totals)
        return StepStatistics(totals[0], totals[1], norm)

    # ---- agreement between ranks ----

    def greatest(self, value: int) -> int:
        """The greatest of all ranks' values, on all of them."""
        greatest = torch.tensor([value])
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self.control_group)
        return int(greatest.item())

    def sum_over_data(self, counts: torch.Tensor) -> torch.Tensor:
        """Sum over the data-parallel ranks of a CPU tensor of integers that is equal on all ranks of each."""
        share = self.layout.world_size // self.layout.data_parallel_size
        total = counts.clone()
        dist.all_reduce(total, group=self.control_group)
        return total // share

    def gather(self, value: Any, *, background: bool = False) -> list[Any]:
        """`value` of every rank, by rank; small Python objects. `background`: the call is of a thread beside the training."""
        values: list[Any] = [None] * self.layout.world_size
        dist.all_gather_object(values, value, group=self.background_group if background else self.control_group)
        return values
