"""Frames one after another: the global stack over its caches, the Q codes of a frame drawn level by level.

Owns the loop, the legal ids and the stop rule; the mathematics of a step is `pretrain.model.decode`, the draw `pretrain.sampling`.
Shapes: B sequences, Q codebooks, V vocabulary; results are raw codes (T, Q) of one sequence each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uniaudio.errors import UserError
from uniaudio.pretrain.data.sequence import Sequence as Document
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.model.decode import DecodeState, Prompt
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.sampling import Sampling, draw, sequence_generators

FRAME_RATE = 50


@dataclass(frozen=True)
class Generated:
    """codes_TQ: uint16 raw codec codes. stopped: the model ended the audio itself; False: the limit of frames did."""

    codes_TQ: np.ndarray
    stopped: bool


def to_prompt(document: Document) -> Prompt:
    """The numpy document of the data path as the tensors of the decoder."""
    has_text = document.text_positions.size > 0
    return Prompt(
        codes_TQ=torch.from_numpy(document.codes_LQ),
        text_states_SC=torch.from_numpy(document.text_states.astype(np.float32)) if has_text else None,
        text_positions_S=torch.from_numpy(document.text_positions) if has_text else None,
        prefix_length=document.prefix_length,
    )


def legal_ids(vocabulary: Vocabulary, num_codebooks: int, device: torch.device) -> torch.Tensor:
    """(Q, V) bool: the codes of each level; `<audio_end>` is added at level 0 where a sequence may stop."""
    legal_QV = torch.zeros(num_codebooks, vocabulary.size, dtype=torch.bool, device=device)
    for level in range(num_codebooks):
        span = vocabulary.audio_level(level)
        legal_QV[level, span.start : span.stop] = True
    return legal_QV


@torch.inference_mode()
def generate_codes(
    model: MultiScaleTransformer,
    vocabulary: Vocabulary,
    documents: Sequence[Document],
    *,
    sampling: Sampling,
    seed: int,
    min_frames: int = 1,
    max_frames: int = 20 * FRAME_RATE,
    progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Continues every document (which ends with `<audio_start>`) until its `<audio_end>` or `max_frames` frames.

    A sequence's codes depend on its document, on `seed` + its place in `documents`, and on nothing else of the batch.

    Raises:
        UserError: documents and `max_frames` do not fit the model's positions.
    """
    if not 1 <= min_frames <= max_frames:
        raise UserError("frames to generate", seen=f"at least {min_frames}, at most {max_frames}", allowed="1 <= min <= max")
    longest = max(document.codes_LQ.shape[0] for document in documents)
    room = model.config.max_positions - longest - 1
    if room < max_frames:
        raise UserError(
            "the conditions and the audio do not fit the model's positions",
            seen=f"{longest} + {max_frames} frames",
            allowed=f"{model.config.max_positions}",
            remedy=f"generate at most {max(room, 0) / FRAME_RATE:g} s, or shorten the prompt",
        )
    state = DecodeState(model, rows=len(documents), max_frames=longest + max_frames + 1)
    hidden_BD = state.prefill([to_prompt(document) for document in documents])
    generators = sequence_generators(seed, len(documents))
    legal_QV = legal_ids(vocabulary, model.config.num_codebooks, hidden_BD.device)
    end = vocabulary.special("<audio_end>")
    frames: list[torch.Tensor] = []
    ends_B = [max_frames] * len(documents)
    for frame in range(max_frames):
        codes_BQ = _draw_frame(state, hidden_BD, legal_QV, end if frame >= min_frames else None, sampling, generators)
        for row in torch.nonzero(codes_BQ[:, 0] == end).flatten().tolist():
            ends_B[row] = min(ends_B[row], frame)
        frames.append(codes_BQ)
        if progress is not None:
            progress(frame + 1)
        if max(ends_B) <= frame or frame + 1 == max_frames:
            break
        hidden_BD = state.step(codes_BQ)
    offsets_Q = torch.tensor([vocabulary.audio_level(q).start for q in range(model.config.num_codebooks)])
    codes_BTQ = torch.stack(frames, dim=1).cpu()
    return [Generated((codes_BTQ[row, :stop] - offsets_Q).numpy().astype(np.uint16), stop < max_frames) for row, stop in enumerate(ends_B)]


def _draw_frame(
    state: DecodeState,
    hidden_BD: torch.Tensor,
    legal_QV: torch.Tensor,
    end: int | None,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """The Q codes of the next frame of every sequence, (B, Q) vocabulary ids."""
    codes_BQ = torch.empty(hidden_BD.shape[0], 0, dtype=torch.int64, device=hidden_BD.device)
    for level, legal_V in enumerate(legal_QV):
        logits_BV = state.local_logits(hidden_BD, codes_BQ)
        if level == 0 and end is not None:
            legal_V = legal_V.clone()
            legal_V[end] = True
        drawn_B = draw(logits_BV, legal_V.expand(logits_BV.shape), sampling, generators)
        codes_BQ = torch.cat([codes_BQ, drawn_B[:, None]], dim=1)
    return codes_BQ
