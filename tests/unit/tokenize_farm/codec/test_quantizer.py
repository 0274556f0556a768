"""Residual quantizer: levels add up, losses reach the right parameters, dead codes come back."""

import torch

from uniaudio.tokenize_farm.codec.quantizer import Codebook, ResidualQuantizer


def quantizer(seed: int = 0) -> ResidualQuantizer:
    torch.manual_seed(seed)
    return ResidualQuantizer(width=12, num_codebooks=4, codebook_size=16, codebook_dim=4)


def test_codes_of_fewer_levels_are_a_prefix_of_the_codes_of_more():
    model, hidden = quantizer(), torch.randn(2, 7, 12)
    assert torch.equal(model.encode(hidden, 2), model.encode(hidden, 4)[..., :2])


def test_training_pass_uses_exactly_the_levels_each_clip_was_given():
    model, hidden = quantizer().eval(), torch.randn(2, 7, 12)
    quantized, _, _ = model(hidden, torch.tensor([1, 4]))
    codes = model.encode(hidden, 4)
    torch.testing.assert_close(quantized[0], model.decode(codes[:1, :, :1])[0])
    torch.testing.assert_close(quantized[1], model.decode(codes[1:])[0])


def test_nearest_is_the_code_of_largest_cosine():
    level, points = Codebook(12, 16, 4), torch.randn(1, 50, 4)
    cosine = torch.cosine_similarity(points[0, :, None], level.codes[None], dim=-1)
    assert torch.equal(level.nearest(points)[0], cosine.argmax(-1))


def test_gradient_passes_straight_through_to_the_input_and_codebook_loss_only_to_codes():
    model, hidden = quantizer(), torch.randn(2, 7, 12, requires_grad=True)
    quantized, commitment, codebook = model(hidden, torch.tensor([4, 4]))
    (grad,) = torch.autograd.grad(quantized.sum(), hidden, retain_graph=True)
    assert grad.abs().sum() > 0
    assert torch.autograd.grad(codebook, hidden, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(commitment, model.levels[0].codes, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(codebook, model.levels[0].codes)[0].abs().sum() > 0


def test_unused_codes_move_onto_recent_points_and_used_ones_stay():
    torch.manual_seed(3)
    level = Codebook(12, 16, 4)
    points, codes = torch.randn(1, 40, 4), torch.zeros(1, 40, dtype=torch.int64)
    before = level.codes.detach().clone()
    for _ in range(50):
        level.observe(points, codes, decay=0.9)
    assert int(level.revive(below=0.05)) == 15
    assert torch.equal(level.codes[0], before[0])
    moved = (level.codes[1:, None] == points[0][None]).all(-1).any(-1)
    assert bool(moved.all())
    assert int(level.revive(below=0.05)) == 0


def test_initialized_codebooks_lie_on_the_data():
    model, hidden = quantizer(), torch.randn(4, 16, 12) * 5
    error = lambda: (model.decode(model.encode(hidden, 4)) - hidden).square().mean()  # noqa: E731
    before = error()
    model.initialize(hidden)
    points = model.levels[0].down(hidden).reshape(-1, 4)
    assert bool((model.levels[0].codes[:, None] == points[None]).all(-1).any(-1).all())
    assert error() != before


def test_frozen_tables_give_the_same_codes_and_vectors():
    model, hidden = quantizer(), torch.randn(3, 50, 12)
    codes = {levels: model.encode(hidden, levels) for levels in (1, 3, 4)}
    vectors = {levels: model.decode(codes[levels]) for levels in codes}
    model.freeze()
    assert model.frozen
    for levels in codes:
        assert torch.equal(model.encode(hidden, levels), codes[levels])
        torch.testing.assert_close(model.decode(codes[levels]), vectors[levels])
