"""The stages of a pipeline on DeepSpeed's engine: bounds that are given, CUDA graphs, and no wait of the host for the device in a step.

DeepSpeed sends, receives and keeps the order of micro-batches (1F1B). What its `train_batch` does around that is left out: timers whose
events pile up, and a mean loss that the host waits for on all stages but the last. To be imported after `deepspeed_start.import_deepspeed`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from uniaudio.configs.parallel import ParallelConfig
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.stopwatch import Stopwatch

State = tuple[torch.Tensor, ...]

_PARTS = {
    schedule.LoadMicroBatch: "forward",
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    schedule.ReduceTiedGrads: "communication",
    schedule.ReduceGrads: "communication",
    schedule.OptimizerStep: "optimizer",
}


class Stages(PipelineModule):
    """This process's share of `layers`, the head among them on the last stage. bounds: where each stage begins, and their number.

    graphs: what stands for the layers before the head in training, where it is set. target_counts: of the micro-batches to come, taken on
    the host; where there is none the head waits for the device to tell.
    """

    def __init__(
        self, layers: Sequence[nn.Module], bounds: Sequence[int], parallel: ParallelConfig, *, loss: Callable[..., torch.Tensor]
    ) -> None:
        self._bounds = list(bounds)
        topology = PipeModelDataParallelTopology(
            num_pp=parallel.pipeline_parallel_size, num_mp=parallel.tensor_parallel_size, num_dp=parallel.data_parallel_size
        )
        super().__init__(list(layers), topology=topology, loss_fn=loss)
        self.graphs: Callable[[State], State] | None = None
        self.target_counts: Iterator[int] = iter(())

    def _partition_layers(self, method: str = "given") -> None:
        self.parts = self._bounds
        self._set_bounds(start=self._bounds[self.stage_id], stop=self._bounds[self.stage_id + 1])

    @property
    def model_group(self) -> torch.distributed.ProcessGroup:
        """The ranks that hold other shares of the model."""
        return self._grid.get_model_parallel_group()

    def forward(self, state: State) -> State:
        """Batch.as_tuple() or the State that the stage before sent -> State, or what the head returns."""
        last = self.stage_id == self.num_stages - 1
        if self.graphs is not None and torch.is_grad_enabled():
            state = self.graphs(state)
        else:
            for layer in self.forward_funcs[:-1] if last else self.forward_funcs:
                state = layer(state)
        return self.forward_funcs[-1](state, next(self.target_counts, None)) if last else state


class Pipeline:
    """DeepSpeed's `engine` over Stages. Marks the parts of a step: "pipeline" is what is sent and received, and waiting for others."""

    def __init__(self, engine: Any, stopwatch: Stopwatch) -> None:
        self._engine, self._stopwatch = engine, stopwatch
        self._unused_label = torch.zeros(1, device=engine.device)  # the targets are in the batch, and travel with it
        engine._INSTRUCTION_MAP = {kind: self._measured(kind, execute) for kind, execute in engine._INSTRUCTION_MAP.items()}

    @property
    def received(self) -> State:
        """Tensors of the shapes that the stage before sends, after a step."""
        return self._engine.pipe_recv_buf

    def train(self, batches: Sequence[Batch], target_counts: Sequence[int]) -> None:
        """One step. target_counts: as in Stages."""
        engine = self._engine
        if not engine.module.training:
            engine.module.train()  # sets some 300 modules, one by one
        engine.module.target_counts = iter(target_counts)
        engine.set_dataiterator(self._micro_batches(batches))
        engine.total_loss, engine._compute_loss = None, True
        engine._exec_schedule(engine._train_schedule())

    def evaluate(self, batches: Sequence[Batch]) -> None:
        """The loss of each batch, to whom the stages' `loss` tells it."""
        self._engine.eval_batch(self._micro_batches(batches), reduce_output=None, bcast_loss=False, num_micro_batches=len(batches))

    def _micro_batches(self, batches: Sequence[Batch]) -> Iterator[tuple[State, torch.Tensor]]:
        return iter([(batch.as_tuple(), self._unused_label) for batch in batches])

    def _measured(self, kind: type, execute: Callable[..., None]) -> Callable[..., None]:
        part = _PARTS.get(kind, "pipeline")

        def execute_and_mark(engine: Any, **arguments: Any) -> None:
            execute(engine, **arguments)
            if torch.is_grad_enabled():
                self._stopwatch.mark(part)

        return execute_and_mark
