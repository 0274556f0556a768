"""What the farm itself costs, without models and recordings: planning a manifest of any size, handing out units, publishing shards.

    python tests/farm_scale.py OUT.csv --rows 10000 100000 1000000 10000000 30000000 [--units 5000] [--clips-per-unit 64]

Each size runs in a process of its own: a manifest of that many rows is written (20 s clips, 2,500 speakers), planned as the farm plans it,
and the first `--units` units go through real Ray workers that make zeros instead of decoding and tokenizing, and publish real shards. The
CSV has a row a size: seconds and CPU microseconds a row of planning, peak memory of the driver (its helpers counted), units a minute.
"""

import argparse
import csv
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from uniaudio.configs.farm import FarmConfig
from uniaudio.tokenize_farm.flow import Flow, ray_workers
from uniaudio.tokenize_farm.output import open_output
from uniaudio.tokenize_farm.schedule import Schedule
from uniaudio.tokenize_farm.summary import Totals
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, num_frames
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.worker import UnitWorker, make_tokenizers, tokenizer_versions

SECONDS, CODEBOOKS, SPEAKERS = 20.0, 8, 2_500
VERSIONS = {"audio": "zeros/1"}


class ZeroTokenizer:
    """Codes of the right shape, all zero."""

    name, version, view = "zeros", "1", "audio"

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        return [np.zeros((num_frames(clip.samples), CODEBOOKS), dtype=np.uint16) for clip in clips]


class SilentDecoder:
    """Clips of the manifest's length that nobody decoded."""

    def __init__(self) -> None:
        self._samples = np.zeros(int(SECONDS * 16_000), dtype=np.float32)

    def batches(self, rows: Sequence[Any], folder: Path, drops: Any, clock: Any, *, poison: Sequence[int] = ()) -> Iterator[list[Clip]]:
        yield [Clip(row, self._samples) for row in rows]


class FakeWorker(UnitWorker):
    """A worker without models; what it publishes, it publishes as the real one does."""

    def __init__(self, config: FarmConfig, versions: dict[str, str]) -> None:
        super().__init__(config, tokenizer_versions(make_tokenizers(config)))
        self._tokenizers, self._decoder, self._versions = {"audio": ZeroTokenizer()}, SilentDecoder(), versions


def write_manifest(path: Path, rows: int) -> None:
    """Rows as a corpus of read books has them, about 190 bytes each."""
    words = "it was the best of times it was the worst of times and more words than these"
    with path.open("w") as handle:
        for i in range(rows):
            speaker = f"{i % SPEAKERS:04d}"
            handle.write(
                f'{{"id": "book-{i:09d}", "audio_filepath": "{speaker}/{i:09d}.flac", "duration": {SECONDS}, "speaker": "{speaker}", '
                f'"language": "en", "text": "{words}"}}\n'
            )


class Watch:
    """A context: CPU seconds of this process and all below it, and the largest sum of their resident sizes, looked at often."""

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}
        self.peak_mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._begin = time.process_time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.cpu_seconds = time.process_time() - self._begin + sum(self._cpu.values())

    def _look(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.25):
            resident = me.memory_info().rss
            for child in me.children(recursive=True):
                with suppress(psutil.Error):
                    self._cpu[child.pid] = sum(child.cpu_times()[:2])
                    resident += child.memory_info().rss
            self.peak_mib = max(self.peak_mib, resident / 2**20)


def measure(folder: Path, rows: int, units: int, clips_per_unit: int) -> dict[str, float]:
    """One row of the CSV."""
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, rows)
    # No tokenizer of the config is made: the workers bring their own.
    fields = {"manifest": str(manifest), "output_dir": str(folder / "shards"), "tokenizers": {"midi": {"name": "f0"}}}
    config = FarmConfig.model_validate({**fields, "clips_per_unit": clips_per_unit})
    begin = time.perf_counter()
    with Watch() as watch:
        plan = Plan(manifest, config, VERSIONS)
    planning = time.perf_counter() - begin
    dispatched = dispatch(config, plan, min(units, len(plan))) if units else {}
    return {
        "rows": rows,
        "units": len(plan),
        "plan_seconds": round(planning, 2),
        "plan_cpu_us_a_row": round(watch.cpu_seconds / rows * 1e6, 2),
        "plan_peak_mib": round(max(watch.peak_mib, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)),
        **dispatched,
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def dispatch(config: FarmConfig, plan: Plan, units: int) -> dict[str, float]:
    """Publishes the first `units` units."""
    output, totals = open_output(config.output_dir), Totals()
    schedule = Schedule(np.arange(units), size=plan.size, name=plan.name, retries=0)
    with output.only_driver(), ray_workers(config, VERSIONS, jobs=units, kind=FakeWorker) as pool:
        while pool.running < pool.most:  # the workers' start is not what is measured
            for reference in pool.starting:
                pool.came_up(reference)
        begin, own = time.perf_counter(), time.process_time()
        flow = Flow(config, plan, pool, output, schedule, lambda work, result: totals.add(result.sidecar), rows=units)
        flow.run()
        seconds, own = time.perf_counter() - begin, time.process_time() - own
    assert totals.shards == units and len(output.shards()) == units
    return {
        "dispatched": units,
        "clips_a_unit": config.clips_per_unit,
        "units_a_minute": round(60 * units / seconds),
        "driver_cpu_ms_a_unit": round(own / units * 1e3, 3),
        "shard_mib": round(totals.bytes / totals.shards / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--units", type=int, default=2_000, help="0: plan only")
    parser.add_argument("--clips-per-unit", type=int, default=64)
    parser.add_argument("--scratch", type=Path, help="where manifests and shards lie meanwhile")
    parser.add_argument("--one", action="store_true", help="one size, in this process; prints JSON")
    options = parser.parse_args()
    if options.one:
        folder = Path(tempfile.mkdtemp(prefix="farm-scale-", dir=options.scratch))
        try:
            result = measure(folder, options.rows[0], options.units, options.clips_per_unit)
        finally:
            shutil.rmtree(folder)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    results = []
    for rows in options.rows:
        command = [sys.executable, __file__, str(options.out), "--one", "--rows", str(rows), "--units", str(options.units)]
        command += ["--clips-per-unit", str(options.clips_per_unit), *(["--scratch", str(options.scratch)] if options.scratch else [])]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(ended.stdout.strip().splitlines()[-1]))
        sys.stderr.write(f"{results[-1]}\n")
    with options.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(results[0]))
        writer.writeheader()
        writer.writerows(results)


if __name__ == "__main__":
    main()
