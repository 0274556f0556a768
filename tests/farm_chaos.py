"""The farm under seeded disaster: after the rerun the shards and their sha256 are an undisturbed run's, nothing lost, nothing twice.

    python tests/farm_chaos.py OUT.csv [--runs 50] [--first 0] [--seed 0] [--kinds worker driver node disk s3]

One Ray cluster of a head and a node on this machine serves all runs. Each run starts a farm (a driver in a process of its own), waits
until a random number of shards is there, and strikes one to three times at random moments: kills -9 a worker (they stand for GPU actors:
the same class, the same calls), a node with all its processes, or the driver; or the run's disk is too small at first (a tmpfs; needs
root), or its output is an S3 server that answers 500 or cuts connections to every fourth request. Then the same farm is started until it
says that it is done. The CSV has a row a run, written when the run ends: what struck, how often the farm was started, what was there before
the last start, and what failed. A run that failed does not end the script, but its exit status is 1. `--first N` leaves out the runs before
the N-th and adds to the CSV.
"""

import argparse
import csv
import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.s3_server import FakeS3, serve_s3
from uniaudio.configs.farm import FarmConfig
from uniaudio.tokenize_farm.output import open_output
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.worker import UnitWorker, make_tokenizers, tokenizer_versions

KINDS = ("worker", "driver", "node", "disk", "s3")
UNITS, CLIPS, STARTS, DEADLINE = 12, 3, 8, 300.0
SMALL_DISK, LARGE_DISK = "120k", "64m"
PRELOAD = ["uniaudio.tokenize_farm.farm", "mlflow", "tests.farm_chaos"]


def write_corpus(folder: Path) -> Path:
    """Gliding tones of a second, one of them missing; returns the manifest."""
    folder.mkdir(parents=True)
    seconds, rows = np.arange(16_000) / 16_000, []
    for i in range(UNITS * CLIPS):
        samples = 0.2 * np.sin(2 * np.pi * (100 + 10 * i) * seconds + 5 * np.sin(2 * np.pi * 2 * seconds))
        soundfile.write(folder / f"{i}.wav", samples.astype(np.float32), 16_000)
        rows.append({"id": f"clip{i:02d}", "audio_filepath": f"{i}.wav", "text": f"tone number {i}", "split": "train"})
    rows[5]["audio_filepath"] = "gone.wav"
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def make_config(manifest: Path, output_dir: str, address: str | None, decode_workers: int = 0) -> FarmConfig:
    tokenizers = {"midi": {"name": "f0"}, "phone": {"name": "phones"}}
    fields = {"manifest": str(manifest), "output_dir": output_dir, "tokenizers": tokenizers, "clips_per_unit": CLIPS, "workers": 2}
    return FarmConfig.model_validate({**fields, "ray_address": address, "retries": 10, "decode_workers": decode_workers})


def undisturbed(manifest: Path, folder: Path) -> dict[str, str]:
    """sha256 by file name of the shards as one worker makes them without Ray."""
    config = make_config(manifest, str(folder), None)
    versions = tokenizer_versions(make_tokenizers(config))
    worker = UnitWorker(config, versions)
    for unit in Plan(manifest, config, versions):
        worker.run(unit)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("train-*")}


def drive(config: FarmConfig) -> None:
    """The driver's process: exit code 0 where the farm is done, 2 for a fault that it names."""
    from uniaudio.errors import UserError
    from uniaudio.tokenize_farm.farm import run_farm

    os.setpgrp()
    faulthandler.register(signal.SIGUSR1)
    try:
        run_farm(config)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


class Nodes:
    """A Ray cluster: a head with room for one worker, and a node with room for another that can be killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        self._cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self._node = _patiently(lambda: self._cluster.add_node(num_cpus=1))
        self.address = self._cluster.address

    def kill_one(self) -> None:
        """kill -9 of the node's raylet and all that it started; another node comes in its place."""
        below = psutil.Process(_raylet(self._node)).children(recursive=True)
        self._cluster.remove_node(self._node, allow_graceful=False)
        for process in below:
            if process.is_running():
                process.kill()
        self._node = _patiently(lambda: self._cluster.add_node(num_cpus=1))

    def workers(self) -> list[psutil.Process]:
        """The farm's workers on both nodes."""
        nodes = (self._cluster.head_node, self._node)
        below = [child for node in nodes for child in psutil.Process(_raylet(node)).children(recursive=True)]
        return [child for child in below if child.name().startswith("ray::UnitWorker")]

    def close(self) -> None:
        self._cluster.shutdown()


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def _patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to come up, too few on a loaded machine."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:  # a bare Exception is what it raises
            if "timed out" not in str(error).lower():
                raise
    return start()


@contextmanager
def place_for(kind: str, folder: Path, store: FakeS3, rng: random.Random) -> Iterator[str]:
    """Where the run's shards go."""
    if kind == "s3":
        store.objects.clear()
        store.fail = lambda method, key: rng.choice(["500", "cut"]) if rng.random() < 0.25 else None
        yield "s3://chaos/shards"
    elif kind == "disk":
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(disk)], check=True)
        try:
            yield str(disk / "shards")
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)  # workers of a farm that hung may still be there
    else:
        yield str(folder / "shards")


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not what():
        if time.monotonic() > end:
            raise TimeoutError("waited in vain")
        time.sleep(0.02)


def published(output_dir: str, store: FakeS3) -> int:
    if output_dir.startswith("s3://"):
        with store.lock:
            return sum(key.endswith(".json") and "/train-" in key for key in store.objects)
    return len(list(Path(output_dir).glob("train-*.json")))


