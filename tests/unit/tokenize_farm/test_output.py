"""Shards in an object store: published whole and once, through failing requests; recordings fetched from where their rows say."""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.s3_server import FakeS3, serve_s3
from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import Unavailable, UserError
from uniaudio.tokenize_farm import fetch
from uniaudio.tokenize_farm.audio import BadAudio
from uniaudio.tokenize_farm.fetch import local_copy, member_name
from uniaudio.tokenize_farm.output import FolderOutput, Output, StoreOutput, open_output
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.storage import Store
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.worker import UnitWorker, make_tokenizers, tokenizer_versions


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    store = FakeS3()
    with serve_s3(store) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        from uniaudio.tokenize_farm import storage

        storage._open.cache_clear()  # another port every time
        yield store


def clip(number: int) -> TokenizedClip:
    codes = np.full((40, 8), number, dtype=np.uint16)
    return TokenizedClip(f"c{number}", {"id": f"c{number}", "kind": "speech", "seconds": 0.8}, {"audio": codes})


def write(output: Output, unit: int = 0, fingerprint: str = "f") -> dict:
    return output.write("train", unit, [clip(unit)], tokenizers={"audio": "codec/1"}, extra={"fingerprint": fingerprint})


def test_a_store_holds_the_bytes_of_a_folder(s3: FakeS3, tmp_path: Path) -> None:
    folder, store = FolderOutput(tmp_path / "shards"), open_output("s3://bucket/a/shards/")
    assert isinstance(store, StoreOutput) and store.shards() == [] and store.sidecar("train", 0) is None
    assert write(folder) == write(store) == store.sidecar("train", 0)
    assert {path.name: path.read_bytes() for path in folder.directory.iterdir()} == {
        key.removeprefix("bucket/a/shards/"): data for key, data in s3.objects.items()
    }
    assert [key.rsplit(".", 1)[-1] for method, key in s3.requests if method == "PUT"] == ["tar", "npz", "json"]  # the sidecar last
    store.put("farm.json", b"{}")
    assert store.read("farm.json") == b"{}" and store.shards() == [("train", 0)] and store.read("none") is None
    store.remove("train", 0)
    assert list(s3.objects) == ["bucket/a/shards/farm.json"]


def test_failing_requests_lose_and_double_nothing(s3: FakeS3) -> None:
    rng = random.Random(5)
    s3.fail = lambda method, key: rng.choice(["500", "cut", None, None, None, None])
    store = StoreOutput("s3://bucket/shards")
    for unit in range(4):
        write(store, unit)
    assert store.shards() == [("train", unit) for unit in range(4)] and len(s3.objects) == 12 and not s3.parts


def test_a_store_that_keeps_connections_open_and_says_nothing_is_asked_again(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniaudio.tokenize_farm.storage._READ_TIMEOUT", "1 second")
    stalled: set[str] = set()

    def first_of_each_method(method: str, key: str) -> str | None:
        return None if method in stalled else stalled.add(method) or "stall"

    s3.fail = first_of_each_method
    store = StoreOutput("s3://bucket/shards")
    assert write(store) == store.sidecar("train", 0) and stalled == {"PUT", "GET"}


def test_a_large_tar_goes_in_parts(s3: FakeS3, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(range(256)) * (20 << 12))
    Store("s3://bucket").put("big", tmp_path / "big")
    assert s3.objects["bucket/big"] == (tmp_path / "big").read_bytes()
    assert sum(method == "PUT" for method, _ in s3.requests) == 3


def test_the_same_shard_published_twice_is_one_and_another_farms_is_refused(s3: FakeS3) -> None:
    store = StoreOutput("s3://bucket/shards")
    assert write(store) == write(store)
    with pytest.raises(UserError, match=r"s3://bucket/shards/train-000000 was published by another farm"):
        write(store, fingerprint="other")
    assert store.sidecar("train", 0)["fingerprint"] == "f"


@pytest.mark.parametrize(("data", "message"), [(b"{", "sidecar cannot be read"), (b'{"schema_version": 99}', "another schema version")])
def test_a_damaged_sidecar_in_a_store_is_named(s3: FakeS3, data: bytes, message: str) -> None:
    s3.objects["bucket/train-000007.json"] = data
    with pytest.raises(UserError, match=f"s3://bucket/train-000007.json.*{message}|{message}.*train-000007"):
        StoreOutput("s3://bucket").sidecar("train", 7)


def test_a_store_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from uniaudio.tokenize_farm import storage

    monkeypatch.setitem(storage._RETRY, "max_retries", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    storage._open.cache_clear()
    with (
        pytest.raises(Unavailable, match=r"output_dir cannot be reached.*AWS_ENDPOINT_URL") as caught,
        StoreOutput("s3://gone/x").only_driver(),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_an_address_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown kind.*ftp://host/x.*s3://"):
        open_output("ftp://host/x")


def wav_bytes() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(16_000) / 20), 16_000, format="FLAC")
    return buffer.getvalue()


def test_recordings_of_a_store_a_host_and_a_tar_make_one_shard(s3: FakeS3, tmp_path: Path) -> None:
    s3.objects["corpus/deep/a.flac"] = wav_bytes()
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        member = tarfile.TarInfo("x/b.flac")
        member.size = len(wav_bytes())
        tar.addfile(member, io.BytesIO(wav_bytes()))
    with tarfile.open(tmp_path / "000.tar") as tar:
        begin = tar.getmember("x/b.flac").offset_data
    import os

    host = os.environ["AWS_ENDPOINT_URL"]
    names = [
        "s3://corpus/deep/a.flac",
        f"{host}/corpus/deep/a.flac",
        member_name("000.tar", begin, member.size, "x/b.flac"),
        "s3://corpus/no.flac",
    ]
    rows = [{"id": f"c{i}", "audio_filepath": name, "split": "train"} for i, name in enumerate(names)]
    rows.append({"id": "signed", "audio_filepath": "https://host/a.flac?signature=secret", "split": "train"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FarmConfig.model_validate(
        {"manifest": str(tmp_path / "m.jsonl"), "output_dir": "s3://bucket/shards", "tokenizers": {"midi": {"name": "f0"}}}
    )
    versions = tokenizer_versions(make_tokenizers(config))
    sidecar = UnitWorker(config, versions).run(Plan(config.manifest, config, versions)[0]).sidecar
    assert sidecar["clips"] == 3 and sidecar["dropped"] == {"missing": ["c3", "signed"]} and "secret" not in json.dumps(sidecar)
    assert StoreOutput("s3://bucket/shards").shards() == [("train", 0)]


def test_a_temporary_copy_is_removed_and_too_large_ones_are_refused(s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    s3.objects["b/a.flac"] = b"x" * 1_000
    with local_copy("s3://b/a.flac") as path:
        assert path.read_bytes() == b"x" * 1_000 and path.suffix == ".flac" and path.parent == tmp_path
    monkeypatch.setattr(fetch, "MAX_BYTES", 999)
    for name in ("s3://b/a.flac", "/x.tar#0+1000/a.flac"):
        with pytest.raises(BadAudio, match="too_long"), local_copy(name):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "reason"), [("TMP/none.tar#0+5/a.wav", "missing"), ("TMP/short.tar#3+9/a.wav", "truncated")])
def test_a_tar_that_is_gone_or_short_is_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "short.tar").write_bytes(b"12345")
    with pytest.raises(BadAudio, match=reason), local_copy(name.replace("TMP", str(tmp_path))):
        pass
