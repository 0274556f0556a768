"""Generation step by step: the global stack over KV caches, the local stack unrolled over the Q codes of a frame.

Owns the caches and one step's tensors; the weights and a block's mathematics are `decode_weights`, the draw is `kernels.draw`. A frame's
way: h = prefill(...) or step(codes), then level_logits(h, codes, q) for q = 0..Q-1, each after the code below it was written into codes.
Every tensor of a step has a fixed shape and place, and nothing is read back: a CUDA graph can hold it.
B rows (sequences side by side), Q codebooks, D width, K legal codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from uniaudio.errors import UserError
from uniaudio.kernels.decode_attention import decode_attention
from uniaudio.kernels.rotary import rotate
from uniaudio.kernels.varlen_attention import varlen_attention
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.model.decode_weights import DecodeBlock, DecodeWeights
from uniaudio.pretrain.model.state import State


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

    def __init__(self, rows: int, block: DecodeBlock, slots: int, like: DecodeWeights) -> None:
        shape = (rows, block.num_heads, slots, block.head_dim)
        self.keys, self.values = (torch.zeros(shape, device=like.device, dtype=like.dtype) for _ in range(2))


class DecodeState:
    """Caches of `rows` sequences side by side, each at its own length, of up to `max_frames` frames, prompt included.

    Rows are independent: `prefill(prompts, rows=[...])` starts new sequences in some rows while the others go on.
    """

    def __init__(self, weights: DecodeWeights, *, rows: int, max_frames: int) -> None:
        config = weights.config
        if not 1 <= max_frames <= config.max_positions:
            raise UserError(
                "frames to generate, prompt included, exceed model.max_positions",
                seen=max_frames,
                allowed=f"1..{config.max_positions}",
                remedy="a shorter prompt or a lower limit of frames",
            )
        self.weights, self.rows, self.max_frames = weights, rows, max_frames
        self.global_caches = [_Cache(rows, block, max_frames, weights) for block in weights.global_blocks]
        self.local_caches = [_Cache(rows, block, config.num_codebooks, weights) for block in weights.local_blocks]
        self.lengths_B = torch.zeros(rows, dtype=torch.int64, device=weights.device)  # frames in the global caches
        # Where the attention places each row's next frame.
        self.times_B = torch.zeros_like(self.lengths_B) if config.positions == "time" else None
        self._levels_QB = torch.arange(config.num_codebooks, device=weights.device)[:, None].repeat(1, rows)
        self._first_B = torch.full((rows,), weights.link.mega_local, dtype=torch.int64, device=weights.device)
        self._context: torch.Tensor | None = None

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt], *, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Runs the prompts at once, (len(prompts), D): the global output that predicts the frame behind each.

        `rows` names the row of each prompt; all rows in order unless given. What those rows held before is gone.
        """
        rows = list(range(self.rows)) if rows is None else list(rows)
        lengths = [prompt.codes_TQ.shape[0] + 1 for prompt in prompts]  # inputs: <mega_global>, then every frame of the prompt
        self._check_prompts(prompts, rows, lengths)
        batch = _pack(self.weights, prompts, lengths).to(self.lengths_B.device)
        state = self.weights.embed.state(batch, slice(0, batch.positions_BT.numel()))
        hidden_XD = state.hidden
        index = torch.tensor(rows, device=hidden_XD.device)
        for block, cache in zip(self.weights.global_blocks, self.global_caches, strict=True):
            hidden_XD = block(hidden_XD, partial(self._attend_prompts, state, cache, index))
        self.lengths_B[index] = torch.tensor(lengths, device=hidden_XD.device)
        last = torch.arange(len(prompts), device=hidden_XD.device), self.lengths_B[index] - 1
        if self.times_B is not None:
            self.times_B[index] = state.positions_BT[last].to(torch.int64) + 1
        return hidden_XD.unflatten(0, (len(prompts), -1))[last]

    @torch.no_grad()
    def step(self, codes_BQ: torch.Tensor, active_B: torch.Tensor | None = None) -> torch.Tensor:
        """Takes the frame just completed in every row, (B, Q) int64, and returns the global output (B, D) of the next.

        Rows whose `active_B` is 0 do not grow, and what is returned for them means nothing. The caller keeps every active row below
        max_frames.
        """
        hidden_BD = self.weights.embed.frames(codes_BQ, self.lengths_B)
        for block, cache in zip(self.weights.global_blocks, self.global_caches, strict=True):
            hidden_BD = block(hidden_BD, partial(self._attend, cache, self.lengths_B, times_B=self.times_B))
        self.lengths_B += 1 if active_B is None else active_B
        if self.times_B is not None:
            self.times_B += 1 if active_B is None else active_B
        return hidden_BD

    def release(self, rows: Sequence[int]) -> None:
        """Ends the sequences of these rows: their caches count as empty."""
        self.lengths_B[torch.tensor(list(rows), device=self.lengths_B.device)] = 0

    @torch.no_grad()
    def level_logits(self, hidden_BD: torch.Tensor, codes_BQ: torch.Tensor, level: int) -> torch.Tensor:
        """(B, K): logits of the legal ids of `level` of the frame that `hidden_BD` predicts.

        Reads codes_BQ[:, level - 1] and adds to the caches: call for levels 0, 1, ... in order.
        """
        link = self.weights.link
        if level == 0:
            self._context = self.weights.context(hidden_BD)
        if self._context is None or not 0 <= level < self.weights.config.num_codebooks:
            raise ValueError(f"levels come in order from 0 | seen: {level} | allowed: 0..{self.weights.config.num_codebooks - 1}")
        previous_B = codes_BQ[:, level - 1].contiguous() if level else self._first_B
        x_BD = self._context[:, level if link.split else 0] + link.codes(previous_B, self._levels_QB[level])
        for block, cache in zip(self.weights.local_blocks, self.local_caches, strict=True):
            x_BD = block(x_BD, partial(self._attend, cache, self._levels_QB[level]))
        return self.weights.heads[level](x_BD)

    def _attend(
        self, cache: _Cache, lengths_B: torch.Tensor, packed_BN3H: torch.Tensor, *, times_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One query a row against its cached frames (or levels) and itself."""
        if times_B is not None:
            packed_BN3H = rotate(packed_BN3H, times_B, backend=self.weights.backend)
        return decode_attention(packed_BN3H, cache.keys, cache.values, lengths_B, early=True, backend=self.weights.backend)

    def _attend_prompts(self, state: State, cache: _Cache, index: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        """Attention of whole prompts, as in training; keys and values go to the rows `index` of the cache."""
        rows, frames, _ = state.codes_BTQ.shape
        if self.times_B is not None:
            packed = rotate(packed, state.positions_BT.flatten(), backend=self.weights.backend)
        packed_BT = packed.unflatten(0, (rows, frames))
        _, keys, values = packed_BT.permute(3, 0, 2, 1, 4)
        cache.keys[index, :, :frames] = keys
        cache.values[index, :, :frames] = values
        prefix = state.prefix_lengths_BD if self.weights.config.prefix_lm else None
        return varlen_attention(packed_BT, state.document_starts_BD, prefix, backend=self.weights.backend).flatten(0, 1)

    def _check_prompts(self, prompts: Sequence[Prompt], rows: list[int], lengths: list[int]) -> None:
        if len(prompts) != len(rows) or len(set(rows)) != len(rows) or not all(0 <= row < self.rows for row in rows):
            raise ValueError(
                f"prefill: one row for each prompt | seen: {len(prompts)} prompts, rows {rows} | allowed: 0..{self.rows - 1}, each once"
            )
        for prompt in prompts:
            if prompt.text_states_SC is not None and prompt.text_states_SC.shape[1] != self.weights.config.text_width:
                raise UserError(
                    "text states of another width than model.text_width",
                    seen=prompt.text_states_SC.shape[1],
                    allowed=self.weights.config.text_width,
                    remedy="encode the text with the encoder that the model was trained with",
                )
        if max(lengths) > self.max_frames:
            raise UserError(
                "a prompt is longer than the KV cache",
                seen=f"{max(lengths) - 1} frames",
                allowed=f"up to {self.max_frames - 1}",
                remedy="a shorter prompt or a higher max_frames",
            )


def _pack(weights: DecodeWeights, prompts: Sequence[Prompt], lengths: list[int]) -> Batch:
    """One prompt a row, one frame longer than the prompt: its last frame is the input of the frame to come."""
    rows, frames = len(prompts), max(lengths)
    states = max([prompt.text_states_SC.shape[0] for prompt in prompts if prompt.text_states_SC is not None], default=0)
    codes_BTQ = torch.zeros(rows, frames, weights.config.num_codebooks, dtype=torch.int64)
    text_BSC = torch.zeros(rows, states, weights.config.text_width)
    text_positions_BS = torch.full((rows, states), -1, dtype=torch.int32)
    for row, prompt in enumerate(prompts):
        codes_BTQ[row, : lengths[row] - 1] = prompt.codes_TQ.cpu()
        if prompt.text_states_SC is not None and prompt.text_positions_S is not None:
            text_BSC[row, : prompt.text_states_SC.shape[0]] = prompt.text_states_SC.cpu().float()
            text_positions_BS[row, : prompt.text_positions_S.shape[0]] = prompt.text_positions_S.cpu().to(torch.int32)
    ends_B = torch.tensor(lengths, dtype=torch.int32)
    return Batch(
        codes_BTQ=codes_BTQ,
        target_mask_BTQ=torch.zeros(rows, frames, weights.config.num_codebooks, dtype=torch.int8),
        document_starts_BD=torch.stack((torch.zeros_like(ends_B), ends_B), dim=1),
        prefix_lengths_BD=torch.tensor([[prompt.prefix_length, 0] for prompt in prompts], dtype=torch.int32),
        positions_BT=torch.arange(frames, dtype=torch.int32).repeat(rows, 1),
        text_states_BSC=text_BSC,
        text_positions_BS=text_positions_BS,
        task_ids_BD=torch.zeros(rows, 2, dtype=torch.int32),
    )