def contents(output_dir: str, store: FakeS3) -> dict[str, str]:
    if output_dir.startswith("s3://"):
        files = {key.rsplit("/", 1)[1]: data for key, data in store.objects.items() if "/train-" in key}
    else:
        files = {path.name: path.read_bytes() for path in Path(output_dir).glob("train-*")}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


class Run:
    """One farm and what befalls it."""

    def __init__(self, kind: str, seed: int, config: FarmConfig, nodes: Nodes, store: FakeS3) -> None:
        self.kind, self.config, self._nodes, self._store = kind, config, nodes, store
        self._rng = random.Random(seed)
        self._context = multiprocessing.get_context("forkserver")
        self.struck: list[str] = []
        self.starts, self.before_last = 0, 0

    def __call__(self) -> None:
        strikes = self._rng.randrange(1, 4)
        while self.starts < STARTS:
            self.starts, self.before_last = self.starts + 1, published(self.config.output_dir, self._store)
            driver = self._context.Process(target=drive, args=(self.config,))
            driver.start()
            while len(self.struck) < strikes and driver.is_alive() and self.kind in ("worker", "driver", "node"):
                self._wait_and_strike(driver)
            driver.join(DEADLINE)
            if driver.is_alive():
                os.kill(driver.pid, signal.SIGUSR1)  # it writes where it stands
                driver.join(2.0)
                driver.kill()
                driver.join()
                raise TimeoutError(f"the farm hangs, {published(self.config.output_dir, self._store)} shards are there")
            if driver.exitcode == 0:
                return
            if self.kind == "disk" and not self.struck:
                self.struck.append(f"disk full at {published(self.config.output_dir, self._store)} shards")
                disk = str(Path(self.config.output_dir).parent)
                subprocess.run(["mount", "-o", f"remount,size={LARGE_DISK}", disk], check=True)
        raise RuntimeError(f"not done after {STARTS} starts")

    def _wait_and_strike(self, driver: Any) -> None:
        enough = min(UNITS - 1, published(self.config.output_dir, self._store) + self._rng.randrange(0, UNITS // 2))
        wait_until(lambda: published(self.config.output_dir, self._store) >= enough or not driver.is_alive())
        time.sleep(self._rng.random() * 0.2)
        there = published(self.config.output_dir, self._store)
        if not driver.is_alive():
            return
        if self.kind == "driver":
            os.kill(driver.pid, signal.SIGKILL)
            driver.join()
        elif self.kind == "node":
            self._nodes.kill_one()
        else:
            wait_until(lambda: bool(self._nodes.workers()) or not driver.is_alive())
            for worker in self._nodes.workers()[:1]:
                worker.kill()
        self.struck.append(f"{self.kind} at {there} shards")


def chaos(numbers: range, seed: int, kinds: tuple[str, ...], scratch: Path) -> Iterator[dict[str, object]]:
    """A row a run."""
    manifest = write_corpus(scratch / "corpus")
    expected = undisturbed(manifest, scratch / "expected")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    store = FakeS3()
    with serve_s3(store) as variables:
        os.environ.update(variables)  # before Ray starts: its workers write there
        nodes = Nodes()
        try:
            for number in numbers:
                yield _one(number, seed, kinds[number % len(kinds)], scratch / str(number), manifest, expected, nodes, store)
        finally:
            nodes.close()


def _one(
    number: int, seed: int, kind: str, folder: Path, manifest: Path, expected: dict[str, str], nodes: Nodes, store: FakeS3
) -> dict[str, object]:
    folder.mkdir()
    begin, failed = time.monotonic(), ""
    decode_workers = number // len(KINDS) % 2
    with place_for(kind, folder, store, random.Random(f"{seed}-{number}-place")) as output_dir:
        run = Run(kind, seed * 1_000 + number, make_config(manifest, output_dir, nodes.address, decode_workers), nodes, store)
        try:
            run()
            store.fail = lambda method, key: None
            _check(output_dir, expected, store)
        except (AssertionError, RuntimeError, OSError, psutil.Error, subprocess.SubprocessError) as error:
            failed = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return {
        "run": number,
        "kind": kind,
        "decoding": "ahead" if decode_workers else "by the workers",
        "struck": "; ".join(run.struck) or ("a quarter of the requests failed" if kind == "s3" else "nothing: it was done before"),
        "starts": run.starts,
        "shards_before_last_start": run.before_last,
        "same_sha256": not failed,
        "seconds": round(time.monotonic() - begin, 1),
        "failed": failed,
    }


def _check(output_dir: str, expected: dict[str, str], store: FakeS3) -> None:
    assert contents(output_dir, store) == expected, "other shards than the undisturbed run's"
    farm = json.loads(open_output(output_dir).read("farm.json") or b"{}")
    assert farm["status"] == "finished" and farm["totals"]["clips"] == UNITS * CLIPS - 1, farm
    assert farm["totals"]["dropped_by_reason"] == {"missing": 1}, farm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=int, default=50, help="number of the last run plus one")
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    numbers, mode, failed = range(options.first, options.runs), "a" if options.first else "w", 0
    with tempfile.TemporaryDirectory(prefix="farm-chaos-") as scratch, options.out.open(mode, newline="") as handle:
        for row in chaos(numbers, options.seed, tuple(options.kinds), Path(scratch)):
            writer = csv.DictWriter(handle, fieldnames=list(row))
            if not handle.tell():
                writer.writeheader()
            writer.writerow(row)
            handle.flush()
            sys.stderr.write(f"{row}\n")
            failed += bool(row["failed"])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
