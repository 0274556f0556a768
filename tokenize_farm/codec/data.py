"""Recordings for codec training: packed once into a few files, then held whole in (GPU) memory and cut at random.

Owns the pack's format, drawing segments and their augmentation; knows neither network nor losses.

    index.json      blocks in order: part, byte offset and size, samples, kind, source
    part-000.bin    Ogg Opus streams end to end, each about a minute of one source

Clips shorter than a segment are used too: the clips of a source lie end to end, and a segment may cross from one to the
next. Only rows of split `train` (or of none) are packed; held-out recordings never enter.
"""

import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from uniaudio.atomic import publish_bytes
from uniaudio.configs.codec import CodecDataConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, BadAudio, load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow

log = get_logger(__name__)
BLOCK_SAMPLES = 60 * SAMPLE_RATE
PACKED_AT_ONCE = 16  # blocks
TILT_BANDS = 9
VOICES = ("speech", "singing")  # kinds for which P.862 and STOI say something


def pack_recordings(
    rows: Iterable[ManifestRow], out: Path, *, kbps: float = 40.0, part_mib: int = 48, source_minutes: dict[str, float] | None = None
) -> dict[str, float]:
    """Packs the training rows and returns minutes by `kind/source`.

    `kbps`: of the Opus streams, 6 to 256; at 40 clean speech keeps PESQ-wb 4.55 of 4.64 (Vorbis at 45: 4.30). `source_minutes`: most
    minutes of one source, by kind (none: all of them). A recording that cannot be read is passed over with a warning.
    """
    groups: dict[tuple[str, str], list[ManifestRow]] = {}
    for row in rows:
        if row.split in (None, "train"):
            groups.setdefault((row.kind, row.source or "unknown"), []).append(row)
    if not groups:
        raise UserError("the manifest has no training rows", allowed="split train, or none", remedy="check the key `split`")
    if not 6 <= kbps <= 256:
        raise UserError("--kbps of a pack", seen=kbps, allowed="6 to 256")
    blocks: list[list] = []
    parts, minutes = [bytearray()], {}
    with ThreadPoolExecutor() as pool:
        for (kind, source), members in sorted(groups.items()):
            order = np.random.default_rng(len(members)).permutation(len(members))
            limit = (source_minutes or {}).get(kind, float("inf")) * 60
            chosen = _first_minutes(_blocks(members[i] for i in order), limit)
            total = 0
            while some := list(islice(chosen, PACKED_AT_ONCE)):
                for samples, data in zip(some, pool.map(lambda samples: _opus(samples, kbps), some)):
                    if len(parts[-1]) + len(data) > part_mib << 20:
                        parts.append(bytearray())
                    blocks.append([len(parts) - 1, len(parts[-1]), len(data), len(samples), kind, source])
                    parts[-1] += data
                    total += len(samples)
            minutes[f"{kind}/{source}"] = round(total / SAMPLE_RATE / 60, 2)
    for number, part in enumerate(parts):
        publish_bytes(out / f"part-{number:03d}.bin", bytes(part))
    publish_bytes(out / "index.json", json.dumps({"blocks": blocks, "minutes": minutes}).encode())
    return minutes


def _blocks(rows: Iterable[ManifestRow]) -> Iterator[np.ndarray]:
    """Concatenated clips, cut into blocks of at most about a minute."""
    held: list[np.ndarray] = []
    for row in rows:
        try:
            samples = load_audio(row.audio_filepath, offset=row.offset, duration=row.duration)
        except BadAudio as error:
            log.warning("left out %s: %s", row.id, error)
            continue
        held.append(samples)
        while sum(map(len, held)) >= BLOCK_SAMPLES:
            joined = np.concatenate(held)
            yield joined[:BLOCK_SAMPLES]
            held = [joined[BLOCK_SAMPLES:]]
    if held and sum(map(len, held)):
        yield np.concatenate(held)


