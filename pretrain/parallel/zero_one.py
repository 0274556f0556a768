"""The step of bf16 training under ZeRO-1: this project's optimizer kernels inside the partitions of DeepSpeed's BF16_Optimizer.

DeepSpeed's own step reads and writes fp32 gradients five times, waits for the norm on the host, and launches thousands of small kernels.
Here the gradients are reduced in fp32 to the rank that owns them, the norm stays on the device, and one pass does the rest. Where one
process holds all (one micro-batch, one data-parallel rank, no pipeline) there are no fp32 gradients at all: the pass reads bf16 ones.
What tensor-parallel ranks have whole lies in groups of its own, whose fp32 gradients are also added up over those ranks, once a step.

The weights come back while the next forward pass has begun. A partition is one stretch of the flat group, so a piece of the layers belongs
to few ranks: each sends its stretches as soon as all are updated, in the order of the layers, and a piece waits for its own (without
graphs the step waits for all: `pretrain.graphs`). The gradients are reduced at the end of the step: docs/training.md says what was tried.

DeepSpeed keeps the partitions, the bf16 weights, and the order of things; its methods are replaced on the one object, because its pipeline
asks for the exact class.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from uniaudio.kernels.optimizer import AdamW, Segments, accumulate, adamw_step, square_sum
from uniaudio.pretrain.parallel import whole_gradients
from uniaudio.pretrain.parallel.tensor import Backend, is_cut
from uniaudio.pretrain.stopwatch import Stopwatch

Range = tuple[int, int]


@dataclass
class Group:
    """One parameter group: its bf16 parameters and what of them this rank owns.

    whole: where each parameter lies in the flat group. owned: the pieces of them in this rank's partition, by their place in it.
    counted: which of those count in the norm (a parameter that several ranks hold counts on one). total: fp32 gradients of the whole
    group, None where bf16 ones are read as they are. tensor_group: ranks that its gradients are to be added up over, None where each rank
    has its own parameters. sent: of each piece of the layers that has a part in it, which stretches of the flat group which rank owns.
    """

    parameters: list[torch.nn.Parameter]
    whole: Segments
    owned: Segments
    counted: list[int]
    norm: Segments
    partition: slice
    total: torch.Tensor | None
    tensor_group: dist.ProcessGroup | None
    sent: dict[int, list[tuple[int, slice]]]


class ZeroOneStep:
    """Replaces the step of `wrapper` (a BF16_Optimizer over `optimizer`).

    model_group: ranks that hold other shares of the model. tensor_group: those of them that have some parameters in common.
    pieces: the trained parameters in the order of the layers. overlaps: whether the forward pass says what it waits for
    (`wait_for_weights`); else the step waits.
    """

    def __init__(
        self,
        wrapper: Any,
        *,
        clip_norm: float,
        direct: bool,
        pieces: Sequence[Sequence[torch.nn.Parameter]],
        data_group: dist.ProcessGroup | None,
        data_parallel: tuple[int, int],
        model_group: dist.ProcessGroup | None,
        tensor_group: dist.ProcessGroup | None,
        backend: Backend,
        stopwatch: Stopwatch,
    ) -> None:
        self._stopwatch = stopwatch
        self._wrapper, self._clip_norm, self._backend = wrapper, clip_norm, backend
        self._data_group, self._model_group, self._tensor_group = data_group, model_group, tensor_group
        self._rank, self._size = data_parallel
        self._direct, self._first = direct, True
        self._numbers = {id(parameter): number for number, piece in enumerate(pieces) for parameter in piece}
        self._on_their_way: list[list[dist.Work]] = [[] for _ in pieces]
        self.overlaps = False
        self._groups = [self._group(index) for index in range(len(wrapper.bf16_groups))]
        wrapper.step = self.step
        wrapper.update_hp_grads = self.accumulate
        wrapper.get_grads_for_reduction = lambda: ([], {})  # this step reduces by itself
        wrapper.clear_lp_grads = self.clear
        wrapper.zero_grad = self.clear

    def _group(self, index: int) -> Group:
        wrapper = self._wrapper
        parameters, flat = wrapper.bf16_groups[index], wrapper.bf16_groups_flat[index]
        counts = [parameter.numel() for parameter in parameters]
        starts = [sum(counts[:position]) for position in range(len(counts))]
        share = flat.numel() // self._size
        low, high = self._rank * share, (self._rank + 1) * share
        pieces = [(number, max(start, low), min(start + count, high)) for number, (start, count) in enumerate(zip(starts, counts))]
        pieces = [piece for piece in pieces if piece[1] < piece[2]]
        counted = [place for place, (number, *_) in enumerate(pieces) if parameters[number].model_parallel]
        owned = Segments([start - low for _, start, _ in pieces], [stop - start for _, start, stop in pieces])
        norm = Segments([owned.starts[place] for place in counted], [owned.counts[place] for place in counted])
        total = wrapper.fp32_groups_gradients_flat[index]
        tensor_group = None if is_cut(parameters[0]) else self._tensor_group
        if self._direct and tensor_group is None:
            total = None
            self._release(index)
        sent = self._stretches(parameters, starts, share) if tensor_group is None else {}
        return Group(parameters, Segments(starts, counts), owned, counted, norm, slice(low, high), total, tensor_group, sent)

    def _stretches(self, parameters: list[torch.nn.Parameter], starts: list[int], share: int) -> dict[int, list[tuple[int, slice]]]:
        """Parameters come in the order of the layers, so a piece of them is one stretch, cut where partitions end."""
        placed = [(self._numbers[id(parameter)], start, start + parameter.numel()) for parameter, start in zip(parameters, starts)]
        found = {}
        for number, run in itertools.groupby(placed, key=lambda place: place[0]):
            _, begins, ends = zip(*run)
            owners = range(begins[0] // share, (ends[-1] - 1) // share + 1)
            found[number] = [(rank, slice(max(begins[0], rank * share), min(ends[-1], (rank + 1) * share))) for rank in owners]
        return found

    def _release(self, index: int) -> None:
        """Gives DeepSpeed's fp32 gradients back: 4 bytes a parameter that nobody will read."""
        wrapper = self._wrapper
        empty = wrapper.fp32_groups_gradients_flat[index].new_empty(0)
        for listed in (
            wrapper.fp32_groups_gradients_flat,
            wrapper.fp32_groups_actual_gradients_flat,
            wrapper.fp32_groups_gradient_flat_partition,
            wrapper.non_expert_gradients,
        ):
            listed[index] = empty
        wrapper.fp32_groups_gradients[index][:] = [empty] * len(wrapper.fp32_groups_gradients[index])

    # ---- what DeepSpeed calls ----

    def clear(self, set_to_none: bool = True) -> None:
        """Lets the bf16 gradients go; the next backward pass makes new ones, which costs neither a fill nor an addition."""
        for group in self._groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def accumulate(self, clear_lp_grads: bool = False) -> None:
        """After each micro-batch: its bf16 gradients into the fp32 ones."""
        for group in self._groups:
            if group.total is not None:
                accumulate(group.total, group.whole, self._gradients(group), first=self._first, backend=self._backend)
        self._first = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Reduces, clips, updates, casts, and gathers the weights; a norm that is not finite leaves everything as it was."""
        wrapper = self._wrapper
        owned = [self._owned(group) for group in self._groups]
        self._stopwatch.mark("communication")
        norm = self._norm(owned)
        wrapper._global_grad_norm = norm
        # The device decides: nothing here waits for it. Not finite: no update.
        scale = torch.where(norm.isfinite(), (self._clip_norm / (norm + 1e-6)).clamp(max=1.0) / self._size, 0.0)
        for index, (group, gradients) in enumerate(zip(self._groups, owned)):
            master, options = wrapper.fp32_groups_flat_partition[index], wrapper.optimizer.param_groups[index]
            state = wrapper.optimizer.state[master]
            state["step"] += 1
            settings = AdamW(options["lr"], options["weight_decay"], options["betas"], options["eps"], int(state["step"]))
            weights = wrapper.bf16_groups_flat[index][group.partition]
            adamw_step(
                master, state["exp_avg"], state["exp_avg_sq"], weights,
                segments=group.owned, gradients=gradients, scale=scale, settings=settings, backend=self._backend,
            )  # fmt: skip
        self._stopwatch.mark("optimizer")
        if self._size > 1:
            self._send_weights()
            self._stopwatch.mark("communication")
        self._first = True

    # ---- weights ----

    def _send_weights(self) -> None:
        """What tensor-parallel ranks have whole at once; then the rest is sent, piece by piece."""
        listed = list(zip(self._wrapper.bf16_groups_flat, self._groups))
        for flat, group in listed:
            if group.tensor_group is not None:
                whole_gradients.all_gather(flat, group.partition, self._data_group, group.tensor_group)
        for number, handles in enumerate(self._on_their_way):
            for flat, group in listed:
                for rank, stretch in group.sent.get(number, []):
                    work = dist.broadcast(flat[stretch], group_src=rank, group=self._data_group, async_op=True)
                    assert work is not None  # this rank is in the group
                    handles.append(work)
        if not self.overlaps:
            self.wait_for_weights()

    def wait_for_weights(self, piece: int | None = None) -> None:
        """What is launched from here on waits for the weights of this piece and those before it, or for all; with gloo the host does."""
        for handles in self._on_their_way if piece is None else self._on_their_way[: piece + 1]:
            for work in handles:
                work.wait()
            handles.clear()

    # ---- gradients ----

    def _gradients(self, group: Group) -> list[torch.Tensor]:
        """The bf16 gradients of a group; zeros where the backward pass did not come by."""
        for parameter in group.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in group.parameters if parameter.grad is not None]

    def _owned(self, group: Group) -> list[torch.Tensor]:
        """This rank's pieces of the gradients, summed over the data-parallel ranks and those that share the parameters (in fp32)."""
        if group.total is None:
            return self._gradients(group)
        part = group.total[group.partition]
        if self._size > 1 and group.tensor_group is not None:
            part = whole_gradients.reduce_scatter(group.total, self._data_group, group.tensor_group)
        elif self._size > 1:
            part = torch.empty_like(part)
            dist.reduce_scatter_tensor(part, group.total, group=self._data_group)
        elif group.tensor_group is not None:
            dist.all_reduce(part, group=group.tensor_group)
        return [part[start : start + count] for start, count in zip(group.owned.starts, group.owned.counts)]

    def _norm(self, owned: list[list[torch.Tensor]]) -> torch.Tensor:
        """Norm of the mean gradient over the whole model, float32 scalar on the device."""
        squares = []
        for group, gradients in zip(self._groups, owned):
            if group.counted:
                listed = [gradients[place] for place in group.counted]
                squares.append(square_sum(group.norm, listed, backend=self._backend))
        device = self._wrapper.bf16_groups_flat[0].device
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=device)
        if self._size > 1:
            dist.all_reduce(total, group=self._data_group)
        if self._model_group is not None:
            dist.all_reduce(total, group=self._model_group)
        return total.sqrt() / self._size
