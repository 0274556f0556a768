"""Shards of an object store or web server as files of this host: fetched whole before they are needed, kept while they are used.

Reading a shard in pieces of its own would be a request for every few kilobytes; a block's shards are read nearly whole anyway. So tars come
in ranges of 8 MiB, each asked for again where it fails, stalls or comes short, into a cache that all processes of the host share. What was
not used for longest goes first where the cache grows beyond its limit.

Only the process that plans fetches (`ShardFiles.prepare`): the store's client does not survive a fork, so workers read files alone.
"""

import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uniaudio.atomic import publish_file
from uniaudio.configs.data import DataConfig
from uniaudio.errors import Unavailable
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.index_table import table_path
from uniaudio.tokenize_farm.storage import Store

logger = get_logger(__name__)
_RANGE = 8 * 2**20
_ATTEMPTS = 8
_FIRST_PAUSE = 0.2  # seconds before a range is asked for again; doubled every time
_IN_USE = 120.0  # seconds since its last use for which a file is never evicted
_SMALL_FILES = ("farm.json", "index/train.safetensors", "index/valid.safetensors")


def is_remote(place: str) -> bool:
    """Whether `data.shards` names an object store or web server."""
    return "://" in place


class Remote:
    """The shards at one address, and their folder in the cache."""

    def __init__(self, address: str, data: DataConfig) -> None:
        self.address = address.rstrip("/")
        root = Path(data.cache_dir) if data.cache_dir else Path(tempfile.gettempdir()) / "uniaudio-shards"
        self.root, self.limit = root, int(data.cache_gb * 1e9)
        self.folder = root / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self.repeated = 0  # ranges asked for again
        self._lock = threading.Lock()

    def refresh(self) -> Path:
        """Fetches the merged indexes and farm.json anew; returns the folder that holds them.

        Raises:
            Unavailable: the store does not answer.
        """
        store = Store(self.address)
        for name in _SMALL_FILES:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                content = store.read(name)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                continue
            except OSError as error:
                remedy = "check the address, the credentials and the endpoint (AWS_ENDPOINT_URL)"
                raise Unavailable("data.shards cannot be reached", seen=error, remedy=remedy) from error
            with publish_file(path) as temporary:
                temporary.write_bytes(content)
        return self.folder

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """The file `name` of `size` bytes in the cache, fetched where it is not there, and then hashed.

        Raises:
            OSError: it is not in the store (FileNotFoundError), has another size or hash, or could not be read in many attempts.
        """
        path = self.folder / name
        with self._only_fetcher(path):
            if _touch(path, size):
                return path
            store = Store(self.address)
            if (seen := store.size(name)) != size:
                raise OSError(f"{self.address}/{name} has {seen} bytes; its index says {size}")
            self._make_room(size)
            digest = hashlib.sha256()
            with publish_file(path) as temporary, temporary.open("wb") as handle:
                for start in range(0, size, _RANGE):
                    content = self._range(store, name, start, min(_RANGE, size - start))
                    digest.update(content)
                    handle.write(content)
                if digest.hexdigest() != sha256:
                    raise OSError(f"{self.address}/{name} has sha256 {digest.hexdigest()}; its index says {sha256}")
        return path

    def _range(self, store: Store, name: str, start: int, length: int) -> bytes:
        for attempt in range(_ATTEMPTS):
            try:
                content = store.read_range(name, start, length)
                if len(content) == length:
                    return content
                fault = OSError(f"{self.address}/{name}: {len(content)} of {length} bytes came")
            except FileNotFoundError:
                raise
            except OSError as error:
                fault = error
            with self._lock:
                self.repeated += 1
            logger.debug("asked for again: %s", fault)
            time.sleep(_FIRST_PAUSE * 2**attempt)
        raise fault

    @contextmanager
    def _only_fetcher(self, path: Path) -> Iterator[None]:
        """One process of the host fetches a file; the others wait for it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        """Removes tars of the whole cache, longest unused first, until `size` more bytes fit; those in use stay."""
        files = []
        for path in self.root.glob("*/*.tar"):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(entry[1] for entry in files) + size
        for used, its_size, path in sorted(files):
            if total <= self.limit or used > time.time() - _IN_USE:
                break
            path.unlink(missing_ok=True)
            total -= its_size


def _touch(path: Path, size: int) -> bool:
    """Notes that a file is used; False where it is not there or has another size."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def has_split(place: str, split: str, data: DataConfig) -> bool:
    """Whether a place of `data.shards` holds shards of a split."""
    return folder_has_split(local_folder(place, data), split)


def folder_has_split(folder: Path, split: str) -> bool:
    """The same of a folder of this host."""
    return table_path(folder, split).is_file() or any(folder.glob(f"{split}-*.json"))


def local_folder(place: str, data: DataConfig) -> Path:
    """Where the small files of a place of `data.shards` (index, farm.json) lie on this host; those of a remote one are fetched."""
    return Remote(place, data).refresh() if is_remote(place) else Path(place)
