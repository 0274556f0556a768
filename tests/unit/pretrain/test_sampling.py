"""Drawing codes: legal, reproducible, independent of the batch, and with the right frequencies."""

import pytest
import torch

from uniaudio.errors import UserError
from uniaudio.pretrain.sampling import Sampling, draw, sequence_generators


def logits(rows: int, size: int = 50) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(rows))


def test_only_legal_ids_are_drawn():
    legal = torch.zeros(4, 50, dtype=torch.bool)
    legal[:, 7:11] = True
    for seed in range(20):
        ids = draw(logits(4), legal, Sampling(), sequence_generators(seed, 4))
        assert ((ids >= 7) & (ids < 11)).all()


def test_same_seed_same_code_alone_and_in_a_batch():
    rows, legal = logits(5), torch.ones(5, 50, dtype=torch.bool)
    together = draw(rows, legal, Sampling(), sequence_generators(3, 5))
    alone = [draw(rows[i : i + 1], legal[i : i + 1], Sampling(), [torch.Generator().manual_seed(3 + i)]) for i in range(5)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_temperature_zero_is_greedy():
    rows = logits(3)
    assert (
        draw(rows, torch.ones(3, 50, dtype=torch.bool), Sampling(temperature=0), sequence_generators(0, 3)).tolist()
        == rows.argmax(-1).tolist()
    )


def test_frequencies_follow_the_distribution():
    row = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    legal = torch.ones(4000, 4, dtype=torch.bool)
    ids = draw(row.expand(4000, 4), legal, Sampling(top_k=4, temperature=1.0), sequence_generators(0, 4000))
    shares = torch.bincount(ids, minlength=4) / 4000
    assert torch.allclose(shares, row.exp()[0], atol=0.03)


def test_top_k_and_top_p_cut_the_tail():
    row = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(200, 4)
    legal = torch.ones(200, 4, dtype=torch.bool)
    assert draw(row, legal, Sampling(top_k=2), sequence_generators(0, 200)).max() == 1
    assert draw(row, legal, Sampling(top_p=0.6, temperature=1.0), sequence_generators(0, 200)).max() == 1
    assert draw(row, legal, Sampling(top_p=0.4, temperature=1.0), sequence_generators(0, 200)).max() == 0


@pytest.mark.parametrize("bad", [{"top_k": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match="seen"):
        Sampling(**bad)


def test_row_without_a_legal_id_is_refused():
    with pytest.raises(ValueError, match="no legal id"):
        draw(logits(1), torch.zeros(1, 50, dtype=torch.bool), Sampling(), sequence_generators(0, 1))
