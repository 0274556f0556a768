"""The tensors that cross from the data path to the model: fixed shapes, so that a pipeline's buffers stay static.

B rows, T frames a row, Q codebooks, D documents a row at most, S continuous text positions a row at most, C text width.
"""

from dataclasses import dataclass, fields, replace

import torch

HIDDEN = 2  # in target_mask_BTQ


@dataclass(frozen=True)
class Batch:
    """One micro-batch of packed documents, as vocabulary ids.

    codes_BTQ: int64. Frames of whole documents one after another; the rest of a row is `<pad>` frames.
    target_mask_BTQ: int8, 1 where the loss counts the code, HIDDEN where it does and the frames behind are not shown it.
    document_starts_BD: int32. First frame of each document, ascending; unused entries hold T. The padding behind the last
        document is a document of its own, so that attention never looks from it into a real one.
    prefix_lengths_BD: int32. Frames at the start of each document that attend in both directions; 0 without prefix-LM.
    positions_BT: int32. Frame's position inside its document.
    text_states_BSC: float. Continuous text states; unused rows are zero.
    text_positions_BS: int32. Frame of the row that each state stands at (its codes are `<continuous_token>`); unused: -1.
    task_ids_BD: int32. Position of the document's task in `data.tasks`; unused: -1.
    """

    codes_BTQ: torch.Tensor
    target_mask_BTQ: torch.Tensor
    document_starts_BD: torch.Tensor
    prefix_lengths_BD: torch.Tensor
    positions_BT: torch.Tensor
    text_states_BSC: torch.Tensor
    text_positions_BS: torch.Tensor
    task_ids_BD: torch.Tensor

    def to(self, device: torch.device | str, *, float_dtype: torch.dtype | None = None) -> "Batch":
        """The batch on another device; text states cast to `float_dtype` where given."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        batch = replace(self, **moved)
        if float_dtype is not None:
            batch = replace(batch, text_states_BSC=batch.text_states_BSC.to(float_dtype))
        return batch

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU need not be waited for."""
        return Batch(*(tensor.pin_memory() for tensor in self.as_tuple()))

    def as_tuple(self) -> tuple[torch.Tensor, ...]:
        """The tensors in field order: what DeepSpeed's pipeline passes from stage to stage."""
        return tuple(getattr(self, f.name) for f in fields(self))

    @property
    def target_count(self) -> int:
        """Number of codes that the loss counts."""
        return int(self.target_mask_BTQ.count_nonzero())


def document_ids_BT(document_starts_BD: torch.Tensor, frames: int) -> torch.Tensor:
    """Ordinal of each frame's document in its row, (B, T) int64, from the boundary tensor."""
    positions = torch.arange(frames, device=document_starts_BD.device, dtype=document_starts_BD.dtype)
    positions = positions.expand(document_starts_BD.shape[0], frames).contiguous()
    return torch.searchsorted(document_starts_BD.contiguous(), positions, right=True) - 1
