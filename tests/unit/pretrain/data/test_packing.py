"""Best-fit packing: limits kept, every document placed, rows well filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.pretrain.data.packing import best_fit


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 5)), min_size=1, max_size=60),
    max_documents=st.integers(1, 6),
    max_states=st.integers(5, 9),
)
def test_rows_keep_every_limit(documents, max_documents, max_states) -> None:
    lengths, states = (np.array(column) for column in zip(*documents))
    rows = best_fit(lengths, states, frames=64, max_documents=max_documents, max_states=max_states)
    assert len(rows) == len(documents) and set(rows.tolist()) == set(range(rows.max() + 1))
    assert np.bincount(rows, weights=lengths).max() <= 64
    assert np.bincount(rows).max() <= max_documents
    assert np.bincount(rows, weights=states).max() <= max_states


def test_a_document_goes_to_the_fullest_row_that_takes_it() -> None:
    lengths = np.array([60, 50, 14, 4, 40])
    rows = best_fit(lengths, np.zeros(5, int), frames=64, max_documents=9, max_states=0)
    assert rows.tolist() == [0, 1, 1, 0, 2]


def test_a_row_without_room_for_the_text_is_passed_over() -> None:
    rows = best_fit(np.array([60, 50, 4]), np.array([5, 1, 3]), frames=64, max_documents=9, max_states=6)
    assert rows.tolist() == [0, 1, 1]


@pytest.mark.parametrize("frames", [1024, 2048])
def test_speech_lengths_fill_rows(frames: int) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(400), 0.5, 4000), 100, 1000).astype(int)
    rows = best_fit(lengths, np.zeros(4000, int), frames=frames, max_documents=64, max_states=0)
    assert lengths.sum() / ((rows.max() + 1) * frames) > 0.98
