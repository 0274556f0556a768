"""The codec on whole clips: lengths, batches, levels, long clips and bad input."""

import pytest
import torch

from uniaudio.configs.codec import CodecModelConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec import model as codec_model
from uniaudio.tokenize_farm.codec.model import UniversalCodec, depthwise

TINY = CodecModelConfig(
    width=24,
    fine_width=16,
    encoder_fine_layers=1,
    encoder_layers=1,
    decoder_layers=1,
    decoder_fine_layers=1,
    num_codebooks=4,
    codebook_size=32,
)


def tiny(seed: int = 0, *, causal: bool = False) -> UniversalCodec:
    torch.manual_seed(seed)
    return UniversalCodec(TINY.model_copy(update={"causal": causal})).eval()


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (319, 1), (320, 1), (321, 2), (16_000, 50)])
def test_frames_are_samples_over_hop_rounded_up(samples, frames):
    codec = tiny()
    codes = codec.encode(noise(samples))
    assert codes.shape == (1, frames, 4) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 32
    assert codec.decode(codes).shape == (1, frames * 320)


def test_padding_of_a_batch_changes_neither_codes_nor_samples():
    codec, sizes = tiny(), [1, 5_000, 9_601, 12_800]
    clips = [noise(size, seed=size) for size in sizes]
    batch = torch.full((4, 12_800), 7.0)  # garbage where no clip is
    for row, clip in zip(batch, clips):
        row[: clip.shape[1]] = clip[0]
    codes = codec.encode(batch, torch.tensor(sizes))
    frames = torch.tensor([-(-size // 320) for size in sizes])
    samples = codec.decode(codes, frames)
    for row, clip in enumerate(clips):
        alone = codec.encode(clip)
        assert torch.equal(codes[row, : frames[row]], alone[0])
        assert codes[row, frames[row] :].sum() == 0
        torch.testing.assert_close(samples[row, : frames[row] * 320], codec.decode(alone)[0], atol=1e-5, rtol=1e-4)
        assert samples[row, frames[row] * 320 :].abs().sum() == 0


def test_any_first_levels_decode_and_are_a_prefix():
    codec, clip = tiny(), noise(3_200)
    codes = codec.encode(clip)
    for levels in range(1, 5):
        assert torch.equal(codec.encode(clip, num_codebooks=levels), codes[..., :levels])
        assert bool(torch.isfinite(codec.decode(codes[..., :levels])).all())


@pytest.mark.parametrize("causal", [False, True])
def test_a_long_clip_in_pieces_equals_the_whole(monkeypatch, causal):
    codec, clip = tiny(causal=causal), noise(40_000)
    codes = codec.encode(clip)
    samples = codec.decode(codes)
    monkeypatch.setattr(codec_model, "CHUNK_FRAMES", 17)
    assert torch.equal(codec.encode(clip), codes)
    torch.testing.assert_close(codec.decode(codes), samples, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_reach_bounds_what_a_frame_depends_on(causal):
    codec = tiny(causal=causal)
    before, after = codec.reach
    clip = noise(120 * 320).requires_grad_()
    hidden = codec.encoder(codec.spectral(clip), None)
    (grad,) = torch.autograd.grad(hidden[0, 60].square().sum(), clip)
    touched = torch.nonzero(grad[0]).flatten() // 320
    assert 60 - before <= touched.min() and touched.max() <= 60 + after
    assert (after, int(touched.max())) == (1, 61) if causal else touched.max() > 62
    codes = codec.encode(clip.detach())
    changed = codes.clone()
    changed[0, 60] = (codes[0, 60] + 1) % 32
    heard = (codec.decode(codes) - codec.decode(changed)).abs().reshape(120, 320).amax(1).nonzero().flatten()
    assert 60 - after <= heard.min() and heard.max() <= 60 + before


def test_the_same_clip_gives_the_same_codes_twice():
    codec, clip = tiny(), noise(8_000)
    assert torch.equal(codec.encode(clip), codec.encode(clip.clone()))


@pytest.mark.parametrize("clip", [torch.zeros(1, 3_200), torch.ones(1, 3_200), torch.full((1, 3_200), -1.0), torch.sign(noise(3_200))])
def test_silence_constant_and_clipping_give_finite_audio(clip):
    codec = tiny()
    assert bool(torch.isfinite(codec.decode(codec.encode(clip))).all())


def test_blocks_in_bf16_keep_spectra_and_codebooks_in_fp32():
    codec = tiny().compute_in(torch.bfloat16)
    samples = codec.decode(codec.encode(noise(3_200)))
    assert samples.dtype == torch.float32
    assert codec.quantizer.levels[0].codes.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode(torch.tensor([[0.0, float("nan")]])), "must be finite"),
        (lambda c: c.encode(torch.zeros(1, 0)), "at least one"),
        (lambda c: c.encode(torch.zeros(100)), "at least one"),
        (lambda c: c.encode(torch.zeros(1, 100), num_codebooks=5), "allowed: 1..4"),
        (lambda c: c.encode(torch.zeros(2, 100), torch.tensor([0, 100])), "length of a clip"),
        (lambda c: c.decode(torch.zeros(1, 0, 4)), "clips, frames, levels"),
        (lambda c: c.decode(torch.full((1, 2, 4), 32)), "outside the codebook"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(UserError, match=message):
        call(tiny())


@pytest.mark.parametrize("causal", [False, True])
def test_depthwise_is_the_same_eager_and_compiled_form(monkeypatch, causal):
    hidden, kernel = torch.randn(2, 9, 6), torch.randn(5, 6)
    eager = depthwise(hidden, kernel, causal)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(depthwise(hidden, kernel, causal), eager)


def test_config_names_the_fault():
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        CodecModelConfig(kernel_size=4)
    with pytest.raises(ValueError, match="multiple of fine_ratio"):
        CodecModelConfig(fine_ratio=3)
