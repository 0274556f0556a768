"""Where rows come from: whatever `manifest` of a farm names, as JSON lines that a plan can be made of.

    rows.jsonl                          as it is: it is never held in memory
    rows.jsonl.gz  s3://bucket/rows.jsonl    unpacked or fetched first
    cuts.jsonl[.gz]                     Lhotse cuts: a row a supervision (a row a cut where it has none)
    DIR with *recordings*.jsonl[.gz]    what Lhotse's recipes write, with *supervisions*.jsonl[.gz] beside
    DIR with *.tar, or a{000..999}.tar  WebDataset of recordings: KEY.flac, KEY.json and KEY.txt beside it
    DIR                                 every audio file below it (`corpus.folder` says what names mean)

Rows are made one at a time and written to a file that is gone when the plan stands. Nothing is unpacked from tars; no recording is opened.
"""

import gzip
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.lhotse import cut_rows, is_cut, recipe_rows
from uniaudio.tokenize_farm.manifest import is_address, parse_line
from uniaudio.tokenize_farm.storage import Store, split_address
from uniaudio.tokenize_farm.webdataset import tar_rows

Row = dict[str, Any]
_MAX_MANIFEST = 64 * 2**30


@dataclass(frozen=True)
class Source:
    """JSON lines at `path`; paths in them are relative to `root`."""

    path: Path
    root: Path


@contextmanager
def open_source(manifest: str) -> Iterator[Source]:
    """The rows of `manifest`, readable while the block runs.

    Raises:
        UserError: nothing there, or of no known kind.
        OSError: an object store that stays away, or no room for the rows.
    """
    with tempfile.TemporaryDirectory(prefix="uniaudio-manifest-") as scratch:
        path = Path(manifest)
        if is_address(manifest):
            path = _fetched(manifest, Path(scratch))
        rows = _rows(path)
        if rows is None:
            yield Source(path, Path(scratch) if is_address(manifest) else path.absolute().parent)
            return
        made = Path(scratch) / "rows.jsonl"
        with made.open("w", encoding="utf-8") as handle:
            for row in rows:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        yield Source(made, (path if path.is_dir() else path.parent).absolute())


def _fetched(address: str, scratch: Path) -> Path:
    path = scratch / PurePosixPath(address).name
    try:
        store, name = split_address(address)
        Store(store).download(name, path, max_bytes=_MAX_MANIFEST)
    except (FileNotFoundError, ValueError) as error:
        raise UserError("the manifest cannot be fetched", seen=error, remedy="check its address") from error
    return path


def _rows(path: Path) -> Iterable[Row] | None:
    """The rows of what is not JSON lines of this project's form; None for what is (and for what is not there: its reader says so)."""
    if path.is_dir():
        return _folder_rows(path)
    if path.suffix == ".tar":
        return tar_rows(_expanded(path))
    if path.suffix == ".gz":
        return cut_rows(read_lines(path), path.absolute().parent) if _holds_cuts(path) else read_lines(path)
    return cut_rows(read_lines(path), path.absolute().parent) if path.is_file() and _holds_cuts(path) else None


def _holds_cuts(path: Path) -> bool:
    """Whether the first line is a cut of Lhotse's."""
    first = next(read_lines(path), None)
    return first is not None and is_cut(first)


def read_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file, packed or not. UserError (file, line, remedy) for damage."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
        number = 0
        try:
            for number, line in enumerate(handle, start=1):
                if not line.isspace():
                    yield parse_line(f"{path}:{number}", line)
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise UserError(f"{path}:{number + 1}: cannot be read on", seen=error, remedy="copy the file again") from error


def _folder_rows(folder: Path) -> Iterable[Row]:
    from uniaudio.tokenize_farm.corpus.folder import folder_rows

    if tars := sorted(folder.glob("*.tar")):
        return tar_rows(tars)
    if recordings := sorted(folder.glob("*recordings*.jsonl*")):
        return recipe_rows(recordings, folder.absolute(), read_lines)
    return folder_rows(folder.absolute())


def _expanded(path: Path) -> list[Path]:
    from braceexpand import braceexpand

    return [Path(name) for name in braceexpand(str(path))]
