"""Was an audio file cut off? libsndfile plays a cut WAV or Ogg without a word, so its container is read here.

Owns the two checks; decodes nothing. Both read a bounded part of the file. FLAC needs none: its decoder says so itself.
"""

import struct
from pathlib import Path
from typing import BinaryIO

_OGG_PAGE_LIMIT = 27 + 255 + 255 * 255
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)


def cut_off(path: Path) -> str | None:
    """What is missing at the end of a WAV or Ogg file, in words; None where nothing is, or where the container is another one."""
    with path.open("rb") as handle:
        magic = handle.read(12)
        if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
            return _cut_wav(handle, path.stat().st_size)
        if magic[:4] == b"OggS":
            return _cut_ogg(handle, path.stat().st_size)
    return None


def _cut_wav(handle: BinaryIO, size: int) -> str | None:
    """Walks the chunks: the data chunk must end inside the file. Sizes that streaming writers leave open say nothing."""
    position = 12
    while position + 8 <= size:
        handle.seek(position)
        name, length = struct.unpack("<4sI", handle.read(8))
        if name == b"data":
            missing = position + 8 + length - size
            return f"the last {missing} bytes of its samples are missing" if missing > 0 and length not in _UNKNOWN_SIZES else None
        position += 8 + length + length % 2
    return "it has no samples"


def _cut_ogg(handle: BinaryIO, size: int) -> str | None:
    """The last page must be whole. (Its end-of-stream mark proves nothing: sound recordings without it exist.)"""
    start = max(0, size - _OGG_PAGE_LIMIT)
    handle.seek(start)
    tail = handle.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return "its last page has no header"
    header = tail[page : page + 27]
    segments = tail[page + 27 : page + 27 + header[26]] if len(header) == 27 else b""
    if len(header) < 27 or len(segments) < header[26] or page + 27 + len(segments) + sum(segments) > len(tail):
        return "its last page is cut"
    return None
