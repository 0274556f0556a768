"""Cached, step-by-step generation against the teacher-forced logits of the same codes."""

import pytest
import torch
from tiny_model import AUDIO_START, CONTINUOUS, PAPER_FORM, RELEASED_FORM, TIME_FORM, VOCABULARY, tiny_config

from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.model.decode import DecodeState, Prompt
from uniaudio.pretrain.model.decode_weights import DecodeWeights
from uniaudio.pretrain.model.model import MultiScaleTransformer

TOTAL = 12
LEGAL = [torch.arange(VOCABULARY.size), torch.tensor([9, 3, 20]), torch.arange(8, 33)]  # of each level


def decoder(model: MultiScaleTransformer, *, rows: int, max_frames: int, int8: bool = False) -> DecodeState:
    return DecodeState(DecodeWeights(model, LEGAL, int8=int8), rows=rows, max_frames=max_frames)


def sequence(seed: int) -> tuple[torch.Tensor, Prompt]:
    """All codes of a sequence (TOTAL, 3), and its prompt of 4 to 6 frames with text states, the last one on its last frame."""
    draw = torch.Generator().manual_seed(seed)
    codes, length = torch.randint(8, VOCABULARY.size, (TOTAL, 3), generator=draw), 4 + seed % 3
    places = torch.tensor([1, 2, length - 1][: 3 - seed % 2])
    codes[places] = CONTINUOUS
    codes[3 - seed % 2] = AUDIO_START
    return codes, Prompt(codes[:length], torch.randn(len(places), 10, generator=draw), places, prefix_length=length - 1)


def teacher_forced(model: MultiScaleTransformer, codes: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    batch = Batch(
        codes_BTQ=codes[None],
        target_mask_BTQ=torch.ones_like(codes[None], dtype=torch.int8),
        document_starts_BD=torch.tensor([[0]], dtype=torch.int32),
        prefix_lengths_BD=torch.tensor([[prompt.prefix_length]], dtype=torch.int32),
        positions_BT=torch.arange(TOTAL, dtype=torch.int32)[None],
        text_states_BSC=prompt.text_states_SC[None],
        text_positions_BS=prompt.text_positions_S[None].to(torch.int32),
        task_ids_BD=torch.zeros(1, 1, dtype=torch.int32),
    )
    return model.logits(batch)[0].detach()


def cached(state: DecodeState, hidden: torch.Tensor, codes_BTQ: torch.Tensor, firsts: list[int], frames: int) -> list[torch.Tensor]:
    """A level each (frames, rows, K): logits of `frames` frames from each row's first generated one on, its own codes fed back."""
    outputs = []
    for index in range(frames):
        now = torch.stack([codes_BTQ[row, first + index] for row, first in enumerate(firsts)])
        outputs.append([state.level_logits(hidden, now, level) for level in range(3)])
        hidden = state.step(now)
    return [torch.stack(level) for level in zip(*outputs)]


@pytest.mark.parametrize("prefix_lm", [False, True])
@pytest.mark.parametrize("form", [PAPER_FORM, RELEASED_FORM, TIME_FORM], ids=["paper", "released", "time"])
def test_cached_generation_equals_teacher_forced_logits(form, prefix_lm) -> None:
    model = MultiScaleTransformer(tiny_config(prefix_lm=prefix_lm, **form), VOCABULARY, seed=3)
    sequences = [sequence(seed) for seed in range(3)]
    for name, parameter in model.named_parameters():  # every gain, shift and bias counts
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3, generator=torch.Generator().manual_seed(len(name)))
    state = decoder(model, rows=3, max_frames=TOTAL + 1)
    hidden = state.prefill([prompt for _, prompt in sequences])
    firsts = [len(prompt.codes_TQ) for _, prompt in sequences]
    frames = TOTAL - max(firsts)
    logits = cached(state, hidden, torch.stack([codes for codes, _ in sequences]), firsts, frames)
    for row, (codes, prompt) in enumerate(sequences):
        truth = teacher_forced(model, codes, prompt)[firsts[row] : firsts[row] + frames]
        for level, legal in enumerate(LEGAL):
            torch.testing.assert_close(logits[level][:, row], truth[:, level, legal], rtol=1e-4, atol=1e-4)


def test_int8_weights_give_nearly_the_same_logits_and_only_the_blocks_are_int8() -> None:
    model = MultiScaleTransformer(tiny_config(init_std=0.05), VOCABULARY, seed=3)
    codes, prompt = sequence(1)
    logits = []
    for int8 in (False, True):
        state = decoder(model, rows=1, max_frames=TOTAL, int8=int8)
        logits.append(state.level_logits(state.prefill([prompt]), codes[:1], 0))
    assert state.weights.global_blocks[0].up.weight.dtype == torch.int8
    assert state.weights.heads[0].weight.dtype == torch.float32
    error = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert 0 < error < 0.02


@pytest.mark.parametrize("form", [PAPER_FORM, TIME_FORM], ids=["paper", "time"])
def test_a_row_can_be_released_and_started_again_while_another_goes_on(form) -> None:
    model = MultiScaleTransformer(tiny_config(**form), VOCABULARY, seed=3)
    (codes_a, prompt_a), (codes_b, prompt_b), (codes_c, prompt_c) = (sequence(seed) for seed in range(3))
    state = decoder(model, rows=2, max_frames=TOTAL)
    first_a, first_b = len(prompt_a.codes_TQ), len(prompt_b.codes_TQ)
    state.prefill([prompt_a, prompt_b])
    state.step(torch.stack([codes_a[first_a], codes_b[first_b]]))
    hidden_a = state.step(torch.stack([codes_a[first_a + 1], codes_b[0]]), torch.tensor([1, 0]))[0]
    assert state.lengths_B.tolist() == [first_a + 3, first_b + 2], "a row that is not active does not grow"
    state.release([1])
    assert state.lengths_B.tolist() == [first_a + 3, 0]
    hidden_c = state.prefill([prompt_c], rows=[1])[0]
    logits = state.level_logits(torch.stack([hidden_a, hidden_c]), torch.zeros(2, 3, dtype=torch.int64), 0)
    truth_a = teacher_forced(model, codes_a, prompt_a)[first_a + 2, 0]
    truth_c = teacher_forced(model, codes_c, prompt_c)[len(prompt_c.codes_TQ), 0]
    torch.testing.assert_close(logits, torch.stack([truth_a, truth_c]), rtol=1e-4, atol=1e-4)
    assert state.lengths_B.tolist() == [first_a + 3, len(prompt_c.codes_TQ) + 1]


def test_faults_are_reported() -> None:
    model = MultiScaleTransformer(tiny_config(), VOCABULARY)
    _, prompt = sequence(0)
    with pytest.raises(UserError, match=r"model\.max_positions.*seen: 65.*1\.\.64"):
        decoder(model, rows=1, max_frames=65)
    with pytest.raises(UserError, match=r"prompt is longer.*seen: 4 frames.*up to 3"):
        decoder(model, rows=1, max_frames=4).prefill([prompt])
    state = decoder(model, rows=1, max_frames=5)
    with pytest.raises(UserError, match=r"model\.text_width.*seen: 12.*allowed: 10"):
        state.prefill([Prompt(prompt.codes_TQ, torch.zeros(1, 12), torch.zeros(1))])
    with pytest.raises(ValueError, match="levels come in order"):
        state.level_logits(torch.zeros(1, 48), torch.zeros(1, 3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="one row for each prompt"):
        state.prefill([prompt], rows=[1])
