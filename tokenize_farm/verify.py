"""Reads published shards back byte by byte and says what is wrong with each.

Checks the hashes of the sidecar, then, independently of the index, walks the tar and compares every member with it.
"""

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.index import ShardIndex, ShardPaths, read_index
from uniaudio.tokenize_farm.schema import KINDS, VIEWS, base_view, valid_key
from uniaudio.tokenize_farm.shard_writer import sha256_of


def verify_shard(paths: ShardPaths) -> list[str]:
    """Faults of one published shard, each as one line; empty where it is whole."""
    try:
        sidecar = paths.read_sidecar()
        index = read_index(paths.index)
    except UserError as error:
        return [str(error)]
    faults = []
    for what, path in (("tar", paths.tar), ("index", paths.index)):
        seen = sha256_of(path)
        if seen != sidecar.get(f"{what}_sha256"):
            faults.append(f"{path.name}: sha256 {seen[:12]}... is not the sidecar's {str(sidecar.get(f'{what}_sha256'))[:12]}...")
    if sidecar.get("clips") != len(index):
        faults.append(f"{paths.sidecar.name}: counts {sidecar.get('clips')} clips, the index {len(index)}")
    return faults + _compare_members(paths.tar, index)


def _compare_members(tar: Path, index: ShardIndex) -> list[str]:
    """Walks the tar and checks names, kinds of member, array headers and places against the index."""
    expected = _expected_members(index)
    faults, seen = [], 0
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                name = member.name
                if not member.isfile() or not valid_key(name.split(".", 1)[0]) or name not in expected:
                    faults.append(f"{tar.name}: unexpected member {name!r}")
                    continue
                seen += 1
                handle = archive.extractfile(member)
                fault = _member_fault(name, handle.read() if handle else b"", member.offset_data, expected[name])
                if fault:
                    faults.append(f"{tar.name}: {name}: {fault}")
    except (tarfile.TarError, OSError, EOFError) as error:
        faults.append(f"{tar.name}: not a readable tar: {error}")
    if seen != len(expected):
        faults.append(f"{tar.name}: holds {seen} of the index's {len(expected)} members")
    return faults


def _expected_members(index: ShardIndex) -> dict[str, tuple[int, int, str | None, tuple[int, ...]]]:
    """Member name -> (byte of its payload, bytes of payload, view or None for JSON, shape)."""
    members: dict[str, tuple[int, int, str | None, tuple[int, ...]]] = {}
    for i, key in enumerate(index.keys.tolist()):
        begin, length = (int(n) for n in index.json_spans[i])
        members[f"{key}.json"] = (begin, length, None, (int(index.kinds[i]),))
        for v, view in enumerate(index.views.tolist()):
            if index.offsets[i, v] < 0:
                continue
            dtype, dimensions = VIEWS[base_view(view)]
            shape = tuple(int(n) for n in index.shapes[i, v, :dimensions])
            members[f"{key}.{view}.npy"] = (int(index.offsets[i, v]), int(np.prod(shape)) * np.dtype(dtype).itemsize, view, shape)
    return members


def _member_fault(name: str, data: bytes, begin: int, expected: tuple[int, int, str | None, tuple[int, ...]]) -> str | None:
    offset, length, view, shape = expected
    if offset + length != begin + len(data):
        return f"ends at byte {begin + len(data)}, the index says {offset + length}"
    try:
        if view is None:
            meta = json.loads(data)
            return None if KINDS.index(meta["kind"]) == shape[0] else f"kind {meta['kind']!r}, the index says {KINDS[shape[0]]!r}"
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, KeyError, TypeError, EOFError) as error:
        return f"cannot be read: {error}"
    dtype, _ = VIEWS[base_view(view)]
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        return f"is {array.dtype} {array.shape}, the index says {dtype} {shape}"
    return None
