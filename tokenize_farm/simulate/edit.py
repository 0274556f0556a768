"""Pairs for audio editing: a sound before and after, and the words that ask for the change."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from uniaudio.configs.simulate import EditRecipe
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.simulate.effects import Scene, gap, limit, low_pass, place
from uniaudio.tokenize_farm.tokenizers.protocol import description


@dataclass(frozen=True)
class Edit:
    """`original` and `edited`: samples (S,), frame for frame beside each other."""

    original: np.ndarray
    edited: np.ndarray
    instruction: str


def make_edit(recipe: EditRecipe, samples: np.ndarray, draw: Draw, scene: Scene) -> Edit | None:
    """One operation, drawn; None where the pool has no sound with a caption to add."""
    operation = draw.choose(sorted(recipe.operations))
    phrase = draw.choose(recipe.operations[operation])  # type: ignore[index]  # it is one of its keys
    words: dict[str, str] = {"sound": description(scene.row) or "the sound"}
    match operation:
        case "inpaint":
            pair = gap(samples, draw.uniform(*recipe.gap_seconds), draw), samples
        case "super_resolution":
            pair = low_pass(samples, draw.uniform(*recipe.cutoff_hz)), samples
        case _:
            made = _with_events(operation, recipe, samples, draw, scene, words)
            if made is None:
                return None
            pair = made
    original, edited = pair
    return Edit(limit(original), limit(edited), _say(phrase, words))


def _with_events(
    operation: str, recipe: EditRecipe, samples: np.ndarray, draw: Draw, scene: Scene, words: dict[str, str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """(before, after) of add, remove, replace; writes the captions of what was mixed in into `words`."""
    with_event = _event("event", recipe, samples, draw, scene, words)
    if with_event is None:
        return None
    if operation == "add":
        return samples, with_event
    if operation == "remove":
        return with_event, samples
    with_other = _event("other", recipe, samples, draw, scene, words)
    return None if with_other is None else (with_event, with_other)


def _event(name: str, recipe: EditRecipe, samples: np.ndarray, draw: Draw, scene: Scene, words: dict[str, str]) -> np.ndarray | None:
    known = {description(scene.row), *words.values()}

    def fits(row: ManifestRow) -> bool:
        caption = description(row)
        return caption is not None and caption not in known and row.audio_filepath != scene.row.audio_filepath

    found = scene.pool.draw(draw, scene.split, ("sound",), fits, len(samples) / SAMPLE_RATE)
    if found is None:
        return None
    words[name] = str(description(found[0]))
    return place(samples, found[1], draw.uniform(*recipe.event_db), draw)


def _say(phrase: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        phrase = phrase.replace("{" + name + "}", value)
    return phrase
