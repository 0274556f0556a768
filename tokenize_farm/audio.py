"""Reading and writing recordings: any format, rate and channels in, float32 mono at one rate out.

Owns decoding (libsndfile: wav, flac, ogg, opus, mp3; G.722; ffmpeg.py: m4a and webm), mixing to mono, resampling and the list of reasons
to refuse a file. Knows nothing of manifests or models. At its border: samples (S,) float32 in about [-1, 1].

Files are read by blocks, so memory is bounded by what is asked for (MAX_SECONDS at most), never by what a header claims.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import soundfile
import soxr

from uniaudio.atomic import publish_file
from uniaudio.errors import MissingDependency
from uniaudio.tokenize_farm.containers import cut_off

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.02  # one codec frame
MAX_SECONDS = 1_800.0
RATES = (1_000, 768_000)
FFMPEG_SUFFIXES = (".m4a", ".m4b", ".mp4", ".aac", ".mka", ".webm")
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".g722", ".aiff", ".au", *FFMPEG_SUFFIXES)
REASONS = (
    *("missing", "empty", "not_audio", "truncated", "nan", "too_short", "too_long", "silent"),  # of the recording
    *("noisy", "poor", "language", "no_speech"),  # of the farm's filters
    "poison",  # it killed every worker that touched it
)

_BLOCK_VALUES = 1 << 18  # samples x channels decoded at once
_SILENCE = 1 / 32_768  # one step of 16-bit PCM
_END_TOLERANCE = 0.05  # seconds by which a manifest's rounded duration may pass the end of the file


@dataclass(frozen=True)
class Wanted:
    """The part of a recording that is asked for; seconds."""

    offset: float
    duration: float | None
    channel: int | None
    sample_rate: int
    max_seconds: float


class BadAudio(Exception):
    """A recording that cannot be used. `reason` is one of REASONS, `detail` says what was seen, in words."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; allowed: {', '.join(REASONS)}")
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[type["BadAudio"], tuple[str, str]]:
        """Crosses process borders whole."""
        return (BadAudio, (self.reason, self.detail))


