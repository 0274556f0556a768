"""Writes one shard: tar, index, sidecar, each published whole, the sidecar last.

The bytes are a pure function of the arguments: members in clip order (KEY.json, then KEY.VIEW.npy in the order of the view
names), mtime 0, no owner, no clock and no host name anywhere. Nothing is pickled. Owns the layout of the tar; the index's is
in index.py, the format's in schema.py.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from uniaudio.atomic import publish_file
from uniaudio.tokenize_farm.index import ShardIndex, ShardPaths, index_bytes
from uniaudio.tokenize_farm.schema import KINDS, SCHEMA_VERSION, TokenizedClip, base_view

FRAME_VIEW = "audio"  # its rows are what the sidecar counts as frames


class _TarLayout:
    """Appends members to a tar, remembers where their bytes begin, and hashes what it writes.

    The bytes are those of the standard library's tarfile (format PAX), which takes ten times as long for members as small as these.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Writes one member; returns the byte of the tar where `data` begins."""
        self._write(_tar_header(name, len(data)))
        begin = self.bytes
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return begin

    def close(self) -> str:
        """Ends the tar and returns its sha256."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.bytes % tarfile.RECORDSIZE))
        self._file.close()
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)


def _tar_header(name: str, size: int) -> bytes:
    """Mode 0444, no owner, mtime 0. A plain ustar header of 512 bytes, and an extended one only for a name beyond 100 characters."""
    if len(name) > 100 or not name.isascii() or size >= 8**11:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = size, 0, 0o444
        return member.tobuf(tarfile.PAX_FORMAT)
    template, checksum = _tar_template()
    words, digits = name.encode("ascii"), b"%011o" % size
    checksum += sum(words) + sum(digits)
    return b"%s%s%s%06o\0%s" % (words.ljust(100, b"\0"), template[100:124] + digits, template[135:148], checksum, template[155:])


@cache
def _tar_template() -> tuple[bytes, int]:
    """The header of a member without name and size, and the sum of its bytes (checksum field as spaces) without those two."""
    member = tarfile.TarInfo("")
    member.mtime, member.mode = 0, 0o444
    header = member.tobuf(tarfile.PAX_FORMAT)
    return header, sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) - sum(b"%011o" % 0)


def npy_bytes(array: np.ndarray) -> tuple[bytes, int]:
    """`array` as a .npy file, and the length of the header before its raw data."""
    header = _npy_header(array.dtype.str, array.shape)
    return header + array.tobytes(), len(header)


@lru_cache(maxsize=1 << 14)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def json_bytes(value: object) -> bytes:
    """Canonical JSON: sorted keys, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _write_tar(path: Path, clips: Sequence[TokenizedClip], views: list[str]) -> tuple[ShardIndex, str]:
    """The tar; its index and its sha256."""
    offsets = np.full((len(clips), len(views)), -1, dtype=np.int64)
    shapes = np.zeros((len(clips), len(views), 2), dtype=np.int32)
    json_spans = np.zeros((len(clips), 2), dtype=np.int64)
    layout = _TarLayout(path)
    for i, clip in enumerate(clips):
        meta = json_bytes(clip.meta)
        json_spans[i] = layout.add(f"{clip.key}.json", meta), len(meta)
        for v, view in enumerate(views):
            if view not in clip.views:
                continue
            data, header = npy_bytes(clip.views[view])
            offsets[i, v] = layout.add(f"{clip.key}.{view}.npy", data) + header
            rows, *columns = clip.views[view].shape
            shapes[i, v] = rows, columns[0] if columns else 1
    sha256 = layout.close()
    index = ShardIndex(
        keys=_unicode([clip.key for clip in clips]),
        speakers=_unicode([str(clip.meta.get("speaker") or "") for clip in clips]),
        kinds=np.array([KINDS.index(str(clip.meta["kind"])) for clip in clips], dtype=np.uint8),
        languages=_unicode([str(clip.meta.get("language") or "") for clip in clips]),
        seconds=np.array([clip.meta["seconds"] for clip in clips], dtype=np.float32),
        views=_unicode(views),
        offsets=offsets,
        shapes=shapes,
        json_spans=json_spans,
    )
    return index, sha256


def _unicode(texts: list[str]) -> np.ndarray:
    return np.array(texts, dtype=f"<U{max([1, *map(len, texts)])}")


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_shard(
    directory: str | Path,
    split: str,
    unit: int,
    clips: Sequence[TokenizedClip],
    *,
    tokenizers: Mapping[str, str],
    dropped: Mapping[str, Sequence[str]] | None = None,
    extra: Mapping[str, object] | None = None,
) -> dict:
    """Publishes the shard of one work unit and returns its sidecar.

    Args:
        directory: folder of shards; made where missing.
        clips: in order; may be empty (every row of the unit was dropped): the unit then still counts as done.
        tokenizers: view -> `name/version` of what made it.
        dropped: reason -> ids of the manifest rows left out.
        extra: further sidecar fields of JSON types.

    Raises:
        ValueError: a clip that breaks the schema, a key given twice, an `extra` field that would hide one of the sidecar's own.
        OSError: a full disk, say. Nothing is published then, and files of that name published before stay whole.
    """
    keys = [clip.validate().key for clip in clips]
    if len(set(keys)) != len(keys):
        raise ValueError(f"key given twice: {sorted({key for key in keys if keys.count(key) > 1})}")
    views = sorted({view for clip in clips for view in clip.views}, key=lambda view: (base_view(view) != FRAME_VIEW, view))
    paths = ShardPaths(Path(directory), split, unit)
    # All three are on the disk before the first is renamed; they are renamed innermost first, so the sidecar comes last.
    with publish_file(paths.sidecar) as sidecar_file, publish_file(paths.tar) as tar_file, publish_file(paths.index) as index_file:
        index, tar_sha256 = _write_tar(tar_file, clips, views)
        packed = index_bytes(index)
        index_file.write_bytes(packed)
        sidecar = _sidecar(paths.name, index, dict(tokenizers), {reason: list(ids) for reason, ids in sorted((dropped or {}).items())})
        sidecar |= {"tar_bytes": tar_file.stat().st_size, "tar_sha256": tar_sha256, "index_sha256": hashlib.sha256(packed).hexdigest()}
        if clash := sorted(set(extra or {}) & set(sidecar)):
            raise ValueError(f"extra fields would hide the sidecar's own: {clash}")
        sidecar |= extra or {}
        sidecar_file.write_text(json.dumps(sidecar, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        paths.sidecar.unlink(missing_ok=True)  # of an older shard of that name: while the other two change, it must not exist
    return sidecar


def _sidecar(name: str, index: ShardIndex, tokenizers: dict[str, str], dropped: dict[str, list[str]]) -> dict:
    by_kind = {kind: index.seconds[index.kinds == number].astype(np.float64) for number, kind in enumerate(KINDS)}
    return {
        "schema_version": SCHEMA_VERSION,
        "shard": name,
        "clips": len(index),
        "clips_by_kind": {kind: len(seconds) for kind, seconds in by_kind.items() if len(seconds)},
        "seconds": round(float(index.seconds.sum(dtype=np.float64)), 3),
        "seconds_by_kind": {kind: round(float(seconds.sum()), 3) for kind, seconds in by_kind.items() if len(seconds)},
        "frames": _rows(index, FRAME_VIEW),
        "rows_by_view": {view: _rows(index, view) for view in index.views.tolist()},
        "tokenizers": tokenizers,
        "dropped": dropped,
    }


def _rows(index: ShardIndex, view: str) -> int:
    return int(index.shapes[:, index.view_number(view), 0].sum()) if view in index.views else 0
