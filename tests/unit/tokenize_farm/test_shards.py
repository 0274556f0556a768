"""Shards: the same clips give the same bytes, any reader reads them, and no damage goes unseen."""

import io
import json
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from uniaudio.errors import UserError
from uniaudio.tokenize_farm import shard_writer
from uniaudio.tokenize_farm.index import ShardPaths, list_shards, read_index
from uniaudio.tokenize_farm.schema import INDEX_COLUMNS, TokenizedClip
from uniaudio.tokenize_farm.shard_reader import ShardReader
from uniaudio.tokenize_farm.shard_writer import write_shard
from uniaudio.tokenize_farm.verify import verify_folder, verify_shard


def make_clip(number: int, *, key: str | None = None) -> TokenizedClip:
    """A clip made from an integer: kind, views and lengths differ from one to the next."""
    rng = np.random.default_rng(number)
    frames = 5 + number
    views = {"audio": rng.integers(0, 1024, (frames, 8), dtype=np.uint16), "midi": rng.integers(0, 138, frames, dtype=np.uint16)}
    if number % 2:
        views["text"] = rng.standard_normal((3, 4)).astype(np.float16)
    meta = {"id": f"clip {number}", "kind": "speech" if number % 2 else "sound", "seconds": frames / 50, "text": "žluťoučký"}
    if number % 3 == 0:
        meta |= {"speaker": f"s{number}", "language": "cs"}
    return TokenizedClip(key or f"clip_{number:03d}", meta, views)


def write(directory: Path, clips: list[TokenizedClip], unit: int = 0, **options: object) -> ShardPaths:
    write_shard(directory, "train", unit, clips, tokenizers={"audio": "codec/1"}, **options)
    return ShardPaths(directory, "train", unit)


def test_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    clips = [make_clip(i) for i in range(6)]
    first = write(tmp_path / "a", clips, dropped={"missing": ["x"]})
    second = write(tmp_path / "b", clips, dropped={"missing": ["x"]})
    for one, other in ((first.tar, second.tar), (first.index, second.index), (first.sidecar, second.sidecar)):
        assert one.read_bytes() == other.read_bytes()
    assert write(tmp_path / "c", clips[::-1]).read_sidecar()["tar_sha256"] != first.read_sidecar()["tar_sha256"]


def test_the_tar_is_the_one_that_the_standard_library_writes(tmp_path: Path) -> None:
    sizes = [0, 1, 511, 512, 513, 100_000]
    names = ["a.json", "b" * 95 + ".json", "c" * 96 + ".json", "d" * 200 + ".audio.npy", "e.x", "f.y"]
    layout = shard_writer._TarLayout(tmp_path / "ours.tar")
    begins = [layout.add(name, b"x" * size) for name, size in zip(names, sizes)]
    sha256 = layout.close()
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.PAX_FORMAT) as theirs:
        for name, size in zip(names, sizes):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = size, 0, 0o444
            theirs.addfile(member, io.BytesIO(b"x" * size))
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    assert sha256 == shard_writer.sha256_of(tmp_path / "ours.tar") and layout.bytes == (tmp_path / "ours.tar").stat().st_size
    with tarfile.open(tmp_path / "ours.tar") as ours:
        assert [member.offset_data for member in ours] == begins


@pytest.mark.parametrize("array", [np.zeros((3, 8), np.uint16), np.ones(5, np.float16)[::2], np.zeros((2, 4), np.uint16).T])
def test_an_array_is_a_npy_file_that_numpy_reads(array: np.ndarray) -> None:
    data, header = shard_writer.npy_bytes(array)
    np.testing.assert_array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)
    assert len(data) - header == array.nbytes


def test_reader_returns_every_array_and_meta(tmp_path: Path) -> None:
    clips = [make_clip(i, key="k" * 150 if i == 3 else None) for i in range(6)]
    with ShardReader(write(tmp_path, clips).tar) as reader:
        assert len(reader) == 6
        for i, clip in enumerate(clips):
            assert reader.meta(i) == clip.meta
            for view, array in clip.views.items():
                got = reader.view(i, view)
                assert got.dtype == array.dtype and np.array_equal(got, array)
            assert reader.index.has(i, "text") == ("text" in clip.views)
        with pytest.raises(KeyError, match=r"clip_000.*text"):
            reader.view(0, "text")
        with pytest.raises(KeyError, match="no view 'phone'"):
            reader.view(0, "phone")


