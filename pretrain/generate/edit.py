"""Speech editing: a recording, its words, and `old words=new words` -> aligned phones of the new wording, and codes with a hole in them.

The new words take the mean pace of the recording; words replaced by themselves keep their times. Shapes: phones (P, 2), codes (T, Q).
"""

from collections.abc import Mapping

import numpy as np

from uniaudio.configs.tasks import TaskConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.sequence import MASKED
from uniaudio.tokenize_farm.schema import PHONE_MARKS, UNKNOWN_PHONE
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, Tokenizer


def edited_views(
    task: TaskConfig, text: str | None, replace: str | None, source: Clip, tokenizers: Mapping[str, Tokenizer]
) -> dict[str, np.ndarray]:
    """The aligned phones and the masked codes of the task, by segment key.

    Raises:
        UserError: no words, words that the recording does not hold once, or no alignment.
    """
    if not text or not text.strip():
        raise UserError(f"task {task.name} needs the words of the recording", seen=repr(text), remedy='--text "..."')
    old, equals, new = (replace or "").partition("=")
    if not equals or not old.strip() or not new.strip():
        raise UserError(f"task {task.name} needs words to replace", seen=repr(replace), remedy='--replace "old words=new words"')
    held = next(segment for segment in task.conditions if segment.durations == "keep")
    hidden = next(segment for segment in task.conditions if segment.draw == "masked")
    phones = tokenizers[held.view].encode([source])[0]
    if phones is None or len(phones) == 0:
        raise UserError(
            "the words cannot be aligned with the recording", seen=text[:60], remedy="correct --text, or give --alignment FILE.TextGrid"
        )
    old_ids, new_ids = (_spelled(words, source, tokenizers) for words in (old, new))
    first, last = find_sounds(phones, old_ids, old)
    same = np.array_equal(old_ids[:, 0], new_ids[:, 0])
    fresh = phones[first:last] if same else paced(new_ids, phones)
    ends = np.concatenate([[0], np.cumsum(phones[:, 1], dtype=np.int64)])
    codes = tokenizers["audio"].encode([source])[0]
    assert codes is not None
    hole = np.full((int(fresh[:, 1].sum()), codes.shape[1]), MASKED, np.uint16)
    return {
        held.key: np.concatenate([phones[:first], fresh, phones[last:]]).astype(np.uint16),
        hidden.key: np.concatenate([codes[: ends[first]], hole, codes[ends[last] :]]).astype(np.uint16),
    }


def _spelled(words: str, source: Clip, tokenizers: Mapping[str, Tokenizer]) -> np.ndarray:
    if "phone" not in tokenizers:
        raise UserError("speech editing spells words with the view phone, which the shards lack", remedy="tokenize with a phone tokenizer")
    row = source.row.model_copy(update={"text": words, "kind": "speech"})
    phones = tokenizers["phone"].encode([Clip(row, np.zeros(0, np.float32))])[0]
    if phones is None:
        raise UserError("no phonemes for these words", seen=words, remedy="check --replace and --language")
    return phones


def sounding(phones: np.ndarray) -> np.ndarray:
    """(P,) bool: sounds, not pauses, marks and borders of words."""
    return (phones[:, 0] >= PHONE_MARKS) | (phones[:, 0] == UNKNOWN_PHONE)


def find_sounds(phones: np.ndarray, wanted: np.ndarray, words: str) -> tuple[int, int]:
    """First row and last + 1 of `phones` that hold the sounds of `wanted`; UserError unless they are there exactly once."""
    places = np.flatnonzero(sounding(phones))
    have, want = phones[places, 0].tolist(), wanted[sounding(wanted), 0].tolist()
    starts = [start for start in range(len(have) - len(want) + 1) if have[start : start + len(want)] == want]
    if len(starts) != 1 or not want:
        raise UserError(
            "the words to replace must be in the recording once", seen=f"{words.strip()!r} {len(starts)} times", allowed="1",
            remedy="take more words beside them, or correct --text",
        )  # fmt: skip
    return int(places[starts[0]]), int(places[starts[0] + len(want) - 1]) + 1


def paced(new: np.ndarray, phones: np.ndarray) -> np.ndarray:
    """The rows of new words with the mean frames that a sound of the recording lasts; marks last none."""
    sounds = sounding(phones)
    mean = phones[sounds, 1].mean()
    ends = np.round(np.cumsum(sounding(new)) * max(mean, 1.0))
    return np.stack([new[:, 0], np.diff(ends, prepend=0)], axis=1).astype(np.uint16)
