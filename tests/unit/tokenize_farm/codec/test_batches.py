"""Batches under way: the codes of single clips, whatever is begun before they are asked for; on a GPU nothing is waited for."""

import numpy as np
import pytest
import torch

from uniaudio.configs.codec import CodecModelConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.batches import BatchEncoder
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.codec.weights import load_codec

LENGTHS = (16_000, 700, 9_000, 16_319, 320, 1)


@pytest.fixture(scope="module")
def codec() -> UniversalCodec:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec = UniversalCodec(CodecModelConfig(width=32, encoder_layers=1, decoder_layers=1)).eval()
    codec.quantizer.freeze()
    return codec


def make_clips(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    clips = [np.random.default_rng(i).uniform(-0.3, 0.3, length).astype(np.float32) for i, length in enumerate(lengths)]
    for clip in clips:
        clip.flags.writeable = False  # as Ray's object store hands them out
    return clips


def alone(codec: UniversalCodec, clip: np.ndarray, levels: int = 8) -> np.ndarray:
    return codec.encode(torch.from_numpy(clip.copy())[None], num_codebooks=levels)[0].numpy()


def test_a_batch_gives_the_codes_of_the_codec_with_lengths(codec: UniversalCodec) -> None:
    clips = make_clips()
    rows = torch.zeros(len(clips), max(LENGTHS))
    for row, clip in zip(rows, clips):
        row[: len(clip)] = torch.from_numpy(clip.copy())
    expected = codec.encode(rows, torch.tensor(LENGTHS), 3).numpy()
    for codes, row, length in zip(BatchEncoder(codec, 3).begin(clips).codes(), expected, LENGTHS):
        assert codes.dtype == np.uint16 and np.array_equal(codes, row[: -(-length // 320)])


def test_a_clip_alone_has_the_codes_of_the_codec(codec: UniversalCodec) -> None:
    encoder = BatchEncoder(codec, 8)
    assert all(np.array_equal(encoder.begin([clip]).codes()[0], alone(codec, clip)) for clip in make_clips())


def test_batches_may_be_asked_for_late_and_in_any_order(codec: UniversalCodec) -> None:
    encoder, clips = BatchEncoder(codec, 8), make_clips((640,) * 12)
    pending = [encoder.begin(clips[i : i + 2]) for i in range(0, 12, 2)]  # more than are under way at once
    for i in (5, 0, 3, 1, 4, 2):
        together = codec.encode(torch.from_numpy(np.stack(clips[2 * i : 2 * i + 2])))
        assert np.array_equal(np.stack(pending[i].codes()), together.numpy())


def test_samples_that_are_not_finite_are_told_when_the_codes_are_asked_for(codec: UniversalCodec) -> None:
    encoder = BatchEncoder(codec, 8)
    bad = encoder.begin([np.full(640, np.nan, np.float32), np.ones(640, np.float32)])
    good = encoder.begin([np.ones(640, np.float32)])
    with pytest.raises(UserError, match=r"must be finite.*repair or drop"):
        bad.codes()
    assert good.codes()[0].shape == (2, 8)


def test_an_empty_clip_and_levels_that_the_codec_lacks_are_refused(codec: UniversalCodec) -> None:
    with pytest.raises(UserError, match=r"clip without samples.*seen: \[320, 0\]"):
        BatchEncoder(codec, 8).begin(make_clips((320, 0)))
    with pytest.raises(UserError, match=r"codec levels.*seen: 9.*1..8"):
        BatchEncoder(codec, 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_never_waited_for_and_gives_the_codes_of_the_cpu() -> None:
    encoder, on_cpu, clips = BatchEncoder(load_codec(device="cuda"), 8), load_codec(), make_clips((16_000, 16_000, 9_000, 31_111))
    encoder.begin(clips[:2]).codes()  # what loads kernels may wait
    encoder.begin(clips).codes()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [encoder.begin(clips), encoder.begin(clips[:2]), encoder.begin(clips[2:])]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    codes = [codes for batch in pending for codes in batch.codes()]
    assert all(np.array_equal(one, alone(on_cpu, clip)) for one, clip in zip(codes, clips + clips))
