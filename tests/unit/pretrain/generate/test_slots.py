"""Generated codes are legal, reproducible, independent of their neighbours, and what the teacher-forced model would say."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_requests import CONFIG, TASKS, VOCABULARY, document, teacher_forced, tiny_model

from uniaudio.configs.tasks import load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.generate.free import free_document
from uniaudio.pretrain.generate.request import Generated, Request
from uniaudio.pretrain.generate.slots import Slots, decode_weights, generate_codes
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.sampling import Sampling

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> MultiScaleTransformer:
    return tiny_model()


def request(task: str, seed: int, **changes: object) -> Request:
    return Request(document(task, seed), **({"max_frames": 10, "seed": seed} | changes))


def test_codes_are_raw_codes_of_every_level_and_limits_hold(model):
    requests = [request("tts", 0, min_frames=4, max_frames=12), request("sound", 1, min_frames=4, max_frames=8)]
    for clip, most in zip(generate_codes(model, VOCABULARY, requests), (12, 8)):
        assert clip.codes_TQ.dtype == np.uint16
        assert clip.codes_TQ.max() < 1024
        assert clip.codes_TQ.shape[1] == 3
        assert 4 <= len(clip.codes_TQ) <= most
        assert clip.stopped == (len(clip.codes_TQ) < most)


def test_a_sequence_is_the_same_alone_in_a_batch_and_in_a_slot_that_another_left(model):
    requests = [request(task, seed, max_frames=5 + seed % 4) for seed, task in enumerate(TASKS)]
    alone = [generate_codes(model, VOCABULARY, [one])[0] for one in requests]
    for rows in (11, 3):
        for clip, expected in zip(generate_codes(model, VOCABULARY, requests, rows=rows), alone):
            assert np.array_equal(clip.codes_TQ, expected.codes_TQ)
            assert clip.score == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize("prefix_lm", [False, True])
def test_greedy_codes_and_scores_of_every_task_and_batch_position_are_the_teacher_forced_ones(prefix_lm):
    model = tiny_model(prefix_lm=prefix_lm)
    requests = [Request(document(task, seed, prefix_lm=prefix_lm), GREEDY, 0, 6, 6) for seed, task in enumerate(TASKS)]
    for one, clip in zip(requests, generate_codes(model, VOCABULARY, requests)):
        logits_TQV = teacher_forced(model, one.document, clip.codes_TQ)[:6]
        scores = []
        for level in range(3):
            span = VOCABULARY.audio_level(level)
            legal = logits_TQV[:, level, span.start : span.stop]  # <audio_end> is closed before the sixth frame
            assert np.array_equal(legal.argmax(-1).numpy(), clip.codes_TQ[:, level])
            scores.append(legal.log_softmax(-1).amax(-1).mean())
        assert clip.score == pytest.approx(float(torch.stack(scores).mean()), abs=1e-4)


def test_model_that_wants_to_stop_stops_at_the_minimum():
    stopper = tiny_model()
    end = VOCABULARY.special("<audio_end>")
    with torch.no_grad():
        stopper.head.norm.bias.fill_(1.0)
        stopper.head.projection.weight[end].fill_(5.0)
    [clip] = generate_codes(stopper, VOCABULARY, [request("tts", 0, min_frames=3, max_frames=20)])
    assert len(clip.codes_TQ) == 3
    assert clip.stopped


def test_lengths_are_drawn_and_the_likeliest_codes_alone_end_sooner():
    """Of a model that expects the end in 2 % of the frames, whatever they hold, and whose codes are nearly alike (docs/generation.md)."""
    vague = tiny_model(max_positions=512)
    with torch.no_grad():
        vague.head.norm.weight.zero_()
        vague.head.norm.bias.fill_(1.0)  # the same logits at every frame: the sums of the projection's rows
        vague.head.projection.weight.normal_(std=CONFIG.width**-0.5, generator=torch.Generator().manual_seed(0))
        vague.head.projection.weight[VOCABULARY.special("<audio_end>")].fill_(3.5 / CONFIG.width)
    lengths = {}
    for top_k in (30, 1025):
        draws = [Request(document("tts", 0), Sampling(top_k, 1.0), seed, 1, 100) for seed in range(16)]
        lengths[top_k] = [len(clip.codes_TQ) for clip in generate_codes(vague, VOCABULARY, draws)]
    assert min(lengths[30]) >= 1 and max(lengths[30]) < 100 and len(set(lengths[30])) > 5
    assert np.mean(lengths[1025]) > 2 * np.mean(lengths[30]), lengths


def test_guidance_moves_the_logits_away_from_those_without_conditions(model):
    free = free_document(load_task("sound"), VOCABULARY, 3)
    one = request("sound", 2, sampling=Sampling(temperature=0, guidance=2.5), free=free, min_frames=6, max_frames=6)
    beside = request("tts", 3)
    clip, other = generate_codes(model, VOCABULARY, [one, beside], rows=3)
    given, bare = teacher_forced(model, one.document, clip.codes_TQ)[:6], teacher_forced(model, free, clip.codes_TQ)[:6]
    mixed = bare + 2.5 * (given - bare)
    for level in range(3):
        span = VOCABULARY.audio_level(level)
        assert np.array_equal(mixed[:, level, span.start : span.stop].argmax(-1).numpy(), clip.codes_TQ[:, level])
    assert np.array_equal(other.codes_TQ, generate_codes(model, VOCABULARY, [beside])[0].codes_TQ)


def test_pieces_join_to_the_whole_and_requests_are_taken_when_rows_are_free(model):
    made = []

    def requests() -> Iterator[Request]:
        for seed in range(4):
            made.append(seed)
            yield request("tts", seed, max_frames=4 + seed)

    slots = Slots(decode_weights(model, VOCABULARY), VOCABULARY, rows=1, max_frames=64)
    parts: dict[int, list[np.ndarray]] = {}
    wholes: dict[int, Generated] = {}
    for piece in slots.run(requests(), partial=True):
        assert len(made) <= piece.index + 2, "one request is looked ahead"
        parts.setdefault(piece.index, []).append(piece.codes_TQ)
        if piece.whole is not None:
            wholes[piece.index] = piece.whole
    assert list(wholes) == [0, 1, 2, 3]
    for index, whole in wholes.items():
        assert np.array_equal(np.concatenate(parts[index]), whole.codes_TQ)
        assert len(parts[index]) >= len(whole.codes_TQ)


@pytest.mark.parametrize("precision", ["int8", torch.bfloat16, torch.float16])
def test_other_precisions_generate_legal_codes(precision):
    model = tiny_model()
    if precision != "int8":
        model = model.to(precision)
    slots = Slots(decode_weights(model, VOCABULARY, int8=precision == "int8"), VOCABULARY, rows=2, max_frames=64)
    for piece in slots.run([request("tts", 0), request("sound", 1)]):
        assert piece.codes_TQ.max() < 1024


def test_too_long_for_the_positions_or_the_slots_is_refused(model):
    with pytest.raises(UserError, match=r"do not fit the model's positions \| seen: .* \| allowed: 96"):
        generate_codes(model, VOCABULARY, [request("tts", 0, max_frames=90)])
    slots = Slots(decode_weights(model, VOCABULARY), VOCABULARY, rows=1, max_frames=20)
    with pytest.raises(UserError, match=r"does not fit the slots"):
        list(slots.run([request("tts", 0, max_frames=30)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"min_frames": 5, "max_frames": 4}, "at least 5, at most 4"), ({"seed": -1}, r"seed \| seen: -1")],
)
def test_bad_requests_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Request(document("tts", 0), **changes)


def test_guidance_without_the_free_document_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="needs the document without conditions"):
        request("tts", 0, sampling=Sampling(guidance=2))


def test_positions_are_used_to_the_last(model):
    prompt = document("se", 1)
    most = CONFIG.max_positions - len(prompt.codes_LQ) - 1
    [clip] = generate_codes(model, VOCABULARY, [Request(prompt, GREEDY, 0, most, most)])
    assert len(clip.codes_TQ) == most
