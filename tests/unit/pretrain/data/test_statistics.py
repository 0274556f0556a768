"""Unigram entropy against what can be counted by hand."""

import numpy as np
import pytest

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.pretrain.data.loader import make_loader
from uniaudio.pretrain.data.statistics import unigram_counts, unigram_cross_entropy, unigram_entropy
from uniaudio.pretrain.data.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary("paper")


def test_entropy_of_known_counts() -> None:
    np.testing.assert_allclose(unigram_entropy(np.array([[5, 5, 0, 0], [1, 1, 1, 1], [9, 0, 0, 0]])), [np.log(2), np.log(4), 0])


def test_cross_entropy_is_the_entropy_where_the_shares_agree_and_more_elsewhere() -> None:
    held_out = np.array([[300, 100]])
    assert unigram_cross_entropy(np.array([[299, 99]]), held_out)[0] == pytest.approx(unigram_entropy(held_out)[0])
    assert unigram_cross_entropy(np.array([[99, 299]]), held_out)[0] > unigram_entropy(held_out)[0] + 0.3
    assert np.isfinite(unigram_cross_entropy(np.array([[0, 9]]), held_out)).all()


def test_counts_are_the_target_codes_of_the_split(shards) -> None:
    data = DataConfig(shards=str(shards), tasks=("tts",), frames_per_row=512, rows_per_micro_batch=2)
    loader = make_loader(data, ModelConfig(text_width=8), VOCABULARY, split="valid")
    counts = unigram_counts(loader.valid_batches(100), VOCABULARY.size)
    expected = np.zeros((3, VOCABULARY.size), np.int64)
    documents = loader.planner.plan(0).documents
    for clip in documents.clip.tolist():
        codes = loader.assembler.reader.view(clip, "audio")
        for level in range(3):
            np.add.at(expected[level], codes[:, level] + VOCABULARY.audio_level(level).start, 1)
    for name in ("<audio_end>", "<end>"):
        expected[:, VOCABULARY.special(name)] += len(documents)
    assert len(documents) > 1
    np.testing.assert_array_equal(counts, expected)


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        unigram_counts([], 10)
