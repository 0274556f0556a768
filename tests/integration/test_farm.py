"""The farm with real Ray workers: killed anywhere and run again, it ends with the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from small_disk import small_disk

from uniaudio.configs.farm import FarmConfig
from uniaudio.tokenize_farm import flow, pool
from uniaudio.tokenize_farm.index import list_shards
from uniaudio.tokenize_farm.output import open_output
from uniaudio.tokenize_farm.schedule import Schedule
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.verify import verify_shard
from uniaudio.tokenize_farm.worker import UnitWorker, make_tokenizers, tokenizer_versions

UNITS, CLIPS_PER_UNIT = 8, 4
DEADLINE = 240.0
PART_FILES = ("farm.part-0-of-2.json", "farm.part-1-of-2.json")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gliding tones: a second or two of pitch tracking a unit, so that there is a middle to be killed in."""
    folder = tmp_path_factory.mktemp("corpus")
    seconds = np.arange(8 * 16_000) / 16_000
    rows = []
    for i in range(UNITS * CLIPS_PER_UNIT):
        samples = 0.2 * np.sin(2 * np.pi * (100 + 10 * i) * seconds + 5 * np.sin(2 * np.pi * 2 * seconds))
        soundfile.write(folder / f"{i}.wav", samples.astype(np.float32), 16_000)
        rows.append({"id": f"clip{i:02d}", "audio_filepath": f"{i}.wav", "text": f"tone number {i}", "split": "train"})
    rows.insert(5, {"id": "gone", "audio_filepath": "gone.wav", "split": "train"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


def farm_file(manifest: Path, folder: Path) -> Path:
    """A farm config beside its output folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "manifest": str(manifest),
        "output_dir": str(folder / "shards"),
        "tokenizers": {"midi": {"name": "f0"}, "phone": {"name": "phones"}},
        "clips_per_unit": CLIPS_PER_UNIT,
        "workers": 2,
    }
    (folder / "farm.yaml").write_text(json.dumps(config))
    return folder / "farm.yaml"


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards as one worker makes them in this process, without Ray."""
    folder = tmp_path_factory.mktemp("expected")
    config = FarmConfig.model_validate_json(farm_file(corpus, folder).read_text())
    versions = tokenizer_versions(make_tokenizers(config))
    worker = UnitWorker(config, versions)
    for unit in Plan(corpus, config, versions):
        worker.run(unit)
    return shard_bytes(folder)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").glob("train-*"))}


class Starter:
    """Starts `uniaudio tokenize`; remembers every process it ever saw below it, so that the test can end what is left."""

    def __init__(self) -> None:
        self.drivers: list[subprocess.Popen] = []
        self.seen: list[psutil.Process] = []

    def __call__(self, config: Path, *options: str) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
        command = [sys.executable, "-m", "uniaudio", "tokenize", str(config), *options]
        self.drivers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return self.drivers[-1]

    def workers(self, driver: subprocess.Popen) -> list[psutil.Process]:
        """The farm's workers below a driver."""
        below = descendants(driver.pid)
        self.seen += below
        return [child for child in below if child.name().startswith("ray::UnitWorker")]

    def close(self) -> None:
        for driver in self.drivers:
            self.seen += descendants(driver.pid)
            driver.kill()
            driver.wait()
            driver.stdout.close()
        for process in self.seen:
            if alive(process):
                process.kill()


def alive(process: psutil.Process) -> bool:
    """Whether it is still the process that was seen, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(what: Callable[[], object], process: subprocess.Popen | None = None) -> object:
    """Waits until `what()` is true and returns it; fails where `process` ends before."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if found := what():
            return found
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def published(folder: Path) -> int:
    return len(list_shards(folder / "shards")) if (folder / "shards").is_dir() else 0


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    return output


def test_a_killed_driver_leaves_no_worker_and_is_continued_with_the_same_bytes(corpus, expected, tmp_path, start) -> None:
    config = farm_file(corpus, tmp_path)
    asked = start(config)
    wait_for(lambda: published(tmp_path) >= 1, asked)
    asked.send_signal(signal.SIGTERM)
    told = asked.communicate(timeout=DEADLINE)[0]
    assert asked.returncode == 75, told
    assert "asked to stop | seen: SIGTERM" in " ".join(told.split()) and "***" not in told
    already = published(tmp_path)  # one, or one of each worker
    driver = start(config)
    wait_for(lambda: published(tmp_path) > already, driver)
    workers = start.workers(driver)
    assert len(workers) == 2
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = published(tmp_path)
    assert 2 <= before < UNITS + 1
    wait_for(lambda: not any(alive(worker) for worker in workers))
    (tmp_path / "shards" / ".train-000007.tar.0123abcd.tmp").write_bytes(b"half")
    kept = {
        name: (tmp_path / "shards" / name).stat().st_mtime_ns
        for name in (shard.name + ".tar" for shard in list_shards(tmp_path / "shards"))
    }
    output = finish(start(config))
    assert shard_bytes(tmp_path) == expected
    assert all((tmp_path / "shards" / name).stat().st_mtime_ns == when for name, when in kept.items())  # not made twice
    assert not list((tmp_path / "shards").glob(".*.tmp"))
    farm = json.loads((tmp_path / "shards" / "farm.json").read_text())
    assert farm["status"] == "finished" and farm["last_work"]["units_skipped"] >= before
    assert farm["totals"]["clips"] == UNITS * CLIPS_PER_UNIT and farm["totals"]["dropped_by_reason"] == {"missing": 1}
    assert "dropped gone: missing: no file gone.wav" in " ".join(output.split())


def test_a_killed_worker_is_replaced_and_its_unit_done_again(corpus, expected, tmp_path, start) -> None:
    driver = start(farm_file(corpus, tmp_path), "--json")
    wait_for(lambda: published(tmp_path) >= 1, driver)
    workers = start.workers(driver)
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    finish(driver)
    assert shard_bytes(tmp_path) == expected
    farm = json.loads((tmp_path / "shards" / "farm.json").read_text())
    assert farm["last_work"]["restarts"] == 1
    assert all(verify_shard(shard) == [] for shard in list_shards(tmp_path / "shards"))


def test_workers_decode_for_themselves_where_no_core_is_left_to_decode_ahead(corpus, expected, tmp_path, monkeypatch, caplog) -> None:
    """As when a node went just before: the cluster counted its core, so that the workers took every other one."""
    monkeypatch.setattr(flow, "_DECODING_SECONDS", 1.0)
    config = FarmConfig.model_validate_json(farm_file(corpus, tmp_path).read_text()).model_copy(update={"decode_workers": 1})
    versions, output = tokenizer_versions(make_tokenizers(config)), open_output(config.output_dir)

    def two_of_three_cores(config: FarmConfig, jobs: int) -> tuple[int, int]:
        pool.start_ray(num_cpus=2, include_dashboard=False)
        return 3, 1

    monkeypatch.setattr(pool, "_connect", two_of_three_cores)
    with flow.ray_workers(config, versions, jobs=UNITS, kind=UnitWorker) as workers:
        while workers.running < 2:
            for reference in workers.starting:
                workers.came_up(reference)
        plan = Plan(corpus, config, versions)
        schedule = Schedule(range(3), size=plan.size, name=plan.name, retries=0)
        work = flow.Flow(config, plan, workers, output, schedule, lambda work, result: None).run()
    assert work.units == 3 and shard_bytes(tmp_path).items() <= expected.items()
    assert "nothing was decoded ahead for 1 s: train-000000 (" in caplog.text and "decode for themselves" in caplog.text


def test_parts_make_the_bytes_of_one_farm(corpus, expected, tmp_path, start) -> None:
    config = farm_file(corpus, tmp_path)
    for index in (1, 0):
        finish(start(config, f"part={index}/2", "workers=1"))
    assert shard_bytes(tmp_path) == expected
    whole, *parts = (json.loads((tmp_path / "shards" / name).read_text()) for name in ("farm.json", *PART_FILES))
    assert whole["totals"]["clips"] == sum(part["totals"]["clips"] for part in parts) == UNITS * CLIPS_PER_UNIT
    assert all(part["totals"]["clips"] for part in parts)


def test_a_disk_that_fills_up_is_one_line_and_with_room_the_bytes_are_the_same(corpus, expected, tmp_path, start) -> None:
    config = farm_file(corpus, tmp_path)
    with small_disk(tmp_path / "shards", 100_000) as resize:
        driver = start(config)
        output, _ = driver.communicate(timeout=DEADLINE)
        [line] = [line for line in output.splitlines() if line.startswith("uniaudio: error: ")]
        assert driver.returncode == 2 and "could not be written | seen: " in line and "No space left on device" in line
        assert "free space" in line and "run the same command again" in line
        assert 0 < published(tmp_path) < UNITS + 1
        assert not list((tmp_path / "shards").glob(".*.tmp"))
        assert all(verify_shard(shard) == [] for shard in list_shards(tmp_path / "shards"))
        resize(2_000_000)
        finish(start(config))
        assert shard_bytes(tmp_path) == expected


def test_every_kind_of_bad_recording_is_counted_and_listed_and_the_good_ones_are_kept(tmp_path, start) -> None:
    """One clear line and a non-zero exit, since most are bad; with a higher budget the same command finds its work done."""
    tone = (0.3 * np.sin(np.arange(48_000) / 10)).astype(np.float32)
    soundfile.write(tmp_path / "8kHz.wav", tone[:8_000], 8_000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone[:44_100], tone[:44_100] / 2], axis=1), 44_100)
    soundfile.write(tmp_path / "cut.ogg", tone, 16_000)
    (tmp_path / "cut.ogg").write_bytes((tmp_path / "cut.ogg").read_bytes()[:-1_000])
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(16_000) == 9_000, np.nan, tone[:16_000]), 16_000, subtype="FLOAT")
    (tmp_path / "zero.wav").touch()
    (tmp_path / "text.wav").write_text("these are words")
    names = ("8kHz.wav", "stereo.wav", "cut.ogg", "nan.wav", "zero.wav", "text.wav", "missing.wav")
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps({"id": name, "audio_filepath": name}) + "\n" for name in names))
    config = farm_file(tmp_path / "manifest.jsonl", tmp_path)
    driver = start(config, "held_out_fraction=0")
    output, _ = driver.communicate(timeout=DEADLINE)
    [line] = [line for line in output.splitlines() if line.startswith("uniaudio: error: ")]
    assert driver.returncode == 2 and "dropped 5 of 7 clips (empty 1, missing 1, nan 1, not_audio 1, truncated 1)" in line
    assert "max_dropped_fraction" in line
    output = " ".join(finish(start(config, "held_out_fraction=0", "max_dropped_fraction=0.9")).split())
    for name, reason in zip(names[2:], ("truncated", "nan", "empty", "not_audio", "missing")):
        assert f"dropped {name}: {reason}: " in output
    assert sum(shard.read_sidecar()["clips"] for shard in list_shards(tmp_path / "shards")) == 2
    assert all(verify_shard(shard) == [] for shard in list_shards(tmp_path / "shards"))
