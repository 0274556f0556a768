"""Streams: whatever the pieces they come in, joined they are the whole clip's codes and samples."""

import pytest
import torch

from tests.unit.tokenize_farm.codec.test_model import noise, tiny
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.streaming import StreamDecoder, StreamEncoder


def cuts(total: int, seed: int) -> list[int]:
    """Sizes of pieces that add up to `total`, one of them empty."""
    points = torch.randint(total, (6,), generator=torch.Generator().manual_seed(seed)).sort().values.tolist()
    return [b - a for a, b in zip([0, *points, points[-1]], [*points, points[-1], total])]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("samples", [1, 321, 16_111])
def test_a_stream_of_samples_gives_the_codes_of_the_whole(causal, samples):
    codec, clip = tiny(causal=causal), noise(samples)[0]
    stream = StreamEncoder(codec, 3)
    pieces = [stream.push(piece) for piece in clip.split(cuts(samples, samples))]
    pieces.append(stream.push(clip[:0], last=True))
    assert torch.equal(torch.cat(pieces), codec.encode(clip[None], num_codebooks=3)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_a_stream_of_codes_gives_the_samples_of_the_whole(causal):
    codec = tiny(causal=causal)
    codes = codec.encode(noise(16_111))[0]
    stream = StreamDecoder(codec)
    sizes = cuts(len(codes), 3)
    pieces = [stream.push(piece, last=i == len(sizes) - 1) for i, piece in enumerate(codes.split(sizes))]
    torch.testing.assert_close(torch.cat(pieces), codec.decode(codes[None])[0], atol=1e-5, rtol=1e-4)


def test_a_causal_codec_holds_back_one_frame_and_no_more_past_than_it_needs():
    codec = tiny(causal=True)
    stream = StreamEncoder(codec)
    counts = [len(stream.push(noise(320, seed)[0])) for seed in range(60)]
    assert counts == [0] + [1] * 59
    assert len(stream._held) <= (sum(codec.reach) + 1) * 320


def test_faults_of_a_stream_are_named():
    stream = StreamEncoder(tiny(causal=True))
    with pytest.raises(UserError, match="must be finite"):
        stream.push(torch.full((3_200,), float("nan")))
    stream = StreamDecoder(tiny())
    with pytest.raises(UserError, match="outside the codebook"):
        stream.push(torch.full((2, 4), 99), last=True)
    with pytest.raises(UserError, match="has ended"):
        stream.push(torch.zeros(2, 4))
