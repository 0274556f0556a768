"""One work unit: decode, filter, tokenize, publish; every bad recording counted by its reason."""

import json
import pickle
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.clock import SharedTime
from uniaudio.tokenize_farm.index import ShardPaths
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.shard_reader import ShardReader
from uniaudio.tokenize_farm.summary import total
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, num_frames
from uniaudio.tokenize_farm.units import Plan, WorkUnit
from uniaudio.tokenize_farm.worker import UnitWorker, decode_unit, make_tokenizers, tokenizer_versions


def tone(seconds: float, rate: int = 16_000, *, hz: float = 220.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_bad_corpus(folder: Path) -> Path:
    """Three good recordings (16 kHz, 8 kHz, 44.1 kHz stereo) among one of each way to be bad; returns the manifest."""
    soundfile.write(folder / "good.wav", tone(1.0), 16_000)
    soundfile.write(folder / "telephone.wav", tone(1.5, 8_000), 8_000)
    soundfile.write(folder / "stereo.wav", np.stack([tone(2.0, 44_100)] * 2, axis=1), 44_100)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not a recording\n" * 50)
    soundfile.write(folder / "whole.ogg", tone(4.0), 16_000)
    (folder / "cut.ogg").write_bytes((folder / "whole.ogg").read_bytes()[:-2000])
    soundfile.write(folder / "nan.wav", np.where(np.arange(16_000) == 9_000, np.nan, tone(1.0)), 16_000, subtype="FLOAT")
    soundfile.write(folder / "click.wav", tone(0.1), 16_000)
    soundfile.write(folder / "long.wav", tone(9.0), 16_000)
    soundfile.write(folder / "quiet.wav", tone(1.0) * 1e-3, 16_000)
    names = ["good", "telephone", "stereo", "gone", "empty", "text", "cut", "nan", "click", "long", "quiet"]
    rows = [{"id": name, "audio_filepath": f"{name}.{'ogg' if name == 'cut' else 'wav'}", "split": "train"} for name in names]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def make_config(manifest: Path, output_dir: Path, **fields: object) -> FarmConfig:
    base = {
        "manifest": str(manifest),
        "output_dir": str(output_dir),
        "tokenizers": {"midi": {"name": "f0"}},
        "filters": {"max_seconds": 8.0},
    }
    return FarmConfig.model_validate(base | fields)


def make_worker(config: FarmConfig) -> tuple[UnitWorker, list[WorkUnit]]:
    versions = tokenizer_versions(make_tokenizers(config))
    return UnitWorker(config, versions), list(Plan(config.manifest, config, versions))


def test_bad_recordings_are_dropped_by_reason_and_the_rest_tokenized(tmp_path: Path) -> None:
    worker, units = make_worker(make_config(write_bad_corpus(tmp_path), tmp_path / "out"))
    result = worker.run(units[0])
    assert result.sidecar["dropped"] == {
        "missing": ["gone"],
        "empty": ["empty"],
        "not_audio": ["text"],
        "truncated": ["cut"],
        "nan": ["nan"],
        "too_short": ["click"],
        "too_long": ["long"],
        "silent": ["quiet"],
    }
    with ShardReader(ShardPaths(tmp_path / "out", "train", 0).tar) as reader:
        assert reader.index.keys.tolist() == ["good", "telephone", "stereo"]
        assert [len(reader.view(i, "midi")) for i in range(3)] == [50, 75, 100]
        assert reader.meta(1) == {"id": "telephone", "kind": "speech", "seconds": 1.5}
    drops = {drop["id"]: drop for drop in total([result.sidecar])["dropped"]}
    assert len(drops) == 8 and all(drop["detail"] and "\n" not in drop["detail"] for drop in drops.values())
    assert str(tmp_path) not in json.dumps(drops)  # a moved corpus gives the same bytes


def test_bytes_depend_neither_on_the_folder_nor_on_what_is_held_at_once(tmp_path: Path) -> None:
    shards = []
    for name, seconds in (("a", 0.5), ("b", 100.0)):
        (tmp_path / name).mkdir()
        worker, units = make_worker(make_config(write_bad_corpus(tmp_path / name), tmp_path / name / "out", batch_seconds=seconds))
        worker.run(units[0])
        shards.append({path.name: path.read_bytes() for path in sorted((tmp_path / name / "out").iterdir())})
    assert shards[0] == shards[1] and len(shards[0]) == 3


def test_a_full_disk_publishes_nothing(tmp_path: Path) -> None:
    worker, units = make_worker(make_config(write_bad_corpus(tmp_path), tmp_path / "out"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError):
            worker.run(units[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []
    assert worker.run(units[0]).sidecar["clips"] == 3


def test_meta_keeps_what_the_manifest_knows(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16_000)
    row = {"id": "a", "audio_filepath": "a.wav", "speaker": "s", "language": "cs", "text": "ahoj", "licence": "CC0", "mood": "glad"}
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(row))
    worker, units = make_worker(make_config(manifest, tmp_path / "out"))
    worker.run(units[0])
    with ShardReader(tmp_path / "out" / "train-000000.tar") as reader:
        expected = {"id": "a", "kind": "speech", "seconds": 1.0, "speaker": "s", "language": "cs", "text": "ahoj", "licence": "CC0"}
        assert reader.meta(0) == expected | {"custom": {"mood": "glad"}}
        assert reader.index.speakers.tolist() == ["s"] and reader.index.languages.tolist() == ["cs"]


def test_a_worker_with_other_tokenizers_than_the_drivers_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="differ from the driver's"):
        UnitWorker(make_config(tmp_path / "m", tmp_path), {"midi": "f0/other"})


def test_a_tokenizer_under_the_wrong_view_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path / "m", tmp_path, tokenizers={"audio": {"name": "f0"}})
    with pytest.raises(UserError, match=r"tokenizers.audio.*seen: audio.*allowed: midi"):
        make_tokenizers(config)


def test_a_fault_that_is_not_the_recordings_is_no_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, units = make_worker(make_config(write_bad_corpus(tmp_path), tmp_path / "out"))

    def broken(row: ManifestRow, path: Path) -> np.ndarray:
        raise ZeroDivisionError

    monkeypatch.setattr(worker._decoder, "_load", broken)
    with pytest.raises(ZeroDivisionError):
        worker.run(units[0])
    assert not (tmp_path / "out").exists()


def test_a_unit_decoded_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    config = make_config(write_bad_corpus(tmp_path), tmp_path / "out")
    worker, units = make_worker(config)
    worker.run(units[0])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    decoded = pickle.loads(pickle.dumps(decode_unit(config, units[0])))
    for batch in decoded.batches:
        for clip in batch:
            clip.samples.flags.writeable = False  # as Ray's object store hands them out
    result = worker.run(units[0], decoded)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert set(result.seconds_by_step) == {"decode", "midi:f0", "simulate", "write"}


def test_a_row_that_kills_is_dropped_unopened(tmp_path: Path) -> None:
    worker, units = make_worker(make_config(write_bad_corpus(tmp_path), tmp_path / "out"))
    sidecar = worker.run(replace(units[0], poison=(1,))).sidecar
    assert sidecar["dropped"]["poison"] == ["telephone"] and sidecar["clips"] == 2


def test_trying_some_rows_publishes_nothing(tmp_path: Path) -> None:
    worker, units = make_worker(make_config(write_bad_corpus(tmp_path), tmp_path / "out"))
    worker.probe(units[0], 0, 4)
    assert not (tmp_path / "out").exists()


class LateTokenizer:
    """As one on a GPU: `begin` returns at once, the arrays of a call come when the next one has begun."""

    name, view, version = "late", "midi", "1"

    def __init__(self) -> None:
        self.loaded, self.begun = 0, [threading.Event() for _ in range(3)]
        self.calls = 0

    def load(self) -> None:
        self.loaded += 1

    def encode(self, clips: list[Clip]) -> list[np.ndarray | None]:
        return self.begin(clips)()

    def begin(self, clips: list[Clip]) -> Callable[[], list[np.ndarray | None]]:
        number, frames = self.calls, [num_frames(clip.samples) for clip in clips]
        self.calls += 1
        self.begun[number].set()

        def arrays() -> list[np.ndarray | None]:
            assert number == 1 or self.begun[number + 1].wait(30)
            return [np.full(rows, number, np.uint16) for rows in frames]

        return arrays


def test_the_next_unit_is_begun_while_the_arrays_of_one_are_awaited(tmp_path: Path) -> None:
    config = make_config(write_bad_corpus(tmp_path), tmp_path / "out", clips_per_unit=2)
    worker, units = make_worker(config)
    late = LateTokenizer()
    worker._tokenizers = {"midi": late}
    assert "pid" in worker.ready() and late.loaded == 1
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(worker.run, units[0])
        assert late.begun[0].wait(30)
        results = [first.result() if i == 0 else worker.run(units[i]) for i in (1, 0)]
    assert [result.sidecar["clips"] for result in results] == [1, 2]
    for number in range(2):
        with ShardReader(tmp_path / "out" / f"train-{number:06d}.tar") as reader:
            assert (reader.view(0, "midi") == number).all()


def test_time_that_units_share_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, ends = SharedTime(), iter((40.0, 100.0, 130.0))
    monkeypatch.setattr("uniaudio.tokenize_farm.clock.time.perf_counter", lambda: next(ends))
    assert [shared.since(begin) for begin in (10.0, 12.0, 120.0)] == [30.0, 60.0, 10.0]


def test_a_gpu_gets_more_audio_at_once(tmp_path: Path) -> None:
    configs = [
        make_config(tmp_path, tmp_path, **fields) for fields in ({}, {"gpus_per_worker": 0.5}, {"batch_seconds": 7, "gpus_per_worker": 1})
    ]
    assert [config.held_seconds for config in configs] == [120, 1_200, 7]
