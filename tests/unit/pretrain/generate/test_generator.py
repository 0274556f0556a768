"""Generated codes are legal, reproducible, independent of their neighbours, and what the teacher-forced model would say."""

import numpy as np
import pytest
import torch

from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.sequence import Sequence, build_prompt_sequence
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.generate.generator import generate_codes
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.sampling import Sampling

CONFIG = ModelConfig(width=32, num_heads=2, ffn_width=64, global_layers=2, local_layers=2, max_positions=96, text_width=8, init_std=0.3)
VOCABULARY = load_vocabulary("paper")


@pytest.fixture(scope="module")
def model() -> MultiScaleTransformer:
    torch.set_num_threads(1)
    return MultiScaleTransformer(CONFIG, VOCABULARY, seed=1).eval()


def speech(number: int) -> Sequence:
    rng = np.random.default_rng(number)
    views = {
        "phone": np.stack([rng.integers(0, 306, 4 + number), np.zeros(4 + number)], 1).astype(np.uint16),
        "prompt": rng.integers(0, 1024, (6 + number, 3)).astype(np.uint16),
    }
    return build_prompt_sequence(load_task("tts"), views, VOCABULARY, 3)


def sound(number: int) -> Sequence:
    states = np.random.default_rng(number).standard_normal((3 + number, 8)).astype(np.float16)
    return build_prompt_sequence(load_task("sound"), {"text": states}, VOCABULARY, 3)


def test_codes_are_raw_codes_of_every_level_and_limits_hold(model):
    for clip in generate_codes(model, VOCABULARY, [speech(0), sound(1)], sampling=Sampling(), seed=0, min_frames=4, max_frames=12):
        assert clip.codes_TQ.dtype == np.uint16
        assert clip.codes_TQ.max() < 1024
        assert clip.codes_TQ.shape[1] == 3
        assert 4 <= len(clip.codes_TQ) <= 12
        assert clip.stopped == (len(clip.codes_TQ) < 12)


def test_a_sequence_is_the_same_alone_and_in_a_batch(model):
    documents = [speech(0), sound(2), speech(5)]
    together = generate_codes(model, VOCABULARY, documents, sampling=Sampling(), seed=7, max_frames=10)
    for place, document in enumerate(documents):
        [alone] = generate_codes(model, VOCABULARY, [document], sampling=Sampling(), seed=7 + place, max_frames=10)
        assert np.array_equal(alone.codes_TQ, together[place].codes_TQ)


def as_batch(document: Sequence, codes_TQ: np.ndarray) -> Batch:
    target = codes_TQ.astype(np.int64) + [VOCABULARY.audio_level(q).start for q in range(3)]
    codes = torch.from_numpy(np.concatenate([document.codes_LQ, target]))[None]
    frames = codes.shape[1]
    states = torch.from_numpy(document.text_states.astype(np.float32)).reshape(1, -1, 8)
    return Batch(
        codes_BTQ=codes,
        target_mask_BTQ=torch.ones_like(codes, dtype=torch.int8),
        document_starts_BD=torch.tensor([[0]], dtype=torch.int32),
        prefix_lengths_BD=torch.tensor([[0]], dtype=torch.int32),
        positions_BT=torch.arange(frames, dtype=torch.int32)[None],
        text_states_BSC=states,
        text_positions_BS=torch.from_numpy(document.text_positions.astype(np.int32))[None],
        task_ids_BD=torch.tensor([[0]], dtype=torch.int32),
    )


@pytest.mark.parametrize("document", [speech(1), sound(1)], ids=["tts", "sound"])
def test_greedy_codes_are_the_teacher_forced_maxima(model, document):
    [clip] = generate_codes(model, VOCABULARY, [document], sampling=Sampling(temperature=0), seed=0, min_frames=8, max_frames=8)
    logits_TQV = model.logits(as_batch(document, clip.codes_TQ))[0, len(document.codes_LQ) :]
    for level in range(3):
        span = VOCABULARY.audio_level(level)
        assert np.array_equal(logits_TQV[:, level, span.start : span.stop].argmax(-1).numpy(), clip.codes_TQ[:, level])


def test_model_that_wants_to_stop_stops_at_the_minimum(model):
    stopper = MultiScaleTransformer(CONFIG, VOCABULARY, seed=1).eval()
    end = VOCABULARY.special("<audio_end>")
    with torch.no_grad():
        stopper.head.norm.bias.fill_(1.0)
        stopper.head.projection.weight[end].fill_(5.0)
    [clip] = generate_codes(stopper, VOCABULARY, [speech(0)], sampling=Sampling(), seed=0, min_frames=3, max_frames=20)
    assert len(clip.codes_TQ) == 3
    assert clip.stopped


def test_too_long_for_the_positions_is_refused(model):
    with pytest.raises(UserError, match=r"do not fit the model's positions \| seen: .* \| allowed: 96"):
        generate_codes(model, VOCABULARY, [speech(0)], sampling=Sampling(), seed=0, max_frames=90)


def test_limits_in_the_wrong_order_are_refused(model):
    with pytest.raises(UserError, match="at least 5, at most 4"):
        generate_codes(model, VOCABULARY, [speech(0)], sampling=Sampling(), seed=0, min_frames=5, max_frames=4)