def test_webdataset_reads_the_shard(tmp_path: Path) -> None:
    clips = [make_clip(i) for i in range(4)]
    paths = write(tmp_path, clips)
    samples = list(webdataset.WebDataset(str(paths.tar), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [clip.key for clip in clips]
    for sample, clip in zip(samples, clips):
        assert sample["json"] == clip.meta
        assert np.array_equal(sample["audio.npy"], clip.views["audio"])


def test_sidecar_counts_and_index_columns(tmp_path: Path) -> None:
    clips = [make_clip(i) for i in range(4)]
    paths = write(tmp_path, clips, dropped={"silent": ["a", "b"]}, extra={"unit_fingerprint": "f"})
    sidecar = paths.read_sidecar()
    assert sidecar["clips_by_kind"] == {"speech": 2, "sound": 2}
    assert sidecar["frames"] == sum(5 + i for i in range(4)) and sidecar["seconds"] == pytest.approx(sidecar["frames"] / 50)
    assert sidecar["dropped"] == {"silent": ["a", "b"]} and sidecar["unit_fingerprint"] == "f"
    with np.load(paths.index, allow_pickle=False) as archive:
        assert tuple(archive.files) == INDEX_COLUMNS
    assert read_index(paths.index).speakers.tolist() == ["s0", "", "", "s3"]


def test_an_empty_unit_is_a_shard(tmp_path: Path) -> None:
    paths = write(tmp_path, [], dropped={"missing": ["a"]})
    assert len(read_index(paths.index)) == 0 and verify_shard(paths) == []


def test_only_shards_with_a_sidecar_exist(tmp_path: Path) -> None:
    for unit in (10, 2):
        write(tmp_path, [make_clip(unit)], unit)
    write(tmp_path, [make_clip(5)], 5).sidecar.unlink()
    (tmp_path / "farm.json").write_text("{}")
    assert [shard.name for shard in list_shards(tmp_path, "train")] == ["train-000002", "train-000010"]
    assert list_shards(tmp_path, "valid") == []
    with pytest.raises(UserError, match=r"unknown split.*train, valid"):
        list_shards(tmp_path, "test")
    with pytest.raises(UserError, match="no such folder"):
        list_shards(tmp_path / "nowhere")


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("which", ["tar", "index"])
def test_a_flipped_bit_is_found(tmp_path: Path, which: str, where: float) -> None:
    paths = write(tmp_path, [make_clip(i) for i in range(4)])
    assert verify_shard(paths) == []
    path = getattr(paths, which)
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    assert any(path.name in fault for fault in verify_shard(paths))


def test_a_cut_tar_is_found_by_verify_and_refused_by_the_reader(tmp_path: Path) -> None:
    paths = write(tmp_path, [make_clip(i) for i in range(4)])
    index = read_index(paths.index)
    paths.tar.write_bytes(paths.tar.read_bytes()[:3000])
    assert verify_shard(paths) != []
    with pytest.raises(UserError, match="points outside its tar"):
        ShardReader(paths.tar)
    with pytest.raises(UserError, match="ends inside an array"):
        ShardReader(paths.tar, index).view(3, "audio")


@pytest.mark.parametrize("key", ["../evil", "a/b", "a.b", "", "x" * 201, "a b"])
def test_hostile_keys_are_refused(tmp_path: Path, key: str) -> None:
    clip = make_clip(1)
    clip.key = key
    with pytest.raises(ValueError, match="bad key"):
        write(tmp_path, [clip])
    assert list(tmp_path.iterdir()) == []


def _resign(paths: ShardPaths) -> None:
    """Makes the sidecar agree with a tampered tar, so that only the walk over the members can object."""
    import hashlib

    sidecar = json.loads(paths.sidecar.read_text())
    sidecar["tar_sha256"] = hashlib.sha256(paths.tar.read_bytes()).hexdigest()
    paths.sidecar.write_text(json.dumps(sidecar))


@pytest.mark.parametrize("name", ["../../evil.json", "clip_000.audio.pkl", "clip_000.pyd"])
def test_hostile_members_are_found(tmp_path: Path, name: str) -> None:
    paths = write(tmp_path, [make_clip(0)])
    with tarfile.open(paths.tar, "a") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    _resign(paths)
    assert any("unexpected member" in fault for fault in verify_shard(paths))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    paths = write(tmp_path, [make_clip(0)])
    np.savez(paths.index, **{name: np.array([{}], dtype=object) for name in INDEX_COLUMNS}, allow_pickle=True)
    with pytest.raises(UserError, match="allow_pickle=False"):
        read_index(paths.index)
    clip = make_clip(0)
    clip.views["audio"] = clip.views["audio"].astype(object)
    with pytest.raises(ValueError, match="expected non-empty uint16"):
        write(tmp_path / "b", [clip])


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"given twice.*clip_001"):
        write(tmp_path, [make_clip(1), make_clip(1)])


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write in the middle of the tar, as a full disk does."""
    paths = write(tmp_path, [make_clip(i) for i in range(3)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for unit in (0, 1):  # an older shard to be replaced, and a new one
            with pytest.raises(OSError):
                write(tmp_path, [make_clip(i) for i in range(200)], unit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert verify_shard(paths) == []


def test_an_extra_field_cannot_hide_a_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hide"):
        write(tmp_path, [make_clip(0)], extra={"clips": 7})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"audio": np.full((50, 8), 1024, np.uint16)}, "holds 1024; codec makes 0 to 1023"),
        ({"audio": np.zeros((40, 8), np.uint16)}, "has 40 frames; 1.00 s have 50"),
        ({"midi": np.full(50, 138, np.uint16)}, "holds 138; f0 makes 0 to 137"),
        ({"phone": np.array([[306, 2]], np.uint16)}, "holds 306; phones makes 0 to 305"),
    ],
)
def test_codes_that_cannot_be_are_found(tmp_path: Path, views: dict[str, np.ndarray], message: str) -> None:
    clip = TokenizedClip("a", {"id": "a", "kind": "speech", "seconds": 1.0}, views)
    made_by = {"audio": "codec/1", "midi": "f0/1", "phone": "phones/1"}
    write_shard(tmp_path, "train", 0, [clip], tokenizers=made_by)
    (fault,) = verify_shard(ShardPaths(tmp_path, "train", 0))
    assert message in fault


def test_a_clip_in_two_shards_is_found(tmp_path: Path) -> None:
    for unit, numbers in enumerate([(0, 1), (2, 1), (3,)]):
        write(tmp_path, [make_clip(number) for number in numbers], unit)
    for processes in (1, 2):
        faults = {paths.name: lines for paths, lines in verify_folder(list_shards(tmp_path), processes)}
        assert faults == {
            "train-000000": [],
            "train-000001": ["train-000001: its clip 'clip_001' is in train-000000 too"],
            "train-000002": [],
        }
