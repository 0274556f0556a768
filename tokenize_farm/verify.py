"""Reads published shards, and their merged indexes, back byte by byte and says what is wrong with each.

Checks the hashes of the sidecar, then, independently of the index, walks the tar and compares every member with it: names, places, types,
and what the arrays say: codes in the range of the tokenizer that made them, as many frames as the clip's seconds have.
"""

import hashlib
import io
import json
import multiprocessing
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.index import ShardIndex, ShardPaths, read_index
from uniaudio.tokenize_farm.index_build import check_table
from uniaudio.tokenize_farm.index_table import table_path
from uniaudio.tokenize_farm.schema import KINDS, SPLITS, VIEWS, base_view, parse_shard_name, valid_key
from uniaudio.tokenize_farm.shard_writer import sha256_of

# name of a tokenizer of this project -> ids it can make, in any column of its codes (phones: in the first)
_IDS = {"codec": 1024, "encodec": 1024, "f0": 138, "midi": 138, "semantic": 65_536, "phones": 306, "aligned_phones": 306}
_EACH_20_MS = ("codec", "f0", "semantic", "hubert")  # one row each 20 ms, the last one begun
_FRAMES_A_SECOND = 50


def verify_folder(shards: Sequence[ShardPaths], processes: int = 1) -> Iterator[tuple[ShardPaths, list[str]]]:
    """Each shard with its faults, in order; several are read at once. A key that two shards hold is a fault of the later one."""
    seen: dict[int, str] = {}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("forkserver")) as pool:
        verified = pool.map(verify_shard, shards) if processes > 1 else map(verify_shard, shards)
        for paths, faults in zip(shards, verified, strict=True):
            yield paths, faults + ([] if faults else _keys_seen_before(paths, seen))


def verify_tables(directory: Path, shards: Mapping[str, bool]) -> dict[str, list[str]]:
    """`index/SPLIT.safetensors` with its faults, of the merged indexes that have some. shards: name -> whether it is whole.

    One whose shards are damaged is only looked at alone: what it should say is not known.
    """
    faults = {}
    for split in SPLITS:
        whole = all(whole for name, whole in shards.items() if parse_shard_name(name)[0] == split)
        try:
            check_table(directory, split, against_shards=whole)
        except UserError as error:
            faults[table_path("", split).as_posix()] = [str(error)]
    return faults


def _keys_seen_before(paths: ShardPaths, seen: dict[int, str]) -> list[str]:
    """Notes the shard's keys (8 bytes each) and names those that another one has."""
    faults = []
    for key in read_index(paths.index).keys.tolist():
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        if (other := seen.setdefault(digest, paths.name)) != paths.name:
            faults.append(f"{paths.name}: its clip {key!r} is in {other} too")
    return faults


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
    made_by = {view: str(name).split("/")[0] for view, name in sidecar.get("tokenizers", {}).items()}
    return faults + _compare_members(paths.tar, index, made_by)


def _compare_members(tar: Path, index: ShardIndex, made_by: dict[str, str]) -> list[str]:
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
                fault = _member_fault(name, handle.read() if handle else b"", member.offset_data, expected[name], made_by)
                if fault:
                    faults.append(f"{tar.name}: {name}: {fault}")
    except (tarfile.TarError, OSError, EOFError) as error:
        faults.append(f"{tar.name}: not a readable tar: {error}")
    if seen != len(expected):
        faults.append(f"{tar.name}: holds {seen} of the index's {len(expected)} members")
    return faults


Expected = tuple[int, int, str | None, tuple[int, ...], float]


def _expected_members(index: ShardIndex) -> dict[str, Expected]:
    """Member name -> (byte of its payload, bytes of payload, view or None for JSON, shape, seconds of the clip)."""
    members: dict[str, Expected] = {}
    for i, (key, seconds) in enumerate(zip(index.keys.tolist(), index.seconds.tolist())):
        begin, length = (int(n) for n in index.json_spans[i])
        members[f"{key}.json"] = (begin, length, None, (int(index.kinds[i]),), seconds)
        for v, view in enumerate(index.views.tolist()):
            if index.offsets[i, v] < 0:
                continue
            dtype, dimensions = VIEWS[base_view(view)]
            shape = tuple(int(n) for n in index.shapes[i, v, :dimensions])
            bytes_ = int(np.prod(shape)) * np.dtype(dtype).itemsize
            members[f"{key}.{view}.npy"] = (int(index.offsets[i, v]), bytes_, view, shape, seconds)
    return members


def _member_fault(name: str, data: bytes, begin: int, expected: Expected, made_by: dict[str, str]) -> str | None:
    offset, length, view, shape, seconds = expected
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
    return _content_fault(array, view, seconds, made_by)


def _content_fault(array: np.ndarray, view: str, seconds: float, made_by: dict[str, str]) -> str | None:
    """Codes beyond what their tokenizer makes; frames that are not the clip's length (variants of a view may be of another)."""
    tokenizer = made_by.get(base_view(view), "")
    ids = array[:, 0] if base_view(view) == "phone" else array
    if tokenizer in _IDS and int(ids.max()) >= _IDS[tokenizer]:
        return f"holds {int(ids.max())}; {tokenizer} makes 0 to {_IDS[tokenizer] - 1}"
    frames = seconds * _FRAMES_A_SECOND
    if view in made_by and tokenizer in _EACH_20_MS and abs(len(array) - frames) > 1:
        return f"has {len(array)} frames; {seconds:.2f} s have {frames:.0f}"
    return None
