"""Tiny objects for the model's tests, made from an integer: a vocabulary, configs, packed batches."""

from typing import Any

import torch

from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import Vocabulary

SPECIALS = ("<pad>", "<continuous_token>", "<start>", "<end>", "<mega_global>", "<mega_local>", "<audio_start>", "<phone_start>")
VOCABULARY = Vocabulary(name="tiny", reserved=8, specials=SPECIALS, mask="audio", ranges=(("audio", 8, 8, 3), ("phone", 33, 9, 1)))
CONTINUOUS = 1
AUDIO_START = 6

PAPER_FORM = {"embedding": "sum", "link": "shared"}
RELEASED_FORM = {"embedding": "concat", "link": "split"}
TIME_FORM = {"positions": "time"}


def tiny_config(**changes: Any) -> ModelConfig:
    """Two global and two local blocks, width 48, 3 codebooks."""
    values = {
        "num_codebooks": 3,
        "width": 48,
        "num_heads": 2,
        "local_num_heads": 6,
        "ffn_width": 64,
        "global_layers": 2,
        "local_layers": 2,
        "max_positions": 64,
        "text_width": 10,
        "init_std": 0.3,
        "kernels": "torch",
    }
    return ModelConfig(**{**values, **changes})


def tiny_batch(
    seed: int, *, documents: tuple[tuple[int, ...], ...] = ((7, 5), (4, 3, 4)), frames: int = 13, num_tasks: int = 2, text_width: int = 10
) -> Batch:
    """Rows of packed documents of the given lengths, the rest padding; text states on frames 1 and 2 of each document, and on its
    last one, whose state no frame may see."""
    draw = torch.Generator().manual_seed(seed)
    rows, most = len(documents), max(len(row) for row in documents) + 2
    codes = torch.randint(8, VOCABULARY.size, (rows, frames, 3), generator=draw)
    mask = torch.randint(0, 2, (rows, frames, 3), generator=draw, dtype=torch.int8)
    starts = torch.full((rows, most), frames, dtype=torch.int32)
    prefix, tasks = torch.zeros(rows, most, dtype=torch.int32), torch.full((rows, most), -1, dtype=torch.int32)
    positions = torch.zeros(rows, frames, dtype=torch.int32)
    text_positions = torch.full((rows, 3 * most), -1, dtype=torch.int32)
    for row, lengths in enumerate(documents):
        first = 0
        for index, length in enumerate((*lengths, frames - sum(lengths))):
            if length == 0:
                continue
            starts[row, index] = first
            positions[row, first : first + length] = torch.arange(length, dtype=torch.int32)
            if index < len(lengths):
                prefix[row, index] = length // 2 + 1
                tasks[row, index] = (row + index) % num_tasks
                if length > 6:
                    codes[row, first + 4] = AUDIO_START
                for slot, frame in enumerate((1, 2, length - 1)):
                    text_positions[row, 3 * index + slot] = first + frame
                    codes[row, first + frame] = CONTINUOUS
            else:
                codes[row, first:] = 0
                mask[row, first:] = 0
            first += length
    states = torch.randn(rows, text_positions.shape[1], text_width, generator=draw) * (text_positions >= 0).unsqueeze(-1)
    return Batch(codes, mask, starts, prefix, positions, states, text_positions, tasks)
