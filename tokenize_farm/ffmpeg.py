"""Recordings that libsndfile does not read (AAC in m4a and mp4, Opus in webm), decoded by FFmpeg's libraries in the package av.

Owns that one way in; the window, the reasons and the mixing are audio.py's. Nothing is fetched: FFmpeg sees a local file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.errors import MissingDependency
from uniaudio.tokenize_farm.audio import RATES, BadAudio, Wanted, to_mono, window

_SEEK_BEFORE = 1.0  # seconds decoded before the window, so that the decoder has settled


def read_ffmpeg(path: Path, wanted: Wanted) -> tuple[Iterator[np.ndarray], int]:
    """Mono blocks (S,) float32 of the window, and their rate.

    Raises:
        BadAudio: no audio in it, a rate outside RATES, a window beyond its end.
        MissingDependency: the package av.
    """
    with _opened(path) as (container, stream):
        rate, seconds = int(stream.rate), _seconds(container, stream)
    start, count = window(path, round(seconds * rate), rate, wanted)
    return _decoded(path, start, count, rate, wanted), rate


def ffmpeg_seconds(path: Path) -> float:
    """Length in seconds, from its header. Raises BadAudio where it cannot be told."""
    with _opened(path) as (container, stream):
        return _seconds(container, stream)


def _decoded(path: Path, start: int, count: int, rate: int, wanted: Wanted) -> Iterator[np.ndarray]:
    av = _av()
    left = count
    with _opened(path) as (container, stream):
        converter = av.AudioResampler(format="fltp", rate=rate)
        try:
            if wanted.offset > _SEEK_BEFORE:
                container.seek(int((wanted.offset - _SEEK_BEFORE) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                for whole in converter.resample(frame):
                    begin = round(float(whole.pts * whole.time_base) * rate) if whole.pts is not None else start
                    block = whole.to_ndarray().T[max(0, start + count - left - begin) :][:left]
                    if len(block):
                        left -= len(block)
                        yield to_mono(np.ascontiguousarray(block), wanted.channel, path)
                if not left:
                    return
        except av.FFmpegError as error:
            raise BadAudio("truncated", f"{path}: {error.strerror}") from error
    if left > rate // 10:  # the header of a lossy format may claim some frames more than there are
        raise BadAudio("truncated", f"{path}: its last {left} samples cannot be read")


class _opened:
    """A context: the container and its first audio stream. BadAudio where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[Any, Any]:
        av = _av()
        try:
            self._container = av.open(str(self._path), metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise BadAudio("not_audio", f"{self._path} is in no known audio format") from error
        stream = next(iter(self._container.streams.audio), None)
        if stream is None or not stream.rate or not RATES[0] <= stream.rate <= RATES[1]:
            self._container.close()
            raise BadAudio("not_audio", f"{self._path} has no audio of {RATES[0]} to {RATES[1]} samples/s")
        return self._container, stream

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else 0.0


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependency("av", needed_for="reading m4a, mp4, aac and webm files", extra="farm") from error
    av.logging.set_level(av.logging.PANIC)
    return av
