"""Which frames of a clip are hidden: inside it, varying, whole words where their times are known."""

import numpy as np
import pytest

from uniaudio.configs.tasks import load_task
from uniaudio.pretrain.data.hide import HISTORY_SPAN, hidden_history, hidden_span, word_spans


@pytest.mark.parametrize("frames", [3, 30, 200])
def test_a_hidden_span_lies_inside_and_varies(frames) -> None:
    segment = load_task("s_edit").conditions[1]
    spans = {hidden_span(segment, frames, draw) for draw in range(40)}
    assert all(start >= 0 and stop <= frames and min(frames, 10) <= stop - start <= 50 for start, stop in spans)
    assert len(spans) > (1 if frames > 3 else 0)


def test_hidden_words_are_whole_and_one_after_another() -> None:
    segment = load_task("s_edit").conditions[1]
    # <sil> 5 frames | a word of 2 phones, 8 frames | <wb> | a word of 1 phone, 4 frames | , 6 frames | a word with an <unk>, 10 frames
    phones = np.array([[0, 5], [20, 3], [21, 5], [2, 0], [30, 4], [3, 6], [40, 6], [1, 4]], np.uint16)
    assert word_spans(phones).tolist() == [[5, 13], [13, 17], [23, 33]]
    for frames, allowed in ((33, {(5, 13), (13, 17), (23, 33), (5, 17), (13, 33)}), (28, {(5, 13), (13, 17), (23, 28), (5, 17), (13, 28)})):
        assert {hidden_span(segment, frames, draw, phones) for draw in range(60)} == allowed
    silence = np.array([[0, 33]], np.uint16)
    assert hidden_span(segment, 33, 1, silence) == hidden_span(segment, 33, 1), "without words, a span of seconds"


def test_hidden_history_has_the_share_asked_for_and_differs_between_documents() -> None:
    found = [hidden_history(0.3, 203, draw) for draw in range(400)]
    shares = np.array([history.mean() for history in found])
    assert all(len(history) == 203 for history in found)
    assert abs(shares.mean() - 0.3) < 0.03 and shares.min() < 0.1 and shares.max() > 0.5
    edges = [np.flatnonzero(np.diff(history.astype(int))) for history in found]
    assert all((np.diff(places) % HISTORY_SPAN == 0).all() for places in edges), "whole spans"
    assert not hidden_history(0.0, 50, 1).any()
    assert hidden_history(0.5, 3, 1).shape == (3,)
