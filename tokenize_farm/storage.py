"""Object stores by address: s3://bucket/prefix (gs://, az:// alike) and http(s)://host/path. The only module that imports obstore.

Requests that fail with a 5xx, a timeout or a cut connection are tried again with growing pauses, for three minutes at most; credentials and
endpoint come from the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_REGION, ...). A fault that stays is an OSError: of the
network, never of the data; only an object that is not there is a FileNotFoundError.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from uniaudio.errors import MissingDependency, UserError

SCHEMES = ("s3", "gs", "az", "http", "https")
_RETRY: Any = {
    "max_retries": 20,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
}
_PART_BYTES = 8 * 2**20  # of a multipart upload; smaller objects go in one request
_READ_BYTES = 4 * 2**20
_READ_TIMEOUT = "30 seconds"  # without a byte: a store that stalls is asked again


class Store:
    """A bucket (or host) with a prefix; names are relative to it."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._obstore, self._store = _open(self.address)

    def names(self, prefix: str = "") -> Iterator[str]:
        """Every object below the address, in the store's order (of one folder and those below it)."""
        with _faults(self.address):
            for batch in self._obstore.list(self._store, prefix=prefix or None):
                yield from (item["path"] for item in batch)

    def read(self, name: str) -> bytes:
        """A whole object."""
        with _faults(f"{self.address}/{name}"):
            return bytes(self._obstore.get(self._store, name).bytes())

    def size(self, name: str) -> int:
        """Bytes of an object."""
        with _faults(f"{self.address}/{name}"):
            return int(self._obstore.head(self._store, name)["size"])

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from byte `start` on; fewer where it ends before."""
        with _faults(f"{self.address}/{name}"):
            return bytes(self._obstore.get_range(self._store, name, start=start, length=length))

    def download(self, name: str, path: Path, *, max_bytes: int) -> int:
        """Streams an object into `path` and returns its bytes; stops (ValueError) beyond `max_bytes`, so that no answer fills the disk."""
        with _faults(f"{self.address}/{name}"):
            done = 0
            with path.open("wb") as handle:
                for chunk in self._obstore.get(self._store, name).stream(min_chunk_size=_READ_BYTES):
                    done += len(chunk)
                    if done > max_bytes:
                        raise ValueError(f"{self.address}/{name} has more than {max_bytes} bytes")
                    handle.write(chunk)
            return done

    def put(self, name: str, data: bytes | Path) -> None:
        """Publishes an object whole or not at all; a large file in parts."""
        with _faults(f"{self.address}/{name}"):
            self._obstore.put(self._store, name, data, chunk_size=_PART_BYTES)

    def put_new(self, name: str, data: bytes) -> bool:
        """Publishes an object unless there is one of that name; False where there is (a conditional PUT: one writer wins)."""
        try:
            with _faults(f"{self.address}/{name}"):
                self._obstore.put(self._store, name, data, mode="create", use_multipart=False)
        except FileExistsError:
            return False
        return True

    def delete(self, names: list[str]) -> None:
        """Removes objects, in order; one that is not there is no fault."""
        for name in names:
            with _faults(f"{self.address}/{name}"):
                try:
                    self._obstore.delete(self._store, name)
                except FileNotFoundError:
                    continue


@contextmanager
def _faults(address: str) -> Iterator[None]:
    """The store's exceptions as OSError with the address."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise FileNotFoundError(f"no object {address}") from error
    except exceptions.AlreadyExistsError as error:
        raise FileExistsError(f"there is an object {address}") from error
    except exceptions.BaseError as error:
        raise OSError(f"{address}: {' '.join(str(error).split())[:300]}") from error


@lru_cache(maxsize=64)
def _open(address: str) -> tuple[Any, Any]:
    try:
        import obstore
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        raise MissingDependency("obstore", needed_for=f"reading and writing {address}", extra="farm") from error
    scheme = urlsplit(address).scheme
    if scheme not in SCHEMES:
        raise UserError("an address of an unknown kind", seen=address, allowed=", ".join(f"{name}://" for name in SCHEMES))
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if scheme == "s3" else ""
    plain = scheme == "http" or endpoint.startswith("http://")
    options: Any = {"timeout": "10 minutes", "read_timeout": _READ_TIMEOUT, "connect_timeout": "10 seconds", "allow_http": plain}
    with _faults(address):
        return obstore, from_url(address, client_options=options, retry_config=_RETRY)


def split_address(address: str) -> tuple[str, str]:
    """`s3://bucket/a/b.flac` -> (`s3://bucket`, `a/b.flac`). ValueError for one with a query (a signed address): none is sent."""
    parts = urlsplit(address)
    if parts.query:
        raise ValueError(f"{address.split('?')[0]}?...: addresses with a query are not read")
    return f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")
