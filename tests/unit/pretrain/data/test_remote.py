"""Shards in an object store or behind a web server: the same documents, through failures, truncation and stalls, in a bounded cache."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from object_store import ObjectStore

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.errors import Unavailable, UserError
from uniaudio.pretrain.data import remote as remote_module
from uniaudio.pretrain.data.loader import Loader, make_loader
from uniaudio.pretrain.data.remote import Remote, has_split, local_folder
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.tokenize_farm import storage
from uniaudio.tokenize_farm.index_build import index_folder, index_store
from uniaudio.tokenize_farm.storage import Store

Serve = Callable[..., ObjectStore]


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "origin"
    shutil.copytree(shards, copy)
    index_folder(copy)
    return copy


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server of the folder; quick to give up on a stalled answer, and to ask again."""
    monkeypatch.setattr(storage, "_READ_TIMEOUT", "1 second")
    monkeypatch.setattr(storage, "_RETRY", {"max_retries": 0})
    monkeypatch.setattr(remote_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote_module, "_RANGE", 4096)
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    servers = []

    def start(**faults: float) -> ObjectStore:
        servers.append(ObjectStore(folder, **faults))
        monkeypatch.setenv("AWS_ENDPOINT_URL", servers[-1].address)
        storage._open.cache_clear()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    storage._open.cache_clear()


def address(server: ObjectStore, scheme: str) -> str:
    return "s3://bucket" if scheme == "s3" else f"{server.address}/bucket"


def open_loader(place: str, cache: Path, **data) -> Loader:
    config = {"shards": place, "tasks": ("tts", "vc", "sound"), "frames_per_row": 400, "rows_per_micro_batch": 2, "cache_dir": str(cache)}
    config |= {"max_documents_per_row": 8, "max_text_states_per_row": 24, "shards_per_block": 2} | data
    return make_loader(DataConfig(**config), ModelConfig(text_width=8), load_vocabulary("paper"))


def require_same(one: Loader, two: Loader, steps: int = 20) -> None:
    for step in range(steps):
        for left, right in zip(one.step_batches(step), two.step_batches(step), strict=True):
            assert all(map(torch.equal, left.as_tuple(), right.as_tuple()))


@pytest.mark.parametrize(("scheme", "workers"), [("http", 0), ("s3", 0), ("s3", 2)])
def test_a_store_that_fails_truncates_and_stalls_gives_the_same_documents(serve, folder, tmp_path, scheme, workers) -> None:
    server = serve(fail=0.05, truncate=0.05, stall=0.02)
    loader = open_loader(address(server, scheme), tmp_path / "cache", workers=workers)
    local = open_loader(str(folder), tmp_path / "unused")
    require_same(loader, local)
    assert server.counts["fail"] and server.counts["truncate"] and server.counts["stall"], server.counts
    assert loader.metrics(1)["data/repeated_reads"] >= server.counts["fail"] + server.counts["truncate"]
    assert loader.skipped == 0 and not loader.assembler.files.bad_shards()
    loader.close()


def test_each_shard_comes_once_for_all_processes_of_a_host(serve, tmp_path) -> None:
    server = serve()
    loaders = [open_loader(address(server, "http"), tmp_path / "cache") for _ in range(2)]
    for step in range(10):
        for loader in loaders:
            loader.step_batches(step)
    tars = list((tmp_path / "cache").glob("*/*.tar"))
    assert len(tars) == 4 and server.counts["get"] == sum(-(-tar.stat().st_size // 4096) for tar in tars)
    for loader in loaders:
        loader.close()


def test_the_cache_stays_below_its_limit_and_spares_what_is_in_use(serve, folder, tmp_path, monkeypatch) -> None:
    server = serve()
    size = sum(path.stat().st_size for path in folder.glob("train*.tar"))
    remote = Remote(
        address(server, "http"), DataConfig(shards="x", tasks=("tts",), cache_dir=str(tmp_path / "c"), cache_gb=0.6 * size / 1e9)
    )
    remote.refresh()
    loader = open_loader(str(folder), tmp_path / "unused")
    table = loader.planner.clips.tables[0]

    def fetch(shard: int) -> Path:
        return remote.fetch(f"{table.shard_name(shard)}.tar", int(table.tar_bytes[shard]), table.tar_sha256[shard].tobytes().hex())

    paths = [fetch(shard) for shard in range(4)]
    assert all(path.exists() for path in paths), "all in use: none goes"
    for number, path in enumerate(paths):
        os.utime(path, (time.time() - 1000 + number,) * 2)
    fetch(0)  # used again
    paths[3].unlink()
    fetch(3)
    assert [path.exists() for path in paths] == [True, False, False, True]
    monkeypatch.setattr(remote_module, "_ATTEMPTS", 2)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError):
        fetch(1)
    (folder / "train-000002.tar").write_bytes(b"x" * int(table.tar_bytes[2]))
    with pytest.raises(OSError, match="its index says"):
        fetch(2)
    assert not paths[2].exists()


def test_a_shard_that_the_store_lacks_follows_the_policy(serve, folder, tmp_path) -> None:
    server = serve()
    loader, skipping = (open_loader(address(server, "http"), tmp_path / policy, bad_shards=policy) for policy in ("stop", "skip"))
    (folder / "train-000002.tar").unlink()
    with pytest.raises(UserError, match=r"train-000002\.tar cannot be fetched.*no object"):
        for step in range(30):
            loader.step_batches(step)
    for step in range(30):
        skipping.step_batches(step)
    assert skipping.skipped > 0 and skipping.assembler.files.bad_shards() == [2]


def test_faults_of_an_address_are_named(serve, folder, tmp_path) -> None:
    server = serve()
    (folder / "index" / "train.safetensors").unlink()
    with pytest.raises(UserError, match="no merged index of the split train at this address.*uniaudio shards index http"):
        open_loader(address(server, "http"), tmp_path / "cache")
    server.shutdown()
    server.server_close()
    with pytest.raises(Unavailable, match="data.shards cannot be reached.*AWS_ENDPOINT_URL"):
        open_loader("s3://bucket", tmp_path / "cache2")


def test_small_files_of_an_address_are_found(serve, folder, tmp_path) -> None:
    (folder / "farm.json").write_text("{}")
    data = DataConfig(shards="s3://bucket", tasks=("tts",), cache_dir=str(tmp_path / "cache"))
    serve()
    assert (local_folder("s3://bucket", data) / "farm.json").read_text() == "{}"
    assert has_split("s3://bucket", "valid", data) and local_folder(str(folder), data) == folder
    shutil.rmtree(folder / "index")
    assert not has_split("s3://bucket", "valid", data)


def test_an_index_is_made_in_the_store_itself(serve, folder, tmp_path, monkeypatch) -> None:
    """Sidecars and indexes are read there, tars are not."""
    server = serve()
    shutil.rmtree(folder / "index")
    put: dict[str, bytes] = {}
    monkeypatch.setattr(Store, "put", lambda self, name, data: put.update({name: Path(data).read_bytes()}))
    made = index_store(Store("s3://bucket"))
    assert {split: (table.num_shards, read) for split, (table, read) in made.items()} == {"train": (4, 4), "valid": (1, 1)}
    assert server.counts["get"] == 0
    index_folder(folder)
    for name, content in put.items():
        local = (folder / name).read_bytes()
        assert content[-1000:] == local[-1000:] and len(content) == pytest.approx(len(local), abs=64)
    assert index_store(Store("s3://bucket"))["train"][1] == 0, "the second time nothing is read"
