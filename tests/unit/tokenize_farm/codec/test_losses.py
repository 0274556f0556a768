"""Losses: zero for equal sounds, larger for worse ones, finite gradients at silence."""

import pytest
import torch

from uniaudio.tokenize_farm.codec.discriminators import Discriminators
from uniaudio.tokenize_farm.codec.losses import (
    GradientBalance,
    ReconstructionLoss,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
    louder_loss,
    mel_filters,
)


def tone(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 6400, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_every_band_hears_something():
    filters = mel_filters(1024, 80, 16_000)
    assert bool((filters.sum(1) > 0).all()) and filters.min() >= 0 and filters.max() <= 1


def test_equal_sounds_have_no_loss_and_more_noise_has_more():
    clip, noise = tone(), tone(1)
    for loss in (lambda x: ReconstructionLoss()(clip, x)[0], lambda x: ReconstructionLoss()(clip, x)[1]):
        values = [float(loss(clip + k * noise)) for k in (0.0, 0.3, 3.0)]
        assert values[0] == pytest.approx(0, abs=1e-5) and values[0] < values[1] < values[2]


def test_one_loud_moment_costs_and_a_softer_copy_does_not():
    clip = tone()
    burst = clip.clone()
    burst[:, 3000:3320] *= 30
    assert float(louder_loss(clip, clip)) == float(louder_loss(clip, 0.5 * clip)) == 0
    assert float(louder_loss(clip, burst)) > 1
    assert float(louder_loss(torch.zeros(1, 6400), torch.full((1, 6400), 1e-4))) == 0  # below -60 dB nothing counts


def test_gradients_are_finite_at_silence():
    silence, decoded = torch.zeros(2, 6400), torch.zeros(2, 6400, requires_grad=True)
    mel, spectrum = ReconstructionLoss()(silence, decoded)
    (mel + spectrum).backward()
    assert bool(torch.isfinite(decoded.grad).all())


def test_discriminators_learn_to_tell_noise_from_tone_and_features_agree_on_equal_sounds():
    torch.manual_seed(0)
    judges = Discriminators([128, 64], 4)
    optimizer = torch.optim.Adam(judges.parameters(), lr=5e-3)
    real, fake = torch.sin(torch.arange(1600) * 0.2).expand(2, -1) * 0.3, tone()[:, :1600]
    losses = []
    for _ in range(15):
        loss = discriminator_loss(judges(real)[0], judges(fake)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert adversarial_loss(judges(fake)[0]) > adversarial_loss(judges(real)[0])
    inner = judges(real)[1]
    assert float(feature_loss(inner, inner).detach()) == 0
    assert float(feature_loss(inner, judges(fake)[1]).detach()) > 0.1


def test_balanced_gradients_have_the_sizes_of_their_shares_whatever_the_losses():
    balance = GradientBalance("mel", 2.0, {"big": 0.5, "small": 0.25, "off": 0.0, "late": 1.0})
    inputs = torch.zeros(3, 4, requires_grad=True)
    terms = {
        name: (inputs[:, i] * size).sum() for i, (name, size) in enumerate((("mel", 3.0), ("big", 1e6), ("small", 1e-3), ("off", 1.0)))
    }
    for _ in range(3):
        gradient = balance(terms, inputs)
    torch.testing.assert_close(gradient, torch.tensor([6.0, 3.0, 1.5, 0.0]).expand(3, -1))
    late = balance({"mel": inputs[:, 0].sum(), "late": inputs[:2, 3].sum()}, inputs)  # its first step, on two of the clips
    torch.testing.assert_close(late[:, 3], torch.tensor([1.0, 1.0, 0.0]) * 2 * balance.sizes[0, 0] / balance.sizes[1, 0])


def test_a_loss_of_some_clips_moves_those_alone():
    balance = GradientBalance("mel", 1.0, {"voices": 0.5})
    inputs = torch.zeros(3, 2, requires_grad=True)
    terms = {"mel": inputs[:, 0].sum(), "voices": inputs[:, 1].sum() * 100}
    gradient = balance(terms, inputs, {"voices": torch.tensor([True, False, True])})
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.5], [1.0, 0.0], [1.0, 0.5]]))


def test_a_clip_of_enormous_gradient_does_not_set_the_scale():
    balance = GradientBalance("mel", 1.0, {"other": 1.0})
    inputs = torch.zeros(64, 2, requires_grad=True)
    steep = torch.ones(64)
    steep[5] = 1e4
    gradient = balance({"mel": (inputs[:, 0] * steep).sum(), "other": inputs[:, 1].sum()}, inputs)
    assert 1 <= gradient[0, 1] < 1.3 and gradient[0, 0] == 1 and gradient[5, 0] < 6
    assert bool(torch.isfinite(balance({"mel": (inputs * 0).sum(), "other": (inputs * 0).sum()}, inputs)).all())