def load_audio(
    path: str | Path,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
    sample_rate: int = SAMPLE_RATE,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Seconds `offset` to `offset + duration` (None: to the end) of a recording, as float32 (S,) mono at `sample_rate`.

    Channels are averaged unless `channel` names one; resampling is soxr HQ. Raises BadAudio for a file or a part of it that cannot be
    used, ValueError for a negative offset or a duration that is not positive.
    """
    path = Path(path)
    if not (isfinite(offset) and offset >= 0) or (duration is not None and not (isfinite(duration) and duration > 0)):
        raise ValueError(f"offset must be >= 0 and duration > 0; seen offset {offset}, duration {duration}")
    if duration is not None and duration > max_seconds:
        raise BadAudio("too_long", f"{duration:g} s asked of {path}; at most {max_seconds:g} s")
    _check_readable(path)
    wanted = Wanted(offset, duration, channel, sample_rate, max_seconds)
    samples = _resample(*_reader(path)(path, wanted), sample_rate)
    least, most = samples.min(initial=0.0), samples.max(initial=0.0)  # either is NaN or infinite where a sample is
    if not (isfinite(least) and isfinite(most)):
        raise BadAudio("nan", f"{path} holds NaN or infinite samples")
    if len(samples) < MIN_SECONDS * sample_rate:
        raise BadAudio("too_short", f"{path}: {len(samples) / sample_rate:.4f} s; at least {MIN_SECONDS} s")
    if max(-least, most) < _SILENCE:
        raise BadAudio("silent", f"{path}: {_why_silent(path, offset, duration)}")
    return samples


def _why_silent(path: Path, offset: float, duration: float | None) -> str:
    """A mean of channels that is silent: are they silent themselves?"""
    if path.suffix.lower() != ".g722":
        with _open(path) as file:
            file.seek(round(offset * file.samplerate))
            left = file.frames if duration is None else round(duration * file.samplerate)
            for block in file.blocks(_BLOCK_VALUES // file.channels, frames=left, dtype="float32", always_2d=True):
                if np.abs(block).max(initial=0) >= _SILENCE:
                    return f"its {file.channels} channels cancel each other out (opposite phase): save one of them as a mono file"
    return "no sample above one step of 16-bit PCM"


def save_wav(path: str | Path, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes (S,) float samples as a 16-bit PCM wav, atomically, clipped to [-1, 1]. ValueError for another shape, NaN or infinity."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"save_wav needs finite samples of one dimension; seen shape {samples.shape}")
    pcm = np.clip(np.round(samples.astype(np.float64) * 32_768), -32_768, 32_767).astype(np.int16)
    with publish_file(Path(path)) as temporary:
        soundfile.write(temporary, pcm, sample_rate, format="WAV", subtype="PCM_16")


def audio_seconds(path: str | Path) -> float:
    """Length of a whole recording in seconds, from its header (G.722: from its size). Raises BadAudio where it cannot be told."""
    path = Path(path)
    _check_readable(path)
    reader = _reader(path)
    if reader is _read_g722:
        return path.stat().st_size * 2 / SAMPLE_RATE
    if reader is not _read_soundfile:
        from uniaudio.tokenize_farm.ffmpeg import ffmpeg_seconds

        return ffmpeg_seconds(path)
    with _open(path) as file:
        return file.frames / file.samplerate


def _check_readable(path: Path) -> None:
    try:
        if not path.is_file():
            raise BadAudio("missing", f"no file {path}")
        if path.stat().st_size == 0:
            raise BadAudio("empty", f"{path} has 0 bytes")
        with path.open("rb"):
            pass
    except OSError as error:
        raise BadAudio("missing", f"{path} cannot be read: {error.strerror}") from error


def _open(path: Path) -> soundfile.SoundFile:
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless format such as .raw
        missing = cut_off(path)
        if missing:
            raise BadAudio("truncated", f"{path}: {missing}") from error
        raise BadAudio("not_audio", f"{path} is in no known audio format") from error
    if not RATES[0] <= file.samplerate <= RATES[1]:
        file.close()
        raise BadAudio("not_audio", f"{path} claims {file.samplerate} samples/s; allowed: {RATES[0]} to {RATES[1]}")
    return file


def _reader(path: Path) -> Callable[[Path, Wanted], tuple[Iterator[np.ndarray], int]]:
    """What reads this file: each gives mono blocks and their rate."""
    suffix = path.suffix.lower()
    if suffix == ".g722":
        return _read_g722
    with path.open("rb") as handle:
        is_mp4 = handle.read(12)[4:8] == b"ftyp"
    if is_mp4 or suffix in FFMPEG_SUFFIXES:
        from uniaudio.tokenize_farm.ffmpeg import read_ffmpeg

        return read_ffmpeg
    return _read_soundfile


def _read_soundfile(path: Path, wanted: Wanted) -> tuple[Iterator[np.ndarray], int]:
    file = _open(path)
    try:
        missing = cut_off(path)
        if missing:
            raise BadAudio("truncated", f"{path}: {missing}")
        if file.frames == 0:
            raise BadAudio("empty", f"{path} has no samples")
        start, count = window(path, file.frames, file.samplerate, wanted)
    except BadAudio:
        file.close()
        raise
    return _blocks(file, path, start, count, wanted.channel), file.samplerate


def window(path: Path, frames: int, rate: int, wanted: Wanted) -> tuple[int, int]:
    """First frame and number of frames to read; BadAudio where the file ends before."""
    start = round(wanted.offset * rate)
    length = frames - start if wanted.duration is None else round(wanted.duration * rate)
    if start >= frames or start + length > frames + _END_TOLERANCE * rate:
        asked = f"{wanted.offset:g} s to {wanted.offset + (wanted.duration or 0):g} s"
        raise BadAudio("truncated", f"{path} ends at {frames / rate:.3f} s; asked for {asked}")
    count = min(length, frames - start)
    if count > wanted.max_seconds * rate:
        remedy = "give the row an offset and a duration"
        raise BadAudio("too_long", f"{path}: {count / rate:.0f} s; at most {wanted.max_seconds:g} s ({remedy})")
    return start, count


def to_mono(block_SC: np.ndarray, channel: int | None, path: Path) -> np.ndarray:
    """(S, channels) -> (S,) float32: one channel, or their mean."""
    if channel is None and block_SC.shape[1] > 1:
        return block_SC.mean(axis=1, dtype=np.float32)
    channel = channel or 0
    if channel >= block_SC.shape[1]:
        raise BadAudio("missing", f"{path} has {block_SC.shape[1]} channels; asked for number {channel} (from 0)")
    return block_SC[:, channel]


def _blocks(file: soundfile.SoundFile, path: Path, start: int, count: int, channel: int | None) -> Iterator[np.ndarray]:
    """Mono blocks of `count` frames from `start`; BadAudio where the decoder stops before. Closes the file."""
    with file:
        try:
            if start:
                file.seek(start)
            while count:
                block = file.read(min(count, max(1, _BLOCK_VALUES // file.channels)), dtype="float32", always_2d=True)
                if len(block) == 0:
                    raise BadAudio("truncated", f"{path}: its last {count} samples cannot be read")
                count -= len(block)
                yield to_mono(block, channel, path)
        except soundfile.LibsndfileError as error:
            raise BadAudio("truncated", f"{path}: {error.error_string}") from error


def _resample(blocks: Iterator[np.ndarray], rate_in: int, rate_out: int) -> np.ndarray:
    if rate_in == rate_out:
        parts = list(blocks)
        return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
    stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32")
    parts = [stream.resample_chunk(block) for block in blocks]
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(parts)


def _read_g722(path: Path, wanted: Wanted) -> tuple[Iterator[np.ndarray], int]:
    """64 kbit/s G.722, two samples a byte at 16 kHz. Its state runs from the start, so what lies before `offset` is decoded and let go."""
    try:
        from G722 import G722
    except ModuleNotFoundError as error:
        raise MissingDependency("G722", needed_for="reading .g722 files", extra="farm") from error
    start, count = window(path, path.stat().st_size * 2, SAMPLE_RATE, wanted)

    def blocks() -> Iterator[np.ndarray]:
        decoder = G722(SAMPLE_RATE, 64_000)
        position = 0
        with path.open("rb") as handle:
            while position < start + count:
                block = np.asarray(decoder.decode(handle.read(_BLOCK_VALUES // 2)), dtype=np.float32) / 32_768
                if len(block) == 0:
                    raise BadAudio("truncated", f"{path} ended while it was read")
                yield block[max(0, start - position) : start + count - position]
                position += len(block)

    return blocks(), SAMPLE_RATE
