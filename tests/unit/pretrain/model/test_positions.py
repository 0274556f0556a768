"""Where `positions: time` puts the frames of real documents: what sounds together has one position."""

import itertools

import numpy as np
import torch

from uniaudio.configs.tasks import load_task
from uniaudio.pretrain.data.sequence import build_sequence
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.model.positions import PHONE_FRAMES, PROMPT_TIME, SegmentTimes

VOCABULARY = load_vocabulary("paper")
TIMES = SegmentTimes(VOCABULARY)


def codes(frames: int) -> np.ndarray:
    return np.arange(frames * 3, dtype=np.uint16).reshape(frames, 3)


def document(task: str, **views: np.ndarray) -> torch.Tensor:
    """Level 0 of a document of the task."""
    return torch.from_numpy(build_sequence(load_task(task), views, VOCABULARY, 3).codes_LQ[:, 0])


def times(*documents: torch.Tensor) -> list[list[int]]:
    """Times of documents packed in one row: of each frame at the place that is shown it, so of all but the last."""
    ids = torch.cat(documents)[None]
    first = torch.zeros_like(ids, dtype=torch.bool)
    starts = np.cumsum([0] + [len(ids_T) for ids_T in documents])
    first[0, starts[:-1]] = True
    found = TIMES(ids, ids.roll(1, dims=1).masked_fill(first, VOCABULARY.special("<mega_global>")), first)[0].tolist()
    return [found[start + 1 : stop] for start, stop in itertools.pairwise(starts)]


def test_noisy_and_clean_speech_stand_at_the_same_times() -> None:
    noisy = document("se", **{"audio.noisy": codes(5), "audio": codes(5)})
    # <start> <SE_task> | <audio_start> 5 frames <audio_end> | <audio_start> 5 frames <audio_end> (and <end>, which nothing is shown)
    assert times(noisy) == [[1, 2, *range(7), *range(7)]]


def test_phones_without_durations_stand_as_far_apart_as_speech_is_long_and_a_prompt_before_it() -> None:
    phones = np.array([[5, 3], [6, 4], [7, 2]], np.uint16)
    spoken = document("tts", phone=phones, prompt=codes(4), audio=codes(9))
    phone_times = [PHONE_FRAMES * n for n in range(5)]
    prompt_times = [PROMPT_TIME + n for n in range(6)]
    assert times(spoken) == [[1, 2, *phone_times, *prompt_times, *range(11)]]


def test_phones_held_over_their_durations_stand_at_the_times_of_their_frames() -> None:
    phones = np.array([[5, 3], [6, 4], [7, 2]], np.uint16)
    edited = document("s_edit", **{"phone.aligned": phones, "audio.masked": codes(9), "audio": codes(9)})
    assert times(edited) == [[1, 2, *range(11), *range(11), *range(11)]]


def test_documents_of_a_row_do_not_know_of_each_other() -> None:
    noisy = document("se", **{"audio.noisy": codes(5), "audio": codes(5)})
    spoken = document("plain_tts", phone=np.array([[5, 3]], np.uint16), audio=codes(9))
    assert times(noisy, spoken, noisy) == [*times(noisy), *times(spoken), *times(noisy)]
