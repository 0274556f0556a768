"""First layer: codes -> one vector a frame, shifted one frame to the right inside each document.

The input of frame t is frame t-1 of the same document, `<mega_global>` at a document's first frame. Where the shifted
frame is a continuous text state, its linear map replaces the code embedding (paper, "Tokens"). Learned positions count
from the document's first frame; those by time (`positions`) are handed on to the attention. What `data.hide_history`
hides becomes the audio mask.
"""

import torch
from torch import nn
from torch.nn import functional as F

from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.data.batch import HIDDEN, Batch
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.model.layers import Linear, Table
from uniaudio.pretrain.model.positions import SegmentTimes
from uniaudio.pretrain.model.state import State
from uniaudio.pretrain.parallel.tensor import Backend, TensorParallel, lookup, vocabulary_embedding


class Embed(nn.Module):
    """`Batch.as_tuple()` -> State with hidden (B*T, D), of this rank's frames."""

    def __init__(self, config: ModelConfig, *, vocabulary: Vocabulary, tensor: TensorParallel, backend: Backend) -> None:
        super().__init__()
        self.tensor = tensor
        self.mode, self.mega_global, self.mask = config.embedding, vocabulary.special("<mega_global>"), vocabulary.audio_mask
        self.backend = backend
        code_width = config.width if config.embedding == "sum" else config.width // config.num_codebooks
        self.code = vocabulary_embedding(vocabulary.size, code_width)
        learned = config.positions == "learned"
        self.position = Table(config.max_positions, config.width) if learned else None
        self.times = None if learned else SegmentTimes(vocabulary)
        self.text = Linear(config.text_width, config.width)

    def frames(self, codes_XQ: torch.Tensor, positions_X: torch.Tensor) -> torch.Tensor:
        """Frame vectors (X, D) of already shifted codes, learned positions included."""
        if self.position is None:
            return self.code(codes_XQ, mode=self.mode, backend=self.backend)
        return self.code(codes_XQ, positions_X, self.position.weight, mode=self.mode, backend=self.backend)

    def shifted(self, batch: Batch) -> torch.Tensor:
        """Codes one frame to the right inside each document, (B, T, Q), those that are hidden from what follows as the audio mask."""
        shown_BTQ = batch.codes_BTQ.masked_fill(batch.target_mask_BTQ == HIDDEN, self.mask)
        previous = F.pad(shown_BTQ[:, :-1], (0, 0, 1, 0), value=self.mega_global)
        return previous.masked_fill((batch.positions_BT == 0).unsqueeze(-1), self.mega_global)

    def place_text(self, frames_XD: torch.Tensor, batch: Batch, first: int) -> torch.Tensor:
        """Replaces the frame vector one position right of each text state; states for other frames than `first`.. land on a spare row."""
        rows, frames = batch.positions_BT.shape
        place_BS = batch.text_positions_BS.to(torch.int64) + 1
        inside_BS = place_BS < frames
        place_BS = place_BS.clamp(max=frames - 1)
        position_BS = batch.positions_BT.gather(1, place_BS)
        # No frame at position 0 takes text: an unused state points there, and one on its document's last frame is nobody's input.
        inside_BS &= position_BS > 0
        count = frames_XD.shape[0]
        index_BS = torch.arange(rows, device=place_BS.device).unsqueeze(1) * frames + place_BS - first
        index_BS = torch.where(inside_BS & (index_BS >= 0) & (index_BS < count), index_BS, count)
        vectors = self.text(batch.text_states_BSC.to(frames_XD.dtype))
        if self.position is not None:
            vectors = vectors + lookup(position_BS, self.position.weight, backend=self.backend)
        return F.pad(frames_XD, (0, 0, 0, 1)).index_copy(0, index_BS.flatten(), vectors.flatten(0, 1))[:-1]

    def state(self, batch: Batch, own: slice) -> State:
        """The state with the vectors of the frames `own` of all rows in order; all else whole."""
        shifted_BTQ = self.shifted(batch)
        frames_XD = self.frames(shifted_BTQ.flatten(0, 1)[own], batch.positions_BT.flatten()[own])
        positions_BT = batch.positions_BT
        if self.times is not None:
            positions_BT = self.times(batch.codes_BTQ[..., 0], shifted_BTQ[..., 0], positions_BT == 0)
        return State(
            self.place_text(frames_XD, batch, own.start),
            batch.codes_BTQ,
            (batch.target_mask_BTQ != 0).to(torch.int32),
            batch.document_starts_BD,
            batch.prefix_lengths_BD,
            batch.task_ids_BD,
            positions_BT,
        )

    def forward(self, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Batch.as_tuple() -> State."""
        batch = Batch(*state)
        return tuple(self.state(batch, self.tensor.own(batch.positions_BT.numel())))
