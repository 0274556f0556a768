"""Tasks as data: what stands before the target, in order, and how each part is drawn (configs/tasks/*.yaml)."""

from typing import Literal

from pydantic import Field, model_validator

from uniaudio.configs.load import find_config, parse_yaml, validate
from uniaudio.configs.section import Section
from uniaudio.errors import UserError

CONTINUOUS = "continuous"
_AROUND: dict[str, tuple[str, ...]] = {"own": (), "middle": ("before", "after"), "rest": ("before",)}  # pieces beside the target's piece


class SegmentConfig(Section):
    """One part of a sequence: `<start> rows... <end>`."""

    view: str = Field(..., description="view of the shard, for example audio.noisy")
    modality: str = Field(..., description="range of the vocabulary; continuous: states of a text encoder")
    start: str
    end: str
    draw: Literal["own", "same_speaker", "masked", "before", "middle", "after", "rest"] = Field(
        "own",
        description="own: the clip's view; same_speaker: a crop of another clip of its speaker; masked: the clip's view, a span hidden; "
        "before, middle, after: the clip's view cut in three around a drawn span; before, rest: cut in two at a drawn place",
    )
    durations: Literal["keep", "collapse"] = Field(
        "collapse", description="phones: one frame a phone, or each repeated over the frames it lasts"
    )
    follows_target: bool = Field(False, description="frame for frame beside the target: cut where the target is cut")
    max_rows: int | None = Field(None, ge=1, description="longer views are cut to this many rows")
    mask_seconds: tuple[float, float] = Field(
        (0.2, 1.0), description="shortest and longest span that is hidden (masked), is the target (middle), or stands before it (rest)"
    )
    mask_words_of: str | None = Field(None, description="draw masked: view of aligned phones; whole words are hidden instead of seconds")
    mask_words: tuple[int, int] = Field((1, 2), description="with mask_words_of: fewest and most words hidden, one after another")

    @property
    def key(self) -> str:
        """Name of the segment's array among the views given to the sequence builder: `prompt`, `audio.masked`, or the view's own name."""
        if self.draw in ("own", "middle", "rest"):
            return self.view
        return "prompt" if self.draw == "same_speaker" else f"{self.view}.{self.draw}"


class TaskConfig(Section):
    """Conditions in order, then the target. A clip serves the task if its kind is listed and it has every view."""

    name: str = Field(..., pattern=r"^[a-z0-9_]+$")
    token: str = Field(..., description="special token that names the task, behind <start>")
    kinds: tuple[Literal["speech", "sound", "music", "singing"], ...] = Field(..., min_length=1)
    conditions: tuple[SegmentConfig, ...] = ()
    target: SegmentConfig

    @model_validator(mode="after")
    def _consistent(self) -> "TaskConfig":
        keys = [segment.key for segment in self.segments]
        if len(set(keys)) != len(keys):
            raise ValueError(f"two segments are drawn from the same thing: {', '.join(keys)}")
        if self.target.draw not in _AROUND or self.target.modality == CONTINUOUS:
            raise ValueError("the target is the clip's own codes: draw own, middle or rest, and a modality of the vocabulary")
        pieces = {segment.draw: segment.view for segment in self.conditions if segment.draw in ("before", "middle", "after", "rest")}
        if pieces != dict.fromkeys(_AROUND[self.target.draw], self.target.view):
            raise ValueError(
                "the pieces of a view go together: before and after with the target middle, before alone with the target rest; "
                f"seen: target {self.target.draw}, conditions {', '.join(pieces) or 'none'}"
            )
        for segment in self.segments:
            if segment.durations == "keep" and not (segment.view.split(".")[0] == "phone" and segment.follows_target):
                raise ValueError(f"{segment.view}: durations keep is for phones that follow the target")
            if segment.draw != "own" and segment.modality != "audio":
                raise ValueError(f"{segment.view}: draw {segment.draw} is for audio")
            shortest, longest = segment.mask_seconds
            if not 0 < shortest <= longest:
                raise ValueError(f"{segment.view}: mask_seconds must ascend from above 0")
            if not 0 < segment.mask_words[0] <= segment.mask_words[1]:
                raise ValueError(f"{segment.view}: mask_words must ascend from above 0")
            if segment.mask_words_of is not None and (segment.draw != "masked" or segment.mask_words_of.split(".")[0] != "phone"):
                raise ValueError(f"{segment.view}: mask_words_of names a view of phones, for draw masked")
        return self

    @property
    def segments(self) -> tuple[SegmentConfig, ...]:
        """Conditions, then the target."""
        return (*self.conditions, self.target)

    @property
    def required_views(self) -> tuple[str, ...]:
        """Views of the shard that a clip must have, each once."""
        views = [view for segment in self.segments for view in (segment.view, segment.mask_words_of) if view]
        return tuple(dict.fromkeys(views))

    @property
    def is_split(self) -> bool:
        """True where the target is a piece of a view and conditions are its other pieces."""
        return self.target.draw != "own"

    @property
    def needs_prompt(self) -> bool:
        """True where a condition comes from another clip of the speaker."""
        return any(segment.draw == "same_speaker" for segment in self.conditions)


def load_task(name: str) -> TaskConfig:
    """A task of configs/tasks by name, or a YAML file of that form; UserError names the key at fault."""
    path = find_config(name, "tasks")
    return validate(TaskConfig, parse_yaml(path.read_text(encoding="utf-8"), source=str(path)), source=str(path))


def load_tasks(names: tuple[str, ...] | list[str]) -> tuple[TaskConfig, ...]:
    """The tasks of `data.tasks` in order; two of one name are refused."""
    tasks = tuple(load_task(name) for name in names)
    seen = [task.name for task in tasks]
    if len(set(seen)) != len(seen):
        raise UserError("data.tasks names a task twice", seen=", ".join(seen))
    return tasks
