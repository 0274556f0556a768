"""What a farm makes of a recording besides its own codes: degraded copies, edited pairs, instructions. Recipes as data.

Every draw is seeded by the clip's id, so a clip's variants are the same in any run, on any worker.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from uniaudio.configs.section import Section

Kind = Literal["speech", "sound", "music", "singing"]
Range = tuple[float, float]
_PLACE = re.compile(r"\{[^}]*\}")


class NoiseConfig(Section):
    """Recordings of other clips laid under the clip, repeated or cut to its length."""

    effect: Literal["noise"]
    kinds: tuple[Kind, ...] = Field(("sound", "music"), min_length=1, description="what may serve as noise, from the pool")
    snr_db: Range = Field((-5.0, 20.0), description="level of the clip over the noise")


class SpeakersConfig(Section):
    """Other people speaking at the same time; for clips whose speaker is known."""

    effect: Literal["speakers"]
    count: tuple[int, int] = Field((1, 1), description="fewest and most of them")
    sir_db: Range = Field((-5.0, 5.0), description="level of the clip over each of them")


class RoomConfig(Section):
    """Simulated shoebox rooms (image sources). Clips share a bank of `rooms`, each worked out once a process."""

    effect: Literal["room"]
    rooms: int = Field(64, ge=1)
    rt60_seconds: Range = (0.2, 0.8)
    side_meters: Range = (3.0, 8.0)
    height_meters: Range = (2.4, 3.6)


class BandLimitConfig(Section):
    """Low-pass at a frequency drawn from `hz`."""

    effect: Literal["band_limit"]
    hz: Range = (1000.0, 4000.0)


class GapConfig(Section):
    """One span of silence."""

    effect: Literal["gap"]
    seconds: Range = (0.2, 1.0)


Effect = Annotated[NoiseConfig | SpeakersConfig | RoomConfig | BandLimitConfig | GapConfig, Field(discriminator="effect")]


class ViewRecipe(Section):
    """How a view such as `audio.noisy` is made of a clip: steps one after another, for clips of these kinds."""

    kinds: tuple[Kind, ...] = Field(("speech",), min_length=1)
    fraction: float = Field(1.0, gt=0, le=1, description="share of the clips, by the hash of their id")
    steps: tuple[Effect, ...] = Field(..., min_length=1)


class EditRecipe(Section):
    """Views `audio.original`, `audio.edited` and `text.instruction` of a sound. {event}, {other}, {sound}: captions."""

    kinds: tuple[Kind, ...] = Field(("sound",), min_length=1)
    fraction: float = Field(1.0, gt=0, le=1)
    event_db: Range = Field((-3.0, 9.0), description="level of an added, removed or replaced sound over the clip")
    gap_seconds: Range = (0.3, 1.5)
    cutoff_hz: Range = (1000.0, 3000.0)
    operations: dict[Literal["add", "remove", "replace", "inpaint", "super_resolution"], tuple[str, ...]] = Field(
        {
            "add": ("add {event}", "mix in {event}", "put {event} on top"),
            "remove": ("remove {event}", "take {event} away", "drop {event}"),
            "replace": ("replace {event} with {other}", "change {event} to {other}"),
            "inpaint": ("fill in the missing part", "restore the gap in {sound}"),
            "super_resolution": ("increase the resolution", "restore the high frequencies of {sound}"),
        },
        min_length=1,
        description="what is done, and phrases to ask for it with",
    )


class InstructRecipe(Section):
    """View `text.instruction` of speech: the row's own `instruction`, or its voice in words.

    {voice}: man, woman, child or voice; {pitch}, {speed}, {tone}: from the row's keys of those names, else measured.
    """

    kinds: tuple[Kind, ...] = Field(("speech",), min_length=1)
    fraction: float = Field(1.0, gt=0, le=1)
    phrases: tuple[str, ...] = Field(
        (
            "a {voice} with a {pitch} pitch speaks {speed}",
            "speak {speed} in a voice of {pitch} pitch",
            "a {tone} {voice}, {pitch} pitch, speaking {speed}",
            "say it {speed}, {tone} in tone, {pitch} in pitch",
        ),
        min_length=1,
    )


class SimulateConfig(Section):
    """Recipes, and the pool that noises, sound events and other speakers come from.

    `pool`: a manifest; the farm's own unless given. Each worker reads it once at its start, so that beyond a million rows a smaller one
    pays (`uniaudio tokenize pool`). Clips only ever meet clips of their own split.
    """

    pool: str | None = None
    pool_clips: int = Field(2000, ge=1, description="clips kept of each kind and split, by the hash of their id")
    views: dict[str, ViewRecipe] = Field(default_factory=dict)
    edit: EditRecipe | None = None
    instruct: InstructRecipe | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "SimulateConfig":
        for view in self.views:
            if not view.startswith("audio.") or not view[6:].isalpha() or not view.islower():
                raise ValueError(f"simulate.views makes views named audio.SOMETHING (small letters); seen: {view}")
        if self.edit and (clash := {"audio.original", "audio.edited"} & set(self.views)):
            raise ValueError(f"simulate.edit makes {', '.join(sorted(clash))} already")
        if self.edit and self.instruct and (both := set(self.edit.kinds) & set(self.instruct.kinds)):
            raise ValueError(f"edit and instruct both write text.instruction of {', '.join(sorted(both))}")
        for name, phrases, words in self._phrases():
            known = {f"{{{word}}}" for word in words}
            if not phrases:
                raise ValueError(f"{name}: no phrase to ask for it with")
            if unknown := sorted({found for phrase in phrases for found in _PLACE.findall(phrase)} - known):
                raise ValueError(f"{name}: a phrase has {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
        for name, (low, high) in self._ranges():
            if low > high:
                raise ValueError(f"{name}: a range ascends; seen: [{low:g}, {high:g}]")
        return self

    def _phrases(self) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """(key, phrases, words that they may ask for)."""
        for operation, phrases in (self.edit.operations if self.edit else {}).items():
            events = {"add": ("event",), "remove": ("event",), "replace": ("event", "other")}
            yield f"edit.operations.{operation}", phrases, ("sound", *events.get(operation, ()))
        if self.instruct:
            yield "instruct.phrases", self.instruct.phrases, ("voice", "pitch", "speed", "tone")

    def _ranges(self) -> Iterator[tuple[str, tuple[float, float]]]:
        sections: list[tuple[str, Section]] = [(f"views.{view}", step) for view, recipe in self.views.items() for step in recipe.steps]
        sections += [("edit", self.edit)] if self.edit else []
        for name, section in sections:
            for key, value in section:
                if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, int | float) for part in value):
                    yield f"{name}.{key}", value
