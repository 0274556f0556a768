"""Samples given out piece by piece are those of the whole."""

import numpy as np
import pytest
from fake_tokenizers import TOKENIZERS

from uniaudio.errors import UserError
from uniaudio.pretrain.generate.stream import CHUNK, FIRST_CHUNK, WaveStream
from uniaudio.tokenize_farm.tokenizers.codec import CodecTokenizer


def streamed(tokenizer, codes_TQ, sizes) -> list[np.ndarray]:
    wave, parts, start = WaveStream(tokenizer), [], 0
    for size in sizes:
        parts.append(wave.push(codes_TQ[start : start + size]))
        start += size
    return [*parts, wave.finish()]


@pytest.mark.parametrize("frames", [1, 7, 60, 131])
@pytest.mark.parametrize("size", [1, 8, 50])
def test_pieces_join_to_the_whole(frames, size):
    codes = np.random.default_rng(frames).integers(0, 1024, (frames, 3)).astype(np.uint16)
    parts = streamed(TOKENIZERS["audio"], codes, [size] * (frames // size) + [frames % size])
    np.testing.assert_allclose(np.concatenate(parts), TOKENIZERS["audio"].decode(codes), atol=1e-6)


def test_the_first_chunk_comes_as_soon_as_its_neighbourhood_is_known():
    codes = np.zeros((100, 3), np.uint16)
    parts = streamed(TOKENIZERS["audio"], codes, [1] * 100)
    first = next(index for index, part in enumerate(parts) if len(part))
    assert first + 1 == FIRST_CHUNK + TOKENIZERS["audio"].context_frames
    assert max(len(part) for part in parts) == CHUNK * 320


def test_the_shipped_codec_streams_what_it_decodes():
    tokenizer = CodecTokenizer({"device": "cpu"})
    codes = np.random.default_rng(0).integers(0, 1024, (70, 3)).astype(np.uint16)
    whole = tokenizer.decode(codes)
    joined = np.concatenate(streamed(tokenizer, codes, [10] * 7))
    assert np.abs(joined - whole).max() < 1e-4


def test_nothing_generated_is_no_samples():
    assert len(WaveStream(TOKENIZERS["audio"]).finish()) == 0


def test_a_tokenizer_without_a_bounded_neighbourhood_is_refused():
    class Whole:
        name = "whole"

    with pytest.raises(UserError, match=r"cannot decode piece by piece \| seen: whole"):
        WaveStream(Whole())
