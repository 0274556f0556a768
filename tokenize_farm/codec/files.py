"""Files of the codec's command line: recordings in, codes as .npy in between, recordings out."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from uniaudio.atomic import publish_file
from uniaudio.errors import PartlyDone, UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.audio import BadAudio, load_audio

log = get_logger(__name__)
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".g722")


def pairs(source: Path, out: Path, suffixes: tuple[str, ...], target_suffix: str) -> Iterator[tuple[Path, Path]]:
    """(file, its target) for one file, or for all below a folder; folders inside it are kept, stems too.

    Raises:
        UserError: nothing there to work on, or two files that would be written to one target.
    """
    if source.is_file():
        found, root = [source], source.parent
    else:
        found, root = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes), source
    if not found:
        raise UserError("nothing to read there", seen=source, allowed=f"a file, or a folder with {', '.join(suffixes)}")
    targets: dict[Path, Path] = {}
    for path in found:
        target = (out / path.relative_to(root)).with_suffix(target_suffix)
        if target in targets:
            raise UserError("two files of one stem", seen=f"{targets[target]} and {path}", remedy="rename one of them")
        targets[target] = path
    for target, path in targets.items():
        yield path, target


def each(found: Iterable[tuple[Path, Path]], work: Callable[[Path, Path], str]) -> Iterator[str]:
    """What `work(file, target)` says of each file. Of several files a bad one is passed over, and told of at the end.

    Raises:
        UserError: the one file, or none of several, can be used.
        PartlyDone: when all others are done, some of several could not be used.
    """
    listed = list(found)
    bad: list[str] = []
    for path, target in listed:
        try:
            yield work(path, target)
        except UserError as error:
            if len(listed) == 1:
                raise
            log.error("%s", error)
            bad.append(str(path))
    if not bad:
        return
    seen = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
    if len(bad) == len(listed):
        raise UserError(f"none of {len(listed)} files could be used", seen=seen)
    remedy = "go on with the others, or correct these and give the command again (exit code 3)"
    raise PartlyDone(f"{len(bad)} of {len(listed)} files could not be used; the others are written", seen=seen, remedy=remedy)


def read_audio(path: Path) -> np.ndarray:
    """Samples (S,) float32 at 16 kHz; a file that cannot be used is a UserError that names it."""
    try:
        return load_audio(path)
    except BadAudio as error:
        raise UserError("recording cannot be used", seen=error, remedy="leave it out") from error


def write_codes(path: Path, codes_TQ: np.ndarray) -> None:
    """Writes codes (T, Q) uint16 atomically."""
    with publish_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, codes_TQ, allow_pickle=False)


def read_codes(path: Path) -> np.ndarray:
    """Codes (T, Q) of unsigned integers.

    Raises:
        UserError: not such an array.
    """
    try:
        codes = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError("not a file of codes", seen=path, remedy="write it with uniaudio codec encode") from error
    if codes.ndim != 2 or codes.dtype.kind not in "ui":
        raise UserError("codes must be (frames, levels) integers", seen=f"{path}: {codes.shape} {codes.dtype}")
    return codes
