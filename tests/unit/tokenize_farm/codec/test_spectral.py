"""The transform: exact reconstruction at both edges, whatever the length and the batch."""

import pytest
import torch

from uniaudio.tokenize_farm.codec.spectral import Spectral


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 50])
def test_inverse_restores_every_sample_of_a_clip(frames):
    spectral = Spectral(160)
    samples = torch.randn(2, frames * 160, generator=torch.Generator().manual_seed(frames))
    spectra = spectral(samples)
    assert spectra.shape == (2, frames, 321)
    torch.testing.assert_close(spectral.inverse(spectra), samples, atol=2e-6, rtol=1e-5)


def test_masked_inverse_equals_the_single_clip_and_is_silent_beyond_it():
    spectral = Spectral(16)
    spectra = torch.randn(1, 9, 33, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9)[None] < 5
    masked = spectral.inverse(spectra, mask)
    torch.testing.assert_close(masked[:, : 5 * 16], spectral.inverse(spectra[:, :5]))
    assert masked[:, 5 * 16 :].abs().max() == 0


def test_a_frame_is_centred_on_its_hop():
    spectral = Spectral(16)
    click = torch.zeros(1, 16 * 9)
    click[0, 4 * 16 + 8] = 1.0
    energy = spectral(click).abs().sum(-1)[0]
    assert energy.argmax() == 4
    torch.testing.assert_close(energy[3], energy[5])
