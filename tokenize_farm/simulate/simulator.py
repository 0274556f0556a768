"""A clip in, its variants out: view -> clip whose sound or words the tokenizer of the base view turns into codes.

Owns which recipes apply to a clip, and their seeds. What a variant is depends on config, pool, split and the clip alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.simulate import NoiseConfig, RoomConfig, SpeakersConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow, read_manifest
from uniaudio.tokenize_farm.scan import hold_out, scan_manifest
from uniaudio.tokenize_farm.schema import SPLITS
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.simulate.edit import make_edit
from uniaudio.tokenize_farm.simulate.effects import Scene, apply
from uniaudio.tokenize_farm.simulate.instruct import instruction
from uniaudio.tokenize_farm.simulate.pool import Pool, choose_rows
from uniaudio.tokenize_farm.simulate.rooms import RoomBank
from uniaudio.tokenize_farm.tokenizers.protocol import Clip
from uniaudio.tokenize_farm.tokenizers.resources import digest, require
from uniaudio.tokenize_farm.units import relative_to

_VERSION = "2"  # of this code: raise it where the same recipe makes other samples


class Simulator:
    """All recipes of a farm.

    Raises:
        UserError: a view without tokenizer; a recipe that needs what the pool lacks; whatever is wrong with the pool's manifest.
        MissingDependency: a package that a recipe needs.
    """

    def __init__(self, config: FarmConfig) -> None:
        self.config, self._seed = config.simulate, config.seed
        self._check_tokenizers(config)
        rows = pool_rows(config) if self._needs_pool() else []
        self._check_pool(rows)
        self._pool, self._rooms = Pool(rows), RoomBank(config.seed)
        folder = Path(self.config.pool or config.manifest).absolute().parent
        described = [[row.id, relative_to(row.audio_filepath, folder), row.offset, row.duration, split] for row, split in rows]
        recipes = self.config.model_dump_json(exclude={"pool", "pool_clips"})
        self.version = digest(_VERSION, recipes, str(config.seed), json.dumps(described))

    @property
    def views(self) -> tuple[str, ...]:
        """Names of all that is made."""
        edited = ("audio.original", "audio.edited") if self.config.edit else ()
        words = ("text.instruction",) if self.config.edit or self.config.instruct else ()
        return (*self.config.views, *edited, *words)

    def versions(self) -> dict[str, str]:
        """View -> `simulate/version`, as the sidecars keep it."""
        return dict.fromkeys(self.views, f"simulate/{self.version}")

    def variants(self, clip: Clip, split: str) -> dict[str, Clip]:
        """View -> what its base view's tokenizer is to encode. Views that this clip has nothing for are left out."""
        return dict(self._variants(clip, Scene(clip.row, split, self._pool, self._rooms)))

    def _variants(self, clip: Clip, scene: Scene) -> Iterator[tuple[str, Clip]]:
        row = clip.row
        for view, recipe in self.config.views.items():
            if row.kind in recipe.kinds and self._chosen(row, view, recipe.fraction):
                samples = apply(recipe.steps, clip.samples, Draw(self._seed, row.id, view), scene)
                if samples is not None:
                    yield view, Clip(row, samples)
        edit, instruct = self.config.edit, self.config.instruct
        if edit and row.kind in edit.kinds and self._chosen(row, "edit", edit.fraction):
            made = make_edit(edit, clip.samples, Draw(self._seed, row.id, "edit"), scene)
            if made is not None:
                yield "audio.original", Clip(row, made.original)
                yield "audio.edited", Clip(row, made.edited)
                yield "text.instruction", _worded(clip, made.instruction)
        if instruct and row.kind in instruct.kinds and self._chosen(row, "instruct", instruct.fraction):
            words = instruction(instruct, row, clip.samples, Draw(self._seed, row.id, "instruct"))
            if words is not None:
                yield "text.instruction", _worded(clip, words)

    def _chosen(self, row: ManifestRow, purpose: str, fraction: float) -> bool:
        return Draw(self._seed, row.id, purpose, "fraction").uniform(0, 1) < fraction

    def _check_tokenizers(self, config: FarmConfig) -> None:
        for view in self.views:
            if (base := view.split(".")[0]) not in config.tokenizers:
                remedy = f"add it to tokenizers, or leave the recipe out of simulate: {view}"
                raise UserError(f"simulate makes {view}, but no tokenizer makes {base}", seen=", ".join(config.tokenizers), remedy=remedy)
        if any(isinstance(step, RoomConfig) for recipe in self.config.views.values() for step in recipe.steps):
            require("pyroomacoustics", needed_for="simulate: effect room")
        if self.config.instruct:
            require("pyworld", needed_for="simulate.instruct (package pyworld-prebuilt)")

    def _needs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(recipe, kinds of which the pool must hold some)."""
        for view, recipe in self.config.views.items():
            for step in recipe.steps:
                if isinstance(step, NoiseConfig):
                    yield f"views.{view}", step.kinds
                if isinstance(step, SpeakersConfig):
                    yield f"views.{view}", ("speech",)
        if self.config.edit and {"add", "remove", "replace"} & set(self.config.edit.operations):
            yield "edit", ("sound",)

    def _needs_pool(self) -> bool:
        return any(True for _ in self._needs())

    def _check_pool(self, rows: list[tuple[ManifestRow, str]]) -> None:
        kinds = {row.kind for row, _ in rows}
        for recipe, wanted in self._needs():
            if not kinds & set(wanted):
                raise UserError(
                    f"simulate.{recipe}: the pool has no recording of kind {' or '.join(wanted)}",
                    seen=", ".join(sorted(kinds)) or "no row",
                    remedy="give simulate.pool a manifest that has some, or leave the recipe out",
                )


def pool_rows(config: FarmConfig) -> list[tuple[ManifestRow, str]]:
    """The pool's (row, split) pairs. Splits are those of the farm where the pool is its manifest."""
    manifest = config.simulate.pool or config.manifest
    splits = hold_out(scan_manifest(manifest, seed=config.seed), fraction=config.held_out_fraction)
    return choose_rows(zip(read_manifest(manifest), (SPLITS[split] for split in splits)), config.simulate.pool_clips)


def _worded(clip: Clip, words: str) -> Clip:
    """The clip with `words` as its description."""
    return Clip(clip.row.model_copy(update={"caption": words}), clip.samples)
