"""One worker of the farm: a work unit in, a published shard out. `UnitWorker` is the class that farm.py makes Ray actors of.

Owns decoding, filtering, tokenizing and the counting of what is dropped. A clip is dropped for a reason of `audio.REASONS` only;
every other fault ends the run, so that no bug can pass for bad data.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uniaudio.configs.farm import FarmConfig, FilterConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, BadAudio, load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.schema import TokenizedClip, base_view
from uniaudio.tokenize_farm.shard_writer import write_shard
from uniaudio.tokenize_farm.simulate.simulator import Simulator
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, Tokenizer, make_tokenizer
from uniaudio.tokenize_farm.units import WorkUnit, clip_key

_META_KEYS = ("speaker", "language", "text", "caption", "instruction", "source", "licence")


@dataclass
class UnitResult:
    """What a worker reports of one unit beside its sidecar: seconds of work by step, which no published byte depends on."""

    unit: str
    sidecar: dict
    seconds_by_step: dict[str, float] = field(default_factory=dict)


def make_tokenizers(config: FarmConfig) -> dict[str, Tokenizer]:
    """View name -> tokenizer.

    Raises:
        UserError: a tokenizer that makes another view than the one it is configured for; whatever `make_tokenizer` finds.
    """
    made = {view: make_tokenizer(spec.name, spec.options) for view, spec in config.tokenizers.items()}
    for view, tokenizer in made.items():
        if view != tokenizer.view:
            raise UserError(f"tokenizers.{view}: {tokenizer.name} makes another view", seen=view, allowed=tokenizer.view)
    return made


def tokenizer_versions(tokenizers: dict[str, Tokenizer]) -> dict[str, str]:
    """View -> `name/version`."""
    return {view: f"{tokenizer.name}/{tokenizer.version}" for view, tokenizer in sorted(tokenizers.items())}


def check_clip(samples: np.ndarray, filters: FilterConfig) -> None:
    """Raises BadAudio for samples (S,) outside the config's bounds."""
    seconds = len(samples) / SAMPLE_RATE
    if seconds < filters.min_seconds:
        raise BadAudio("too_short", f"{seconds:.2f} s; filters.min_seconds is {filters.min_seconds:g}")
    if seconds > filters.max_seconds:
        raise BadAudio("too_long", f"{seconds:.1f} s; filters.max_seconds is {filters.max_seconds:g}")
    level = 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12)
    if level < filters.min_rms_db:
        raise BadAudio("silent", f"{level:.0f} dB; filters.min_rms_db is {filters.min_rms_db:g}")


class UnitWorker:
    """Turns work units into shards, one after another; models are loaded once."""

    def __init__(self, config: FarmConfig, versions: dict[str, str]) -> None:
        """`versions`: the driver's; a worker on another machine with other files of a tokenizer must not write the same shards."""
        self._config = config
        self._tokenizers = make_tokenizers(config)
        self._folder = Path(config.manifest).absolute().parent
        self._simulator = Simulator(config)
        mine = tokenizer_versions(self._tokenizers) | self._simulator.versions()
        if mine != versions:
            raise UserError(
                "this worker's tokenizers differ from the driver's", seen=mine, allowed=versions, remedy="install the same files"
            )

    def run(self, unit: WorkUnit) -> UnitResult:
        """Publishes the unit's shard.

        Raises:
            OSError: a full disk, say; the shard does not exist then.
        """
        clock = _Clock()
        dropped: dict[str, list[str]] = {}
        details: dict[str, str] = {}
        clips: list[TokenizedClip] = []
        for batch in self._batches(unit, dropped, details, clock):
            clips += self._tokenize(batch, unit.split, clock)
        extra = {"fingerprint": unit.fingerprint, "rows": len(unit.rows), "dropped_details": details}
        with clock.step("write"):
            versions = tokenizer_versions(self._tokenizers) | self._simulator.versions()
            directory = Path(self._config.output_dir)
            sidecar = write_shard(directory, unit.split, unit.number, clips, tokenizers=versions, dropped=dropped, extra=extra)
        return UnitResult(unit.name, sidecar, clock.seconds)

    def _batches(self, unit: WorkUnit, dropped: dict[str, list[str]], details: dict[str, str], clock: "_Clock") -> Iterator[list[Clip]]:
        """Decoded clips in the manifest's order, at most about `batch_seconds` of them at once; what is bad goes into `dropped`."""
        batch: list[Clip] = []
        held = 0
        for row in unit.rows:
            try:
                with clock.step("decode"):
                    samples = self._load(row)
            except BadAudio as error:
                dropped.setdefault(error.reason, []).append(row.id)
                details[row.id] = error.detail.replace(f"{self._folder}/", "")
                continue
            if batch and held + len(samples) > self._config.batch_seconds * SAMPLE_RATE:
                yield batch
                batch, held = [], 0
            batch.append(Clip(row, samples))
            held += len(samples)
        if batch:
            yield batch

    def _load(self, row: ManifestRow) -> np.ndarray:
        # A longer clip than the filter lets pass is not decoded beyond it; one second more tells "too long" from "just fits".
        samples = load_audio(row.audio_filepath, offset=row.offset, duration=row.duration, max_seconds=self._config.filters.max_seconds + 1)
        check_clip(samples, self._config.filters)
        return samples

    def _tokenize(self, batch: list[Clip], split: str, clock: "_Clock") -> list[TokenizedClip]:
        made = [TokenizedClip(clip_key(clip.row), clip_meta(clip)) for clip in batch]
        for view, tokenizer in self._tokenizers.items():
            self._encode(view, tokenizer, batch, made, clock)
        with clock.step("simulate"):
            variants = [self._simulator.variants(clip, split) for clip in batch]
        for view in self._simulator.views:
            having = [i for i, its in enumerate(variants) if view in its]
            clips = [variants[i][view] for i in having]
            self._encode(view, self._tokenizers[base_view(view)], clips, [made[i] for i in having], clock)
        return made

    def _encode(self, view: str, tokenizer: Tokenizer, clips: list[Clip], made: list[TokenizedClip], clock: "_Clock") -> None:
        """Writes the arrays of one view into `made`, which stands beside `clips`."""
        with clock.step(f"{view}:{tokenizer.name}"):
            arrays = tokenizer.encode(clips)
        for clip, array in zip(made, arrays, strict=True):
            if array is not None:
                clip.views[view] = array


def clip_meta(clip: Clip) -> dict[str, object]:
    """KEY.json of a clip: what is known of it; `custom` where the manifest had further keys."""
    row = clip.row
    known = {key: value for key in _META_KEYS if (value := getattr(row, key)) is not None}
    custom = {"custom": row.custom} if row.custom else {}
    return {"id": row.id, "kind": row.kind, "seconds": len(clip.samples) / SAMPLE_RATE, **known, **custom}


class _Clock:
    """Adds up wall seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def step(self, name: str) -> "_Step":
        return _Step(self.seconds, name)


class _Step:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - self._begin
