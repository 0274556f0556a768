"""The multi-scale Transformer as one list of layers (design decision 2).

Every engine runs the same layers: the plain forward loops over them, a pipeline slices them. Input: a Batch of packed documents as
vocabulary ids. Output: loss sums by task and level, or logits; logits at (t, q) predict codes_BTQ[t, q] itself.
"""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from uniaudio.configs.model import ModelConfig
from uniaudio.configs.parallel import Recompute
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.model.blocks import GlobalBlock, LocalBlock
from uniaudio.pretrain.model.embed import Embed
from uniaudio.pretrain.model.head import Head
from uniaudio.pretrain.model.init import initialize_parameters
from uniaudio.pretrain.model.link import Link
from uniaudio.pretrain.parallel.sequence import gathered
from uniaudio.pretrain.parallel.tensor import Backend, TensorParallel


class MultiScaleTransformer(nn.Module):
    """Global Transformer over frames, local Transformer over the Q codes of each frame (paper, section Model).

    Built in float32 on the CPU with the initial values of (`seed`, parameter name), or without values where `seed` is None and a
    checkpoint is about to fill them; move and cast it with `.to`. Under tensor parallelism it holds this rank's part of the global blocks,
    and works on this rank's frames (`pretrain.parallel.tensor`). `recompute`: what is computed again in the backward pass. `fp8`: the
    blocks' products in 8 bits. `stage`: the layers of a pipeline's stage; the others have shapes and names but no memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        *,
        num_tasks: int = 1,
        tensor_parallel: TensorParallel | None = None,
        backend: Backend = "torch",
        recompute: Recompute = "none",
        fp8: bool = False,
        stage: range | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        tensor = tensor_parallel or TensorParallel()
        self.config, self.tensor_parallel, self.vocabulary_size = config, tensor, vocabulary.size
        mega_local = vocabulary.special("<mega_local>")
        size = vocabulary.size
        common: dict[str, Any] = {"tensor": tensor, "backend": backend}
        places = (nullcontext() if stage is None or index in stage else torch.device("meta") for index in itertools.count())
        with next(places):
            self.embed = Embed(config, vocabulary=vocabulary, **common)
        self.global_blocks = nn.ModuleList()
        for _ in range(config.global_layers):
            with next(places):
                self.global_blocks.append(GlobalBlock(config, recompute=recompute, **common))
        with next(places):
            self.link = Link(config, vocabulary_size=size, mega_local=mega_local, **common)
        self.local_blocks = nn.ModuleList()
        for _ in range(config.local_layers):
            with next(places):
                self.local_blocks.append(LocalBlock(config, backend=backend, recompute=recompute))
        with next(places):
            self.head = Head(config, vocabulary_size=size, num_tasks=num_tasks, **common)
        for block in [*self.global_blocks, *self.local_blocks] if fp8 else []:
            block.multiply_in_8_bits(backend)
        self.graphs: Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]] | None = None
        if seed is not None:
            initialize_parameters(self, seed=seed, config=config, tensor=tensor)

    def named_layers(self) -> list[tuple[str, nn.Module]]:
        """The layers in order under their canonical names; a layer's parameter is `<layer name>.<its own name>`."""
        globals_ = [(f"global_blocks.{index}", block) for index, block in enumerate(self.global_blocks)]
        locals_ = [(f"local_blocks.{index}", block) for index, block in enumerate(self.local_blocks)]
        return [("embed", self.embed), *globals_, ("link", self.link), *locals_, ("head", self.head)]

    def as_layers(self) -> list[nn.Module]:
        """The layers in order: each takes and returns a tuple of tensors; the first takes `Batch.as_tuple()`."""
        return [layer for _, layer in self.named_layers()]

    def forward(self, batch: tuple[torch.Tensor, ...], target_count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch.as_tuple() -> (loss_sums_KQ, counts_KQ), float32: nats summed over this rank's target codes, and their number.

        target_count: of those codes, taken before the batch went to the device, which then need not be waited for.
        """
        run = self.graphs if self.graphs is not None and torch.is_grad_enabled() else self.before_head
        loss_sums_KQ, counts_KQ = self.head(run(batch), target_count)
        return loss_sums_KQ, counts_KQ

    def before_head(self, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Batch.as_tuple() -> the State that the head takes. What `graphs` stands for in training, where it is set (`pretrain.graphs`)."""
        state = batch
        for layer in self.as_layers()[:-1]:
            state = layer(state)
        return state

    def logits(self, batch: Batch) -> torch.Tensor:
        """(B, T, Q, V): the prediction of every code from the codes before it. Differentiable on one process."""
        state = self.before_head(batch.as_tuple())
        rows, frames, _ = batch.codes_BTQ.shape
        return gathered(self.head.logits(state[0]), self.tensor_parallel.group).unflatten(0, (rows, frames))
