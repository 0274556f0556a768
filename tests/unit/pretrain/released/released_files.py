"""Released files made from a seed: the pickle as its trainer saves it, the YAML beside it, their token list."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from original_model import Shape, Tensors

SPECIAL_NAMES = (
    "pad continuous_token start end phone_start phone_end text_start text_end audio_start audio_end image_start image_end "
    "audio_prompt_start audio_prompt_end text_prompt_start text_prompt_end semantic_start semantic_end tts_task plain_tts_task lm_task "
    "phone_to_semantic_task semantic_to_acoustic_task mega_global mega_local text_emb_start text_emb_end asr_task VC_task AT_task "
    "class_event_start class_event_end Spex_task TTA_task rvq_start rvq_end TSS_task text_t5_start text_t5_end SV_task sv_bool_start "
    "sv_bool_end SE_task sing_task sing_phone_start sing_phone_end sing_midi_start sing_midi_end TTM_task Audit_task InstructTTS_task "
    "Speech_RIR_task speech_edit_task"
)
RANGES = {"audio": 3073, "phone": 306, "semantic": 500, "sing_phone": 68, "sing_midi": 138}
SMALL_RANGES = {"audio": 31, "phone": 9, "semantic": 7}  # 3 levels of 10 and the mask


def token_list(ranges: dict[str, int]) -> list[str]:
    """128 special ids, then the ranges."""
    tokens = [f"<{name}>" for name in SPECIAL_NAMES.split()]
    tokens += ["<unused_special_token>"] * (128 - len(tokens))
    return tokens + [f"<{name}_{entry}>" for name, count in ranges.items() for entry in range(count)]


def small_shape(layers: int = 2) -> Shape:
    """As small as it gets: 128 + 47 ids."""
    return Shape(layers=layers, heads=2, width=48, codes=3, ids=128 + sum(SMALL_RANGES.values()), positions=16)


def arguments(shape: Shape, ranges: dict[str, int]) -> dict[str, Any]:
    """The training arguments, with some that do not matter here."""
    sizes = {"n_layer": shape.layers, "n_head": shape.heads, "n_embd": shape.width, "block_size": shape.positions}
    other = {"seed": 999, "learning_rate": 5e-3, "dropout": 0.0, "bias": False, "exp_dir": "exp", "resume": None}
    forms = {"prefix_lm": False, "encoder_decoder_arch": False, "whisper_model": True, "megabytes": True}
    return {**other, **sizes, **forms, "non_acoustic_repeat": shape.codes, "token_list": token_list(ranges)}


def write_config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, indent=4, sort_keys=False))
    return path


def write_checkpoint(path: Path, tensors: Tensors, *, prefix: str = "") -> Path:
    """A real torch pickle with what a trainer keeps beside the model: moments, and statistics with durations and numpy numbers."""
    first = next(iter(tensors.values()))
    moments = {"state": {"g_ln.weight": {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(first)}}, "param_groups": [{"lr": 1e-4}]}
    statistics = {"loss": np.float64(4.2), "time": datetime.timedelta(seconds=12.5), "total_count": 7}
    content = {
        "model": {f"{prefix}{name}": tensor for name, tensor in tensors.items()},
        "optimizer": moments,
        "scheduler": {"warmup_steps": 10000, "last_epoch": 3},
        "reporter": {"epoch": 1, "stats": {1: {"train": statistics}}},
    }
    torch.save(content, path)
    return path
