"""A tiny model with the paper's vocabulary, and documents of every task made from an integer."""

import numpy as np
import torch

from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import load_task
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.sequence import MASKED, Sequence, build_prompt_sequence
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.model.model import MultiScaleTransformer

CONFIG = ModelConfig(width=32, num_heads=2, ffn_width=64, global_layers=2, local_layers=2, max_positions=96, text_width=8, init_std=0.3)
VOCABULARY = load_vocabulary("paper")
TASKS = ("tts", "vc", "se", "tse", "svs", "sound", "music", "a_edit", "sd", "i_tts", "s_edit")
ENTRIES = {"phone": 306, "semantic": 500, "sing_phone": 68, "sing_midi": 138}


def tiny_model(**changes: object) -> MultiScaleTransformer:
    return MultiScaleTransformer(CONFIG.model_copy(update=changes), VOCABULARY, seed=1).eval()


def document(name: str, seed: int, *, prefix_lm: bool = False) -> Sequence:
    """Conditions of a task, 4 to 11 frames each."""
    rng = np.random.default_rng(seed)
    task, views = load_task(name), {}
    frames = int(rng.integers(4, 12))
    for segment in task.conditions:
        count = frames if segment.follows_target else int(rng.integers(4, 12))
        if segment.modality == "continuous":
            view = rng.standard_normal((count, 8)).astype(np.float16)
        elif segment.modality == "audio":
            view = rng.integers(0, 1024, (count, 3)).astype(np.uint16)
            if segment.draw == "masked":
                view[1:3] = MASKED
        elif segment.view.startswith("phone"):
            lasts = np.array([count - 3, 3]) if segment.durations == "keep" else np.zeros(count)
            view = np.stack([rng.integers(0, ENTRIES[segment.modality], len(lasts)), lasts], axis=1).astype(np.uint16)
        else:
            view = rng.integers(0, ENTRIES[segment.modality], count).astype(np.uint16)
        views[segment.key] = view
    return build_prompt_sequence(task, views, VOCABULARY, 3, prefix_lm=prefix_lm)


def as_ids(codes_TQ: np.ndarray) -> np.ndarray:
    """Raw codes as vocabulary ids."""
    return codes_TQ.astype(np.int64) + [VOCABULARY.audio_level(level).start for level in range(3)]


def teacher_forced(model: MultiScaleTransformer, prompt: Sequence, codes_TQ: np.ndarray) -> torch.Tensor:
    """(T + 1, Q, V): logits of the frames of `codes_TQ` behind a prompt, and of the frame behind them."""
    target = np.concatenate([as_ids(codes_TQ), np.zeros((1, 3), np.int64)])
    codes = torch.from_numpy(np.concatenate([prompt.codes_LQ, target]))[None]
    batch = Batch(
        codes_BTQ=codes,
        target_mask_BTQ=torch.ones_like(codes, dtype=torch.int8),
        document_starts_BD=torch.tensor([[0]], dtype=torch.int32),
        prefix_lengths_BD=torch.tensor([[prompt.prefix_length]], dtype=torch.int32),
        positions_BT=torch.arange(codes.shape[1], dtype=torch.int32)[None],
        text_states_BSC=torch.from_numpy(prompt.text_states.astype(np.float32)).reshape(1, -1, 8),
        text_positions_BS=torch.from_numpy(prompt.text_positions.astype(np.int32))[None],
        task_ids_BD=torch.tensor([[0]], dtype=torch.int32),
    )
    return model.logits(batch)[0, len(prompt.codes_LQ) :].detach()
