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
from pathlib import Path

import numpy as np

from uniaudio.atomic import publish_file
from uniaudio.tokenize_farm.index import ShardIndex, ShardPaths, index_bytes
from uniaudio.tokenize_farm.schema import KINDS, SCHEMA_VERSION, TokenizedClip, base_view

FRAME_VIEW = "audio"  # its rows are what the sidecar counts as frames


class _TarLayout:
    """Appends members to a tar and remembers where their bytes begin."""

    def __init__(self, path: Path) -> None:
        # PAX: the plain 512-byte ustar header, and an extended one only for a name longer than 100 characters.
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `close`

    def add(self, name: str, data: bytes) -> int:
        """Writes one member; returns the byte of the tar where `data` begins."""
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = len(data), 0, 0o444
        self._tar.addfile(member, io.BytesIO(data))
        blocks = -(-len(data) // tarfile.BLOCKSIZE)
        return self._tar.offset - blocks * tarfile.BLOCKSIZE

    def close(self) -> None:
        self._tar.close()


def npy_bytes(array: np.ndarray) -> tuple[bytes, int]:
    """`array` as a .npy file, and the length of the header before its raw data."""
    buffer = io.BytesIO()
    contiguous = np.ascontiguousarray(array)
    np.lib.format.write_array(buffer, contiguous, version=(1, 0), allow_pickle=False)
    data = buffer.getvalue()
    return data, len(data) - contiguous.nbytes


def json_bytes(value: object) -> bytes:
    """Canonical JSON: sorted keys, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _write_tar(path: Path, clips: Sequence[TokenizedClip], views: list[str]) -> ShardIndex:
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
    layout.close()
    return ShardIndex(
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
        index = _write_tar(tar_file, clips, views)
        index_file.write_bytes(index_bytes(index))
        sidecar = _sidecar(paths.name, index, dict(tokenizers), {reason: list(ids) for reason, ids in sorted((dropped or {}).items())})
        sidecar |= {"tar_bytes": tar_file.stat().st_size, "tar_sha256": sha256_of(tar_file), "index_sha256": sha256_of(index_file)}
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