def _first_minutes(blocks: Iterator[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """Blocks until they add up to `seconds`."""
    total = 0
    for samples in blocks:
        yield samples
        total += len(samples)
        if total >= seconds * SAMPLE_RATE:
            return


def _opus(samples: np.ndarray, kbps: float) -> bytes:
    buffer = io.BytesIO()
    peak = max(1.0, float(np.abs(samples).max()))
    level = 1 - (kbps - 6) / 250  # libsndfile: 0 is 256 kbps, 1 is 6
    soundfile.write(buffer, samples / peak, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


class PackedRecordings:
    """A pack in memory as int16, every source at every speed, and random segments of it."""

    def __init__(self, config: CodecDataConfig, segment_samples: int, device: torch.device) -> None:
        self.config, self.segment, self.device = config, segment_samples, device
        blocks = _read_pack(Path(config.pack))
        streams: list[Tensor] = []
        self.names: list[str] = []
        weights: list[float] = []
        for (kind, source), parts in blocks.items():
            minutes = sum(map(len, parts)) / SAMPLE_RATE / 60
            for speed in config.speeds:
                stream = torch.cat([_at_speed(torch.from_numpy(part).to(device), speed) for part in parts])
                if len(stream) >= segment_samples:
                    streams.append(stream)
                    self.names.append(f"{kind}/{source}/{speed:g}")
                    weights.append(minutes**config.source_power * (len(config.speeds) if speed == 1 else 1))
        if not streams:
            raise UserError("the pack holds no stream as long as a segment", seen=config.pack)
        lengths = torch.tensor([len(stream) for stream in streams], device=device)
        self.data = torch.cat(streams)
        self.starts = torch.cumsum(lengths, 0) - lengths
        self.spans = lengths - segment_samples + 1
        self.cumulative = torch.cumsum(torch.tensor(_shares(self.names, weights, config.mix), device=device, dtype=torch.float64), 0)
        self.voices = torch.tensor([name.split("/")[0] in VOICES for name in self.names], device=device)
        self.offsets = torch.arange(segment_samples, device=device)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """(batch, segment) float32, augmented, and which of them are voices: (batch,) bool.

        Uses the default generator of its device; waits for nothing.
        """
        uniform = torch.rand(2, batch, device=self.device, dtype=torch.float64)
        stream = torch.searchsorted(self.cumulative, uniform[0]).clamp_max(len(self.names) - 1)
        first = self.starts[stream] + (uniform[1] * self.spans[stream]).long()
        return self._augment(self.data[first[:, None] + self.offsets].float() / 32_768), self.voices[stream]

    def _augment(self, samples: Tensor) -> Tensor:
        config, batch = self.config, len(samples)
        second = samples.roll(1, 0) * self._decibels(batch, -15, 0)
        samples = samples + second * (torch.rand(batch, 1, device=self.device) < config.mix_probability)
        samples = torch.where(torch.rand(batch, 1, device=self.device) < config.tilt_probability, self._tilt(samples), samples)
        sign = (torch.rand(batch, 1, device=self.device) < 0.5).float() * 2 - 1
        return (samples * sign * self._decibels(batch, *config.gain_db)).clamp(-1, 1)

    def _decibels(self, batch: int, low: float, high: float) -> Tensor:
        return 10 ** (torch.empty(batch, 1, device=self.device).uniform_(low, high) / 20)

    def _tilt(self, samples: Tensor) -> Tensor:
        """A random smooth filter: other microphones and rooms than were recorded."""
        spectrum = torch.fft.rfft(samples)
        points = torch.empty(len(samples), 1, TILT_BANDS, device=self.device).uniform_(-6, 6)
        curve = torch.nn.functional.interpolate(points, size=spectrum.shape[1], mode="linear", align_corners=True)[:, 0]
        return torch.fft.irfft(spectrum * 10 ** (curve / 20), n=samples.shape[1])


def _read_pack(folder: Path) -> dict[tuple[str, str], list[np.ndarray]]:
    """Decodes every block: (kind, source) -> int16 arrays in order."""
    try:
        index = json.loads((folder / "index.json").read_text())
        parts = {number: (folder / f"part-{number:03d}.bin").read_bytes() for number in {block[0] for block in index["blocks"]}}
    except (OSError, ValueError) as error:
        raise UserError("not a whole pack of recordings", seen=error, remedy="make one: uniaudio codec pack MANIFEST --out DIR") from error

    def decode(block: list) -> np.ndarray:
        part, offset, size, samples, _, _ = block
        audio, _ = soundfile.read(io.BytesIO(parts[part][offset : offset + size]), dtype="int16")
        return audio[:samples]

    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(decode, index["blocks"]))
    groups: dict[tuple[str, str], list[np.ndarray]] = {}
    for block, audio in zip(index["blocks"], decoded):
        groups.setdefault((block[4], block[5]), []).append(audio)
    return groups


def _at_speed(samples: Tensor, speed: float) -> Tensor:
    """int16 resampled by cutting or padding its spectrum: `speed` times faster and higher."""
    if speed == 1:
        return samples
    size = round(len(samples) / speed)
    spectrum = torch.fft.rfft(samples.float())[: size // 2 + 1]
    return (torch.fft.irfft(spectrum, n=size) * (size / len(samples))).round().clamp(-32_768, 32_767).to(torch.int16)


def _shares(names: list[str], weights: list[float], mix: dict[str, float]) -> list[float]:
    """Probability of each stream: its kind's share, divided by weight inside the kind."""
    kinds = [name.split("/")[0] for name in names]
    unknown = sorted({kind for kind in kinds if kind not in mix})
    if unknown:
        raise UserError("data.mix gives no share to a kind of the pack", seen=", ".join(unknown), allowed=", ".join(mix))
    totals = {kind: sum(w for w, k in zip(weights, kinds) if k == kind) for kind in set(kinds)}
    whole = sum(mix[kind] for kind in totals)
    if whole <= 0:
        raise UserError("data.mix leaves nothing to draw", seen=mix)
    return [mix[kind] / whole * weight / totals[kind] for kind, weight in zip(kinds, weights)]
