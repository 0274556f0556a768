"""Unpacking .deb and zip archives without root and without trusting their member names.

Owns: the ar and tar formats of a .deb, the pk3 (zip) files games put inside, the rule that no member leaves the target folder, and a limit
on unpacked bytes. Links, devices and modes are ignored: only regular files come out.
"""

import io
import lzma
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from uniaudio.errors import UserError

MAX_UNPACKED_BYTES = 2 << 30  # of one archive
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


def unpack_deb(archive: Path, target: Path, wanted: Callable[[str], bool]) -> int:
    """Writes the regular files of a .deb whose path satisfies `wanted` below `target`; pk3 files are unpacked into a folder of their name.

    Returns the number of files. Raises UserError for what is no .deb, a member name that would leave `target`, and too many bytes
    (MAX_UNPACKED_BYTES).
    """
    count, budget = 0, MAX_UNPACKED_BYTES
    try:
        with _data_stream(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                path = _safe_path(archive, target, member.name)
                if not member.isfile() or not wanted(path.relative_to(target).as_posix()):
                    continue
                source = tar.extractfile(member)
                if source is None:
                    continue
                budget = _copy(archive, source, path, budget)
                count += 1
                if path.suffix == ".pk3":
                    count += unpack_zip(path, path.with_suffix(".pk3.d"), wanted)
    except (tarfile.TarError, lzma.LZMAError, EOFError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"{archive} is damaged", seen=str(error), remedy="delete it, and fetch it again") from error
    return count


def unpack_zip(archive: Path, target: Path, wanted: Callable[[str], bool]) -> int:
    """The same for a zip file."""
    count, budget = 0, MAX_UNPACKED_BYTES
    try:
        with zipfile.ZipFile(archive) as package:
            for member in package.infolist():
                path = _safe_path(archive, target, member.filename)
                if member.is_dir() or not wanted(path.relative_to(target).as_posix()):
                    continue
                with package.open(member) as source:
                    budget = _copy(archive, source, path, budget)
                count += 1
    except (zipfile.BadZipFile, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"{archive} is damaged", seen=str(error), remedy="delete it, and fetch it again") from error
    return count


def _safe_path(archive: Path, target: Path, name: str) -> Path:
    """Where a member goes; UserError where that is outside `target`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UserError(f"{archive} holds a member that leaves its folder", seen=name, remedy="do not use this archive")
    return target.joinpath(*path.parts)


def _copy(archive: Path, source: IO[bytes], path: Path, budget: int) -> int:
    """Writes one member; returns the bytes still allowed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        while block := source.read(1 << 20):
            budget -= len(block)
            if budget < 0:
                raise UserError(f"{archive} unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB", remedy="do not use this archive")
            out.write(block)
    return budget


@contextmanager
def _data_stream(archive: Path) -> Iterator[BinaryIO]:
    """The uncompressed data.tar of a .deb, as a stream."""
    with archive.open("rb") as handle:
        name, size = _find_data(archive, handle)
        section = io.BufferedReader(_Section(handle, size))
        if name in ("data.tar.xz", "data.tar.lzma"):
            with lzma.open(section) as stream:
                yield stream  # type: ignore[misc]
        elif name == "data.tar":
            yield section
        else:  # gz, bz2, zst: dpkg-deb knows them all
            yield from _dpkg_stream(archive, name)


def _dpkg_stream(archive: Path, name: str) -> Iterator[BinaryIO]:
    program = shutil.which("dpkg-deb")
    if program is None:
        raise UserError(f"{archive} holds {name}", allowed="data.tar, data.tar.xz, or dpkg-deb on this machine", remedy="install dpkg")
    with subprocess.Popen([program, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout  # type: ignore[misc]
        while process.stdout.read(1 << 20):
            pass
    if process.returncode:
        raise UserError(f"{archive} is damaged", seen=f"dpkg-deb exit code {process.returncode}", remedy="delete it, and fetch it again")


def _find_data(archive: Path, handle: BinaryIO) -> tuple[str, int]:
    """Leaves `handle` at the data member of the ar archive; returns its name and size."""
    if handle.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise UserError(f"{archive} is no Debian package", remedy="delete it, and fetch it again")
    while len(header := handle.read(_AR_HEADER)) == _AR_HEADER:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = header[48:58].decode("ascii", "replace").strip()
        if not re.fullmatch(r"\d+", size):
            break
        if name.startswith("data.tar"):
            return name, int(size)
        handle.seek(int(size) + int(size) % 2, io.SEEK_CUR)
    raise UserError(f"{archive} is damaged", seen="no data.tar in it", remedy="delete it, and fetch it again")


class _Section(io.RawIOBase):
    """The next `size` bytes of a file, as a file."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        self._handle, self._left = handle, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._handle.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
