"""The losses after P.862 and STOI: they agree with the packages pesq and pystoi, and have gradients everywhere."""

import numpy as np
import pytest
import torch

from tests.unit.tokenize_farm.measures.test_measures import noise, voice
from uniaudio.tokenize_farm.codec.perceptual import IntelligibilityLoss, QualityLoss, _true_first
from uniaudio.tokenize_farm.measures.speech import pesq_wb, stoi


def degraded() -> tuple[np.ndarray, list[np.ndarray]]:
    """A clip, and copies of it: noisy, clipped, low-passed, quantized, with another level."""
    clip = voice(4.0) + 0.02 * noise(64_000, 2)  # a room: no exact silence, whose borders the two implementations cut differently
    spectrum = np.fft.rfft(clip)
    spectrum[len(spectrum) // 3 :] = 0
    low = np.fft.irfft(spectrum, len(clip)).astype(np.float32)
    copies = [clip + k * noise(len(clip)) for k in (0.002, 0.01, 0.03, 0.1, 0.4)]
    return clip, [*copies, clip.clip(-0.05, 0.05), low, np.round(clip * 60) / 60, 0.3 * clip + 0.003 * noise(len(clip), 1)]


def test_quality_agrees_with_the_reference_implementation():
    clip, copies = degraded()
    reference = np.array([pesq_wb(clip, copy.astype(np.float32)) for copy in copies])
    ours = QualityLoss().mos(*(torch.from_numpy(np.stack(x).astype(np.float32)) for x in ([clip] * len(copies), copies))).numpy()
    assert np.corrcoef(reference, ours)[0, 1] > 0.98 and np.abs(reference - ours).mean() < 0.15


def test_intelligibility_agrees_with_the_reference_implementation():
    clip, copies = degraded()
    reference = np.array([stoi(clip, copy.astype(np.float32)) for copy in copies])
    ours, known = IntelligibilityLoss().stoi(*(torch.from_numpy(np.stack(x).astype(np.float32)) for x in ([clip] * len(copies), copies)))
    assert bool(known.all()) and np.corrcoef(reference, ours.numpy())[0, 1] > 0.99 and np.abs(reference - ours.numpy()).max() < 0.02, (
        reference,
        ours,
    )


@pytest.mark.parametrize("loss", [QualityLoss(), IntelligibilityLoss()])
def test_equal_sounds_have_no_loss(loss):
    clip = torch.from_numpy(voice(2.0))[None]
    assert float(loss(clip, clip)) == pytest.approx(0, abs=2e-3)


def test_intelligibility_does_not_depend_on_the_level_and_quality_does():
    clip = torch.from_numpy(voice(2.0))[None]
    assert float(IntelligibilityLoss()(clip, 0.5 * clip)) == pytest.approx(0, abs=2e-3)
    assert float(QualityLoss()(clip, 0.5 * clip)) > 0.1


def test_a_burst_is_never_worth_its_price():
    """With the copy's level taken from the copy itself, a burst of 20 ms and a codec learned to make it."""
    clip = torch.from_numpy(voice(2.0))[None]
    copy = clip + 0.02 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    prices = []
    for height in (0.0, 1.0, 5.0, 10.0):
        burst = copy.clone()
        burst[:, 3200:3520] += height * torch.sin(torch.arange(320) * 0.7)
        prices.append(float(QualityLoss()(clip, burst)))
    assert prices == sorted(prices) and prices[1] > prices[0] + 0.05


@pytest.mark.parametrize("loss", [QualityLoss(), IntelligibilityLoss()])
@pytest.mark.parametrize("recorded", [torch.zeros(2, 25_600), torch.ones(2, 25_600), torch.from_numpy(np.stack([voice(1.6)] * 2))])
def test_gradients_are_finite_at_silence_constants_and_equal_sounds(loss, recorded):
    for copy in (torch.zeros_like(recorded), recorded.clone(), recorded + torch.from_numpy(noise(25_600))):
        leaf = copy.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(recorded, leaf), leaf)
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("loss", [QualityLoss(), IntelligibilityLoss()])
def test_a_step_against_the_gradient_lowers_the_loss(loss):
    clip = torch.from_numpy(voice(1.6))[None]
    copy = (clip + 0.05 * torch.from_numpy(noise(25_600))).requires_grad_()
    before = loss(clip, copy)
    (gradient,) = torch.autograd.grad(before, copy)
    after = loss(clip, copy - 1e-2 * gradient / gradient.norm())
    assert float(after.detach()) < float(before.detach())


def test_a_clip_too_short_for_stoi_counts_for_nothing():
    clip = torch.from_numpy(voice(0.3))[None]
    assert float(IntelligibilityLoss()(clip, clip + 0.1)) == 0


def test_frames_of_sound_come_first_in_their_order():
    assert _true_first(torch.tensor([[False, True, False, True], [True, False, False, False]])).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
