"""Publishing files and folders whole or not at all: temporary name, fsync, rename, fsync of the parent."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniaudio.errors import UserError


def fsync_directory(path: Path) -> None:
    """Makes a rename inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def require_writable(folder: Path, option: str) -> None:
    """Makes `folder` if need be, and a file in it that goes again: before work whose result would be lost.

    Raises:
        UserError: neither can be done; `option` is what the user gave.
    """
    trial = _temporary(folder / "trial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{option}: nothing can be written there", seen=f"{folder}: {error.strerror}", remedy="another folder") from error


@contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success renames it to `path`, on any error removes it.

    The writer must have closed the file when the block ends. OSError (a full disk, say) passes through untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path` atomically."""
    with publish_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def publish_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success fsyncs its files and renames it to `path` (replacing an old one)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            retired = _temporary(path)
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
        fsync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
