"""One worker of the farm: work units in, published shards out. `UnitWorker` is the class that flow.py makes Ray actors of.

Owns tokenizing; decoding is decode.py's, publishing output.py's. A clip is dropped for a reason of `audio.REASONS` only; every other fault
ends the run, so that no bug can pass for bad data.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.clock import Clock, SharedTime
from uniaudio.tokenize_farm.decode import Decoder, Drops
from uniaudio.tokenize_farm.output import open_output
from uniaudio.tokenize_farm.schema import TokenizedClip, base_view
from uniaudio.tokenize_farm.simulate.simulator import Simulator
from uniaudio.tokenize_farm.tokenizers.protocol import AheadTokenizer, Clip, Tokenizer, make_tokenizer
from uniaudio.tokenize_farm.units import WorkUnit, clip_key

ResultT = TypeVar("ResultT")

_META_KEYS = ("speaker", "language", "text", "caption", "instruction", "source", "licence")


@dataclass
class UnitResult:
    """What a worker reports of one unit beside its sidecar: seconds of work by step, which no published byte depends on."""

    unit: str
    sidecar: dict
    seconds_by_step: dict[str, float] = field(default_factory=dict)


@dataclass
class DecodedUnit:
    """A unit decoded elsewhere: its clips by batches, and what was dropped."""

    batches: list[list[Clip]]
    drops: Drops
    seconds_by_step: dict[str, float]


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


def decode_unit(config: FarmConfig, unit: WorkUnit) -> DecodedUnit:
    """Decodes a whole unit: the stage before the tokenizers where those have GPUs and the CPUs decode for them."""
    clock, drops = Clock(), Drops()
    batches = list(Decoder(config).batches(unit.rows, unit.folder, drops, clock, poison=unit.poison))
    return DecodedUnit(batches, drops, clock.seconds)


class UnitWorker:
    """Turns work units into shards; models are loaded once.

    Calls of `run` may overlap: one at a time computes, while the others wait for their device, the disk or the network.
    """

    def __init__(self, config: FarmConfig, versions: dict[str, str]) -> None:
        """`versions`: the driver's; a worker on another machine with other files of a tokenizer must not write the same shards."""
        self._config = config
        self._tokenizers = make_tokenizers(config)
        self._decoder = Decoder(config)
        self._output = open_output(config.output_dir)
        self._computing, self._device_time = threading.Lock(), SharedTime()
        self._simulator = Simulator(config)
        self._versions = tokenizer_versions(self._tokenizers) | self._simulator.versions()
        if self._versions != versions:
            raise UserError(
                "this worker's tokenizers differ from the driver's", seen=self._versions, allowed=versions, remedy="install the same files"
            )

    def ready(self) -> str:
        """Host and process; returns once the worker runs, what has a device loaded."""
        for tokenizer in self._tokenizers.values():
            if isinstance(tokenizer, AheadTokenizer):
                tokenizer.load()
        return f"{socket.gethostname()} pid {os.getpid()}"

    def run_many(self, units: Sequence[WorkUnit]) -> list[UnitResult]:
        """`run` for several units: one call for many small ones."""
        return [self.run(unit) for unit in units]

    def run(self, unit: WorkUnit, decoded: DecodedUnit | None = None) -> UnitResult:
        """Publishes the unit's shard.

        Args:
            decoded: the unit's clips where another process decoded them.

        Raises:
            OSError: a full disk, a store that stays away; the shard does not exist then.
        """
        clock, drops = Clock(), decoded.drops if decoded else Drops()
        with self._computing:
            batches: Iterable[list[Clip]]
            batches = decoded.batches if decoded else self._decoder.batches(unit.rows, unit.folder, drops, clock, poison=unit.poison)
            clips, pending = self._tokenize(batches, unit.split, clock)
        for wait in pending:  # the next unit is begun meanwhile
            wait()
        extra = {"fingerprint": unit.fingerprint, "rows": len(unit.lines), "dropped_details": drops.details}
        with clock.step("write"):
            sidecar = self._output.write(unit.split, unit.number, clips, tokenizers=self._versions, dropped=drops.ids, extra=extra)
        return UnitResult(unit.name, sidecar, clock.seconds | (decoded.seconds_by_step if decoded else {}))

    def probe(self, unit: WorkUnit, begin: int, end: int) -> None:
        """Decodes and tokenizes rows [begin, end) and publishes nothing: does one of them kill the worker?"""
        with self._computing:
            batches = self._decoder.batches(unit.rows[begin:end], unit.folder, Drops(), Clock())
            for wait in self._tokenize(batches, unit.split, Clock())[1]:
                wait()

    def _tokenize(self, batches: Iterable[list[Clip]], split: str, clock: Clock) -> tuple[list[TokenizedClip], list[Callable[[], None]]]:
        """The clips, and calls after which they have all their arrays."""
        clips: list[TokenizedClip] = []
        pending: list[Callable[[], None]] = []
        for batch in batches:
            clips += self._tokenize_batch(batch, split, clock, pending)
        return clips, pending

    def _tokenize_batch(self, batch: list[Clip], split: str, clock: Clock, pending: list[Callable[[], None]]) -> list[TokenizedClip]:
        made = [TokenizedClip(clip_key(clip.row), clip_meta(clip)) for clip in batch]

        def encode(view: str, tokenizer: Tokenizer, clips: list[Clip], into: list[TokenizedClip]) -> None:
            step = f"{view}:{tokenizer.name}"
            if isinstance(tokenizer, AheadTokenizer):
                begun = self._on_device(clock, step, partial(tokenizer.begin, clips))
                pending.append(lambda: _put(view, self._on_device(clock, step, begun), into))
                return
            with clock.step(step):
                arrays = tokenizer.encode(clips)
            _put(view, arrays, into)

        for view, tokenizer in self._tokenizers.items():
            encode(view, tokenizer, batch, made)
        with clock.step("simulate"):
            variants = [self._simulator.variants(clip, split) for clip in batch]
        for view in self._simulator.views:
            having = [i for i, its in enumerate(variants) if view in its]
            clips = [variants[i][view] for i in having]
            encode(view, self._tokenizers[base_view(view)], clips, [made[i] for i in having])
        return made

    def _on_device(self, clock: Clock, step: str, work: Callable[[], ResultT]) -> ResultT:
        """Counts what starting on a device and waiting for it take; what units that overlap share, once."""
        begin = time.perf_counter()
        result = work()
        clock.add(step, self._device_time.since(begin))
        return result


def _put(view: str, arrays: Sequence[np.ndarray | None], into: Sequence[TokenizedClip]) -> None:
    """Writes the arrays of one view into the clips that they are of."""
    for clip, array in zip(into, arrays, strict=True):
        if array is not None:
            clip.views[view] = array


def clip_meta(clip: Clip) -> dict[str, object]:
    """KEY.json of a clip: what is known of it; `custom` where the manifest had further keys."""
    row = clip.row
    known = {key: value for key in _META_KEYS if (value := getattr(row, key)) is not None}
    custom = {"custom": row.custom} if row.custom else {}
    return {"id": row.id, "kind": row.kind, "seconds": len(clip.samples) / SAMPLE_RATE, **known, **custom}
