"""What training keeps of each parameter (weight, fp32 master, AdamW's moments), by the parameter's canonical name.

Owns where DeepSpeed holds them under each ZeRO stage, and which part of a parameter this process has. Does not own files (`checkpoint`,
`checkpoint_writer`) or what is done with the cuts (`cuts`, `grow`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.parallel.tensor import is_cut

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Slot:
    """One parameter of this process.

    name: canonical, that of the one-process model. partition_dim: dimension that a layout may cut over tensor-parallel ranks, or that has
    padding rows; None where neither. shape: of the whole parameter without padding rows. start: where this rank's cut begins in
    `shape[partition_dim]`. valid: how much of this rank's cut is not padding; all of it where every rank has the whole.
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    partition_dim: int | None
    start: int
    valid: int

    @property
    def cut(self) -> bool:
        """Whether each tensor-parallel rank has another part; else each has the whole."""
        return is_cut(self.parameter)

    @property
    def trained(self) -> bool:
        """Whether it changes; what is frozen has no optimizer state."""
        return self.parameter.requires_grad


def make_slot(name: str, parameter: nn.Parameter, layout: Layout) -> Slot:
    """The slot of a parameter as `pretrain.parallel.tensor` marked it."""
    shape, dim = list(parameter.shape), getattr(parameter, "partition_dim", -1)
    rows = getattr(parameter, "valid_rows", None)
    if dim < 0:
        return Slot(name, parameter, tuple(shape), None, 0, 0)
    local = shape[dim]
    if not is_cut(parameter):
        shape[dim] = local if rows is None else rows
        return Slot(name, parameter, tuple(shape), dim, 0, shape[dim])
    shape[dim] = local * layout.tensor.size
    return Slot(name, parameter, tuple(shape), dim, local * layout.tensor.rank, local)


class NamedState:
    """The state of the parameters in `slots`.

    wrapped: DeepSpeed's engine around them. optimizer: the AdamW that it was given. counters_on: device of AdamW's step counters.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        layout: Layout,
        *,
        zero_stage: int,
        wrapped: Any,
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype,
        device: torch.device,
        counters_on: torch.device,
    ) -> None:
        self._slots, self._layout, self._stage, self._wrapper, self._optimizer = slots, layout, zero_stage, wrapped.optimizer, optimizer
        self._dtype, self._device, self._counters_on = dtype, device, counters_on

    def prepare(self, step: int) -> None:
        """Makes AdamW's state exist, with zero moments, as after `step` updates; `write` then fills it."""
        for parameter in self.optimized():
            moments = {key: torch.zeros_like(parameter) for key in MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(step), device=self._counters_on), **moments}
        self.link()

    def optimized(self) -> list[torch.Tensor]:
        """The tensors that AdamW updates: the parameters, or this rank's fp32 partitions of them."""
        wrapper, stage = self._wrapper, self._stage
        if stage == 0:
            return [slot.parameter for slot in self._slots if slot.trained]
        if stage == 3:
            return wrapper.fp32_partitioned_groups_flat
        return (
            wrapper.fp32_groups_flat_partition
            if hasattr(wrapper, "fp32_groups_flat_partition")
            else wrapper.single_partition_of_fp32_groups
        )

    def link(self) -> None:
        """Before `read`: DeepSpeed's ZeRO 1 and 2 link parameters to moments when only the first group's exist; done again here."""
        if self._stage in (1, 2):
            self._wrapper._hp_optimizer_states_linked = False
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def read(self, slot: Slot) -> dict[str, torch.Tensor]:
        """`weight` in the model's dtype, `master` where it differs from fp32, and the moments; this rank's cut, without padding rows.
        Of what is frozen the weight alone.

        A collective call over the data-parallel ranks; every rank gets the whole cut.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not slot.trained:
            tensors = {"weight": slot.parameter.detach()}
        elif self._stage == 0:
            state = self._optimizer.state[slot.parameter]
            tensors = {"weight": slot.parameter.detach(), **{key: state[key] for key in MOMENTS}}
        else:
            master = safe_get_full_fp32_param(slot.parameter)
            tensors = {"weight": master.to(self._dtype), **{key: safe_get_full_optimizer_state(slot.parameter, key) for key in MOMENTS}}
            if self._dtype != torch.float32:
                tensors["master"] = master
        if slot.partition_dim is not None:
            tensors = {key: tensor.narrow(slot.partition_dim, 0, slot.valid) for key, tensor in tensors.items()}
        return tensors

    @torch.no_grad()
    def write(self, slot: Slot, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `read`; `master` may be missing (then `weight` serves), and so may both moments (they stay)."""
        tensors = {key: self._padded(slot, tensor) for key, tensor in tensors.items()}
        master = tensors.get("master", tensors["weight"]).float()
        moments = {key: tensors[key] for key in MOMENTS if key in tensors}
        if self._stage == 0 or not slot.trained:
            slot.parameter.copy_(master)
            for key, tensor in moments.items():
                self._optimizer.state[slot.parameter][key].copy_(tensor)
        elif self._stage == 3:
            self._write_partitioned(slot.parameter, master, moments)
        else:
            slot.parameter.data.copy_(master)
            slot.parameter.set_full_hp_param(master)
            for key, tensor in moments.items():
                slot.parameter.set_full_hp_param(tensor, key)

    def _padded(self, slot: Slot, tensor: torch.Tensor) -> torch.Tensor:
        """With the padding rows of this rank's cut, as zeros, on the device."""
        tensor = tensor.to(self._device)
        if slot.partition_dim is None:
            return tensor
        whole = list(tensor.shape)
        local = getattr(slot.parameter, "ds_shape", slot.parameter.shape)[slot.partition_dim]
        whole[slot.partition_dim] = local - slot.valid
        return torch.cat([tensor, tensor.new_zeros(whole)], dim=slot.partition_dim) if local > slot.valid else tensor

    def _write_partitioned(self, parameter: nn.Parameter, master: torch.Tensor, moments: dict[str, torch.Tensor]) -> None:
        """ZeRO-3: this rank's share of the flat, padded parameter."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param, safe_set_local_optimizer_state

        share = safe_get_local_fp32_param(parameter).numel()
        ranks, rank = self._layout.data_parallel_size, self._layout.data_parallel_rank

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            return nn.functional.pad(tensor.flatten(), (0, share * ranks - tensor.numel())).narrow(0, share * rank, share)

        safe_set_local_fp32_param(parameter, cut(master))
        parameter.ds_tensor.copy_(cut(master)[: parameter.ds_tensor.numel()])
        for key, tensor in moments.items():
            safe_set_local_optimizer_state(parameter, cut(tensor), key)
