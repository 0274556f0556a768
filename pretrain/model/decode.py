"""Generation step by step: the global stack over KV caches, the local stack unrolled over the Q codes of a frame.

Owns the caches and the mathematics of one step; it runs the same modules as training, so its logits equal the teacher-forced ones.
Owns no sampling (`pretrain.sampling`). A frame's way: h = prefill(...) or step(codes), then Q times local_logits(h, codes so far).
Caches have a fixed size, and every tensor of a step has a fixed shape within a span of `SPAN` frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.kernels.varlen_attention import varlen_attention
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.tensor import Backend

SPAN = 128  # a step attends to the cached frames up to the next multiple of this


@dataclass(frozen=True)
class Prompt:
    """The frames before the first generated one: one document from `<start>` to `<audio_start>`.

    codes_TQ: int64, T of 1 or more. text_states_SC with text_positions_S (frames of the prompt), both or none. prefix_length: frames
    that attend both ways (0 without prefix-LM), at most T.
    """

    codes_TQ: torch.Tensor
    text_states_SC: torch.Tensor | None = None
    text_positions_S: torch.Tensor | None = None
    prefix_length: int = 0


class _Cache:
    """Keys and values of one block: (rows, N, slots, H) each."""

    def __init__(self, rows: int, heads: int, slots: int, head_dim: int, like: torch.Tensor) -> None:
        self.keys, self.values = (torch.zeros(rows, heads, slots, head_dim, device=like.device, dtype=like.dtype) for _ in range(2))


class DecodeState:
    """Caches of `rows` sequences side by side, each at its own length, of up to `max_frames` frames, prompt included.

    Rows are independent: `prefill(prompts, rows=[...])` starts new sequences in some rows while the others go on.
    """

    def __init__(self, model: MultiScaleTransformer, *, rows: int, max_frames: int) -> None:
        config = model.config
        if not 1 <= max_frames <= config.max_positions:
            raise UserError(
                "frames to generate, prompt included, exceed model.max_positions",
                seen=max_frames,
                allowed=f"1..{config.max_positions}",
                remedy="a shorter prompt or a lower limit of frames",
            )
        self.model, self.rows, self.max_frames = model, rows, max_frames
        like = model.head.projection.weight
        self.global_caches = [
            _Cache(rows, block.attention.num_heads, max_frames, block.attention.head_dim, like) for block in model.global_blocks
        ]
        self.local_caches = [
            _Cache(rows, block.attention.num_heads, config.num_codebooks, block.attention.head_dim, like) for block in model.local_blocks
        ]
        self.lengths_B = torch.zeros(rows, dtype=torch.int64, device=like.device)  # frames in the global caches
        self._host_lengths = [0] * rows  # the same on the host: no synchronisation in a step
        self._active_B = torch.zeros_like(self.lengths_B)  # 1 where a sequence is going on
        self._row_index = torch.arange(rows, device=like.device)
        self._context: torch.Tensor | None = None

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt], *, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Runs the prompts at once, (len(prompts), D): the global output that predicts the frame behind each.

        `rows` names the row of each prompt; all rows in order unless given. What those rows held before is gone.
        """
        rows = list(range(self.rows)) if rows is None else list(rows)
        lengths = [prompt.codes_TQ.shape[0] + 1 for prompt in prompts]  # inputs: <mega_global>, then every frame of the prompt
        self._check_prompts(prompts, rows, lengths)
        batch = _pack(self.model, prompts, lengths).to(self.lengths_B.device)
        hidden_XD = self.model.embed(batch.as_tuple())[0]
        index = torch.tensor(rows, device=hidden_XD.device)
        for block, cache in zip(self.model.global_blocks, self.global_caches, strict=True):
            hidden_XD = block.residual(hidden_XD, partial(self._attend_prompts, batch, cache, index, block.backend))
        self.lengths_B[index] = torch.tensor(lengths, device=hidden_XD.device)
        self._active_B[index] = 1
        for row, length in zip(rows, lengths, strict=True):
            self._host_lengths[row] = length
        last_B = self.lengths_B[index] - 1
        return hidden_XD.unflatten(0, (len(prompts), -1))[torch.arange(len(prompts), device=last_B.device), last_B]

    @torch.no_grad()
    def step(self, codes_BQ: torch.Tensor) -> torch.Tensor:
        """Takes the frame just completed in every row, (rows, Q) int64, and returns the global output (rows, D) of the next."""
        longest = max(self._host_lengths)
        if longest >= self.max_frames:
            raise UserError(
                "the KV cache is full", seen=f"{longest} frames", allowed=f"max_frames={self.max_frames}", remedy="a higher max_frames"
            )
        span = min(self.max_frames, (longest // SPAN + 1) * SPAN)
        visible_BS = torch.arange(span, device=codes_BQ.device) <= self.lengths_B.unsqueeze(1)
        hidden_BD = self.model.embed.frames(codes_BQ.contiguous(), self.lengths_B)
        for block, cache in zip(self.model.global_blocks, self.global_caches, strict=True):
            hidden_BD = block.residual(hidden_BD, partial(self._attend_cache, cache, span, visible_BS))
        self.lengths_B += self._active_B
        self._host_lengths = [length + (length > 0) for length in self._host_lengths]
        return hidden_BD

    def release(self, rows: Sequence[int]) -> None:
        """Ends the sequences of these rows: they no longer grow, and what the next steps return for them means nothing."""
        index = torch.tensor(list(rows), device=self.lengths_B.device)
        self.lengths_B[index] = 0
        self._active_B[index] = 0
        for row in rows:
            self._host_lengths[row] = 0

    @torch.no_grad()
    def local_logits(self, hidden_BD: torch.Tensor, codes_Bq: torch.Tensor) -> torch.Tensor:
        """(rows, V): logits of level q = codes_Bq.shape[1] of the frame that `hidden_BD` (rows, D) predicts.

        codes_Bq: (rows, q) int64, the codes of the levels below. Call for q = 0, 1, ... Q-1 in order: each call reads the last column
        only and adds to the caches.
        """
        level = codes_Bq.shape[1]
        if level == 0:
            self._context = self.model.link.context(hidden_BD)
        if self._context is None or level >= self.model.config.num_codebooks:
            raise ValueError(
                f"local_logits: levels come in order from 0 | seen: {level} | allowed: 0..{self.model.config.num_codebooks - 1}"
            )
        x = self.model.link.level_input(self._context, level, codes_Bq[:, -1].contiguous() if level else None)
        for block, cache in zip(self.model.local_blocks, self.local_caches, strict=True):
            x = block.residual(x, partial(self._attend_levels, cache, level))
        return self.model.head.logits(x[:, 0])

    def _attend_prompts(self, batch: Batch, cache: _Cache, index: torch.Tensor, backend: Backend, packed: torch.Tensor) -> torch.Tensor:
        """Attention of whole prompts, as in training; keys and values go to the rows `index` of the cache."""
        rows, frames, _ = batch.codes_BTQ.shape
        packed_BT = packed.unflatten(0, (rows, frames))
        _, keys, values = packed_BT.permute(3, 0, 2, 1, 4)
        cache.keys[index, :, :frames] = keys
        cache.values[index, :, :frames] = values
        prefix = batch.prefix_lengths_BD if self.model.config.prefix_lm else None
        return varlen_attention(packed_BT, batch.document_starts_BD, prefix, backend=backend).flatten(0, 1)

    def _attend_cache(self, cache: _Cache, span: int, visible_BS: torch.Tensor, packed_BN3H: torch.Tensor) -> torch.Tensor:
        """One query a row against its cached frames and itself."""
        query, key, value = packed_BN3H.unbind(dim=2)
        cache.keys[self._row_index, :, self.lengths_B] = key
        cache.values[self._row_index, :, self.lengths_B] = value
        out = F.scaled_dot_product_attention(
            query.unsqueeze(2), cache.keys[:, :, :span], cache.values[:, :, :span], attn_mask=visible_BS[:, None, None]
        )
        return out.flatten(1)

    def _attend_levels(self, cache: _Cache, level: int, packed_B1N3H: torch.Tensor) -> torch.Tensor:
        """One query a row against the levels of this frame so far and itself."""
        query, key, value = packed_B1N3H.squeeze(1).unbind(dim=2)
        cache.keys[:, :, level] = key
        cache.values[:, :, level] = value
        out = F.scaled_dot_product_attention(query.unsqueeze(2), cache.keys[:, :, : level + 1], cache.values[:, :, : level + 1])
        return out.flatten(1).unsqueeze(1)

    def _check_prompts(self, prompts: Sequence[Prompt], rows: list[int], lengths: list[int]) -> None:
        if len(prompts) != len(rows) or len(set(rows)) != len(rows) or not all(0 <= row < self.rows for row in rows):
            raise ValueError(
                f"prefill: one row for each prompt | seen: {len(prompts)} prompts, rows {rows} | allowed: 0..{self.rows - 1}, each once"
            )
        for prompt in prompts:
            if prompt.text_states_SC is not None and prompt.text_states_SC.shape[1] != self.model.config.text_width:
                raise UserError(
                    "text states of another width than model.text_width",
                    seen=prompt.text_states_SC.shape[1],
                    allowed=self.model.config.text_width,
                    remedy="encode the text with the encoder that the model was trained with",
                )
        if max(lengths) > self.max_frames:
            raise UserError(
                "a prompt is longer than the KV cache",
                seen=f"{max(lengths) - 1} frames",
                allowed=f"up to {self.max_frames - 1}",
                remedy="a shorter prompt or a higher max_frames",
            )


def _pack(model: MultiScaleTransformer, prompts: Sequence[Prompt], lengths: list[int]) -> Batch:
    """One prompt a row, one frame longer than the prompt: its last frame is the input of the frame to come."""
    rows, frames = len(prompts), max(lengths)
    states = max([prompt.text_states_SC.shape[0] for prompt in prompts if prompt.text_states_SC is not None], default=0)
    codes_BTQ = torch.zeros(rows, frames, model.config.num_codebooks, dtype=torch.int64)
    text_BSC = torch.zeros(rows, states, model.config.text_width)
    text_positions_BS = torch.full((rows, states), -1, dtype=torch.int32)
    for row, prompt in enumerate(prompts):
        codes_BTQ[row, : lengths[row] - 1] = prompt.codes_TQ.cpu()
        if prompt.text_states_SC is not None and prompt.text_positions_S is not None:
            text_BSC[row, : prompt.text_states_SC.shape[0]] = prompt.text_states_SC.cpu().float()
            text_positions_BS[row, : prompt.text_positions_S.shape[0]] = prompt.text_positions_S.cpu().to(torch.int32)
    ends_B = torch.tensor(lengths, dtype=torch.int32)
    positions_BT = torch.arange(frames, dtype=torch.int32).expand(rows, frames)
    return Batch(
        codes_BTQ=codes_BTQ,
        target_mask_BTQ=torch.zeros(rows, frames, model.config.num_codebooks, dtype=torch.int8),
        document_starts_BD=torch.stack((torch.zeros_like(ends_B), ends_B), dim=1),
        prefix_lengths_BD=torch.tensor([[prompt.prefix_length, 0] for prompt in prompts], dtype=torch.int32),
        positions_BT=positions_BT.contiguous(),
        text_states_BSC=text_BSC,
        text_positions_BS=text_positions_BS,
        task_ids_BD=torch.zeros(rows, 2, dtype=torch.int32),
    )
