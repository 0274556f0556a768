"""A recording as a file on this machine, wherever its row says that it lies.

    /corpus/a.flac                              a file: as it is
    s3://bucket/a.flac  https://host/a.flac     fetched into a temporary file (storage.py)
    /corpus/000.tar#1536+20480/a.flac           20480 bytes from byte 1536 of a tar (a WebDataset of recordings), likewise

Owns those names. A file that is not there is BadAudio; a network that fails is an OSError, so that no clip is lost to it.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from uniaudio.tokenize_farm.audio import BadAudio
from uniaudio.tokenize_farm.manifest import is_address
from uniaudio.tokenize_farm.storage import Store, split_address

MAX_BYTES = 4 * 2**30  # no single recording is larger: ten hours of stereo wav at 48 kHz are 6.9 GB, of flac half of that
_MEMBER = re.compile(r"^(?P<tar>.+\.tar)#(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>[^/]+)$", re.DOTALL)
_BLOCK = 1 << 20


def member_name(tar: str, offset: int, size: int, name: str) -> str:
    """How a row names `size` bytes at `offset` of a tar, `name` being the member's file name."""
    return f"{tar}#{offset}+{size}/{PurePosixPath(name).name}"


@contextmanager
def local_copy(name: str) -> Iterator[Path]:
    """A path that can be read while the block runs.

    Raises:
        BadAudio: `missing`, or larger than MAX_BYTES.
        OSError: the store cannot be reached, or this machine's disk is full.
    """
    member = _MEMBER.match(name)
    if member is None and not is_address(name):
        yield Path(name)
        return
    suffix = PurePosixPath(member["name"] if member else name.split("?")[0]).suffix[:10]
    handle, path = tempfile.mkstemp(prefix="uniaudio-", suffix=suffix)
    os.close(handle)
    try:
        if member:
            _copy_member(Path(member["tar"]), int(member["offset"]), int(member["size"]), Path(path))
        else:
            _download(name, Path(path))
        yield Path(path)
    finally:
        os.unlink(path)


def _copy_member(tar: Path, offset: int, size: int, target: Path) -> None:
    if size > MAX_BYTES:
        raise BadAudio("too_long", f"{tar}: a member of {size} bytes; at most {MAX_BYTES}")
    try:
        source = tar.open("rb")
    except OSError as error:
        raise BadAudio("missing", f"no tar {tar}") from error
    with source, target.open("wb") as out:
        source.seek(offset)
        while size and (block := source.read(min(size, _BLOCK))):
            out.write(block)
            size -= len(block)
    if size:
        raise BadAudio("truncated", f"{tar} ends inside the member at byte {offset}")


def _download(address: str, target: Path) -> None:
    try:
        store, name = split_address(address)
    except ValueError as error:
        raise BadAudio("missing", str(error)) from error
    try:
        Store(store).download(name, target, max_bytes=MAX_BYTES)
    except FileNotFoundError as error:
        raise BadAudio("missing", f"no object {address}") from error
    except ValueError as error:
        raise BadAudio("too_long", str(error)) from error
