"""What one layer hands to the next: a plain tuple of tensors of fixed shape, so that a pipeline can send it.

The embedding takes `Batch.as_tuple()`; the head returns sums. Every layer between takes and returns the tuple below. Its only
floating tensor is the hidden state, and no tensor is boolean: what DeepSpeed's pipeline sends and differentiates.
"""

from typing import NamedTuple

import torch


class State(NamedTuple):
    """hidden: (B*T, D) in the global stack, (B*T, Q, D) in the local one, token-major throughout; under tensor parallelism of this rank's
    frames alone. All else is whole on every rank:

    codes_BTQ int64, target_mask_BTQ int32 (0 or 1), document_starts_BD, prefix_lengths_BD and task_ids_BD int32: as in Batch.
    positions_BT int32: where the global stack's attention places each frame (by `positions.SegmentTimes`, or as in Batch).
    """

    hidden: torch.Tensor
    codes_BTQ: torch.Tensor
    target_mask_BTQ: torch.Tensor
    document_starts_BD: torch.Tensor
    prefix_lengths_BD: torch.Tensor
    task_ids_BD: torch.Tensor
    positions_BT: torch.Tensor

    def with_hidden(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same state with another hidden tensor, as the plain tuple that crosses a layer's border."""
        return (hidden, *self[1:])
