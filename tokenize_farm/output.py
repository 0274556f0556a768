"""Where a farm's shards go: a folder, or an object store by address. Publishing is whole or not at all, the sidecar last.

Owns the question "which units are done". Two writers of one shard write the same bytes, so no lock is needed for correctness; a folder is
locked against a second driver all the same, because its work would be in vain.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from uniaudio.atomic import publish_bytes
from uniaudio.errors import Unavailable, UserError
from uniaudio.lock import only_writer
from uniaudio.tokenize_farm.index import ShardPaths, list_shards
from uniaudio.tokenize_farm.index_build import index_folder, index_store
from uniaudio.tokenize_farm.manifest import is_address
from uniaudio.tokenize_farm.parts import WHOLE, Part
from uniaudio.tokenize_farm.schema import SCHEMA_VERSION, TokenizedClip, parse_shard_name, shard_name
from uniaudio.tokenize_farm.shard_writer import write_shard
from uniaudio.tokenize_farm.storage import Store

Shard = tuple[str, int]  # split, unit


class Output(Protocol):
    """What the driver and the workers need of a place for shards."""

    address: str

    def only_driver(self, part: Part = WHOLE) -> Any:
        """A context: prepares the place, keeps a second driver out where that can be told, removes what a killed one left half-written."""
        ...

    def shards(self) -> list[Shard]:
        """Published shards, sorted."""
        ...

    def sidecar(self, split: str, unit: int) -> dict | None:
        """The sidecar of a shard; None where it is not published. UserError where it is damaged."""
        ...

    def write(self, split: str, unit: int, clips: Sequence[TokenizedClip], **fields: Any) -> dict:
        """Publishes a shard (arguments of `shard_writer.write_shard`) and returns its sidecar. OSError: nothing was published."""
        ...

    def remove(self, split: str, unit: int) -> None:
        """Unpublishes a shard, the sidecar first."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file beside the shards (farm.json); None where there is none."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Publishes a file beside the shards."""
        ...

    def index(self) -> None:
        """Merges the indexes of all shards, for training to open at once."""
        ...


def open_output(address: str) -> Output:
    """A folder by its path, or an object store by its address."""
    return StoreOutput(address) if is_address(address) else FolderOutput(Path(address))


class FolderOutput:
    """A folder of a file system."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.address = directory, str(directory)

    @contextmanager
    def only_driver(self, part: Part = WHOLE) -> Iterator[None]:
        """Parts share the folder: each locks its own file, and nobody cleans up, as a temporary file may be another part's."""
        alone = part.count == 1
        with (
            only_writer(self.directory, what="farm", key="output_dir", name=part.lock_file, patience=1.0),
            only_writer(self.directory, what="farm", key="output_dir", name=".farm.lock", shared=not alone, patience=1.0),
        ):
            for left_over in self.directory.glob(".*.tmp") if alone else []:
                left_over.unlink(missing_ok=True)
            yield

    def shards(self) -> list[Shard]:
        return [(shard.split, shard.unit) for shard in list_shards(self.directory)]

    def sidecar(self, split: str, unit: int) -> dict | None:
        paths = ShardPaths(self.directory, split, unit)
        return paths.read_sidecar() if paths.published else None

    def write(self, split: str, unit: int, clips: Sequence[TokenizedClip], **fields: Any) -> dict:
        return write_shard(self.directory, split, unit, clips, **fields)

    def remove(self, split: str, unit: int) -> None:
        paths = ShardPaths(self.directory, split, unit)
        for path in (paths.sidecar, paths.index, paths.tar):
            path.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        path = self.directory / name
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, data: bytes) -> None:
        publish_bytes(self.directory / name, data)

    def index(self) -> None:
        index_folder(self.directory)


class StoreOutput:
    """A prefix of an object store. A PUT is atomic there; tar and index go first, then the sidecar by a conditional PUT."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._store = Store(self.address)

    @contextmanager
    def only_driver(self, part: Part = WHOLE) -> Iterator[None]:
        try:
            next(iter(self._store.names()), None)
        except OSError as error:
            remedy = "check the address, the credentials and the endpoint (AWS_ENDPOINT_URL)"
            raise Unavailable("output_dir cannot be reached", seen=error, remedy=remedy) from error
        yield

    def shards(self) -> list[Shard]:
        found = []
        for name in self._store.names():
            if name.endswith(".json") and "/" not in name:
                try:
                    found.append(parse_shard_name(name.removesuffix(".json")))
                except ValueError:
                    continue  # farm.json and other neighbours
        return sorted(found)

    def sidecar(self, split: str, unit: int) -> dict | None:
        name = f"{shard_name(split, unit)}.json"
        data = self.read(name)
        if data is None:
            return None
        try:
            sidecar = json.loads(data)
        except ValueError as error:
            raise UserError("a shard's sidecar cannot be read", seen=f"{self.address}/{name}: {error}", remedy="delete it") from error
        if not isinstance(sidecar, dict) or sidecar.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{self.address}/{name}: of another schema version", allowed=SCHEMA_VERSION, remedy="tokenize again")
        return sidecar

    def write(self, split: str, unit: int, clips: Sequence[TokenizedClip], **fields: Any) -> dict:
        with tempfile.TemporaryDirectory(prefix="uniaudio-shard-") as staging:
            sidecar = write_shard(staging, split, unit, clips, **fields)
            paths = ShardPaths(Path(staging), split, unit)
            self._store.put(paths.tar.name, paths.tar)
            self._store.put(paths.index.name, paths.index)
            data = paths.sidecar.read_bytes()
            if not self._store.put_new(paths.sidecar.name, data) and self.read(paths.sidecar.name) != data:
                remedy = "give another output_dir, or stop the other farm"
                raise UserError(f"{self.address}/{paths.name} was published by another farm meanwhile", remedy=remedy)
        return sidecar

    def remove(self, split: str, unit: int) -> None:
        name = shard_name(split, unit)
        self._store.delete([f"{name}.json", f"{name}.index.npz", f"{name}.tar"])

    def read(self, name: str) -> bytes | None:
        try:
            return self._store.read(name)
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        self._store.put(name, data)

    def index(self) -> None:
        index_store(self._store)
