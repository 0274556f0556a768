"""Loaders of the tests' shards, small enough to be compared batch by batch."""

from pathlib import Path

import torch

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.loader import Loader, make_loader
from uniaudio.pretrain.data.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary("paper")
TASKS = ("tts", "vc", "se", "svs", "sound", "music", "s_edit")
T = 400


def open_loader(
    shards: Path,
    *,
    model: dict | None = None,
    split: str = "train",
    rank: int = 0,
    ranks: int = 1,
    accumulation: int = 1,
    position=None,
    **data,
) -> Loader:
    config = {"shards": str(shards), "tasks": TASKS, "frames_per_row": T, "rows_per_micro_batch": 2, "max_documents_per_row": 8}
    config |= {"max_text_states_per_row": 24, "shards_per_block": 2} | data
    return make_loader(
        DataConfig(**config),
        ModelConfig(**{"text_width": 8, **(model or {})}),
        VOCABULARY,
        split=split,
        data_parallel_rank=rank,
        data_parallel_size=ranks,
        gradient_accumulation=accumulation,
        position=position,
    )


def same(one: list[Batch], two: list[Batch]) -> bool:
    pairs = [pair for left, right in zip(one, two, strict=True) for pair in zip(left.as_tuple(), right.as_tuple())]
    return all(torch.equal(left, right) and left.dtype == right.dtype for left, right in pairs)
