"""How near the farm comes to the codec on a GPU, and to decoding alone; and what its GPU worker's seconds go to.

    python tests/gpu/farm_speed.py OUT.json [--hours 72] [--gpus 1] [--decode-workers 14] [--forms wav flac] [--compiled]

Clips of 10 s of noise, as wav (audio already decoded) and flac; a file for a hundred rows: what is measured is decoding, not the disk.
    bare       one loop in one process: zeros on the GPU, each clip copied in, encoded, codes copied back (one array, always in the cache)
    device     the codec over a batch that lies on the GPU, its kernels by time; --compiled: the same under torch.compile, and its codes
    tokenizer  `CodecTokenizer` over a unit in memory, the next begun before the codes of one are awaited, as the farm's worker does
    decoding   `load_audio` alone in as many processes as the farm has decoders
    farm       from the files: whole (start included) and steady (from a quarter of the audio on); its stages, its GPU worker's seconds
`share_of_bound` is the farm's steady speed over the smaller of bare (times GPUs) and decoding alone.
Without a GPU it runs too, to be tried: --hours 0.02 --decode-workers 1.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from uniaudio.configs.farm import FarmConfig
from uniaudio.tokenize_farm.audio import load_audio
from uniaudio.tokenize_farm.clock import Clock
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.codec.weights import load_codec
from uniaudio.tokenize_farm.farm import run_farm
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.summary import Work
from uniaudio.tokenize_farm.tokenizers.codec import CodecTokenizer
from uniaudio.tokenize_farm.tokenizers.protocol import Clip
from uniaudio.tokenize_farm.worker import UnitResult, UnitWorker

CUDA = torch.cuda.is_available()
SECONDS, ROWS_A_FILE = 10.0, 100
CLIPS_A_UNIT, CLIPS_A_BATCH = (256, 30) if CUDA else (2, 2)
SAMPLES = int(SECONDS * 16_000)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, SAMPLES).clip(-1, 1).astype(np.float32)


def write_corpus(folder: Path, hours: float, form: str) -> Path:
    """Noise, which flac cannot pack to nothing."""
    folder.mkdir()
    with (folder / "manifest.jsonl").open("w") as handle:
        for i in range(int(hours * 3600 / SECONDS)):
            name = f"{i // ROWS_A_FILE}.{form}"
            if i % ROWS_A_FILE == 0:
                soundfile.write(folder / name, noise(i), 16_000, subtype="PCM_16")
            handle.write(json.dumps({"id": f"c{i}", "audio_filepath": name, "split": "train"}) + "\n")
    return folder / "manifest.jsonl"


def finished() -> float:
    """The time, when the GPU has nothing left to do."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def times_real_time(work: Callable[[], object], seconds_a_call: float, calls: int) -> float:
    work()
    begin = finished()
    for _ in range(calls):
        work()
    return round(calls * seconds_a_call / (finished() - begin))


def on_device(device: str, *, compiled: bool, calls: int) -> dict[str, Any]:
    codec = load_codec(device=device)
    batch = torch.from_numpy(np.stack([noise(i) for i in range(CLIPS_A_BATCH)])).to(device)
    mask = torch.ones(CLIPS_A_BATCH, int(SECONDS * 50), dtype=torch.bool, device=device)
    eager = codec.encode_frames(batch, None, 8)
    seconds = CLIPS_A_BATCH * SECONDS
    result: dict[str, Any] = {
        "equal_lengths": times_real_time(lambda: codec.encode_frames(batch, None, 8), seconds, calls),
        "masked": times_real_time(lambda: codec.encode_frames(batch, mask, 8), seconds, calls),
        "12_clips": times_real_time(lambda: codec.encode_frames(batch[:12], None, 8), min(12, CLIPS_A_BATCH) * SECONDS, calls),
        "kernels_ms": kernels(lambda: codec.encode_frames(batch, None, 8)),
    }
    if compiled:
        begin = finished()
        codec.encoder.compile(dynamic=True)
        codec.quantizer.encode = torch.compile(codec.quantizer.encode, dynamic=True)  # type: ignore[method-assign]
        codes = codec.encode_frames(batch, None, 8)
        first = finished() - begin
        begin = finished()
        alone = torch.cat([codec.encode_frames(batch[i : i + 1], None, 8) for i in range(2)])
        shorter = codec.encode_frames(batch[:7, :99_200].contiguous(), None, 8)
        result["compiled"] = {
            "seconds_to_compile": round(first, 1),
            "seconds_for_two_more_shapes": round(finished() - begin, 1),
            "equal_lengths": times_real_time(lambda: codec.encode_frames(batch, None, 8), seconds, calls),
            "codes_as_eager": float((codes == eager).float().mean()),
            "codes_alone_as_in_the_batch": float((alone == codes[:2]).float().mean()),
            "codes_of_the_first_5_s_as_of_a_shorter_clip": float((shorter[:, :250] == codes[:7, :250]).float().mean()),
        }
    return result


def kernels(work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of the ten kernels that take most, and of all together."""
    activity = torch.profiler.ProfilerActivity.CUDA if CUDA else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        work()
        finished()
    spent = {
        event.key[:90]: (event.self_device_time_total if CUDA else event.self_cpu_time_total) / 1e3 for event in profile.key_averages()
    }
    longest = sorted(spent.items(), key=lambda item: -item[1])[:10]
    return {"all": round(sum(spent.values()), 3)} | {name: round(milliseconds, 3) for name, milliseconds in longest}


def plain(codec: UniversalCodec, clips: Sequence[np.ndarray], device: str) -> None:
    """What anyone would write."""
    for begin in range(0, len(clips), CLIPS_A_BATCH):
        batch = clips[begin : begin + CLIPS_A_BATCH]
        lengths = torch.tensor([len(clip) for clip in batch], device=device)
        samples = torch.zeros(len(batch), int(lengths.max()), device=device)
        for row, clip in zip(samples, batch):
            row[: len(clip)] = torch.from_numpy(clip)
        codec.encode(samples, lengths, 8).cpu().numpy().astype(np.uint16)


def bare_loop(device: str, units: int) -> float:
    codec, clips = load_codec(device=device), [noise(0)] * CLIPS_A_UNIT
    return times_real_time(lambda: plain(codec, clips, device), CLIPS_A_UNIT * SECONDS, units)


def tokenizer_alone(units: int) -> float:
    tokenizer = CodecTokenizer({"num_codebooks": 8})
    clips = [Clip(ManifestRow(id=str(i), audio_filepath="x"), noise(i)) for i in range(CLIPS_A_UNIT)]
    tokenizer.encode(clips)
    begin, before = finished(), tokenizer.begin(clips)
    for _ in range(units - 1):
        after = tokenizer.begin(clips)
        before()
        before = after
    before()
    return round(units * CLIPS_A_UNIT * SECONDS / (finished() - begin))


def _decode(path: Path, times: int) -> int:
    return sum(len(load_audio(path)) for _ in range(times))


def decoding_alone(folder: Path, workers: int, times: int = 150) -> float:
    """Times real time of load_audio in `workers` processes."""
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".jsonl")
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_decode, [paths[0]] * workers, [1] * workers))
        begin = time.perf_counter()
        samples = sum(pool.map(_decode, [paths[i % len(paths)] for i in range(workers * 4)], [times] * workers * 4))
        return round(samples / 16_000 / (time.perf_counter() - begin))


class TimedWorker(UnitWorker):
    """Writes beside the shards what its seconds went to."""

    def ready(self) -> str:
        where = super().ready()
        self.clock, self.marks, self.reporting = Clock(), deque(), threading.Lock()
        self.device_seconds = self.since = self.until = 0.0
        encoder = self._tokenizers["audio"]._encoder
        for step, name in (("wait_for_gpu", "_wait_for_room"), ("fill", "_fill"), ("copy", "_copy"), ("launch", "_encode")):
            setattr(encoder, name, self.timed(step, getattr(encoder, name)))
        return where

    def timed(self, step: str, work: Callable) -> Callable:
        def run(*values: Any) -> Any:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if CUDA and step == "launch" else []
            for event in events[:1]:
                event.record()
            with self.clock.step(step):
                result = work(*values)
            for event in events[1:]:
                event.record()
                self.marks.append(events)
            return result

        return run

    def _tokenize(self, *values: Any) -> Any:
        self.since = self.since or time.perf_counter()
        with self.clock.step("tokenize"):
            result = super()._tokenize(*values)
        self.until = time.perf_counter()
        return result

    def run(self, *values: Any) -> UnitResult:
        result = super().run(*values)
        with self.reporting:
            while self.marks and self.marks[0][1].query():
                begin, end = self.marks.popleft()
                self.device_seconds += begin.elapsed_time(end) / 1e3
            seconds = self.clock.seconds | {"wall": self.until - self.since, "gpu_encodes": self.device_seconds}
            seconds["wait_for_units"] = seconds["wall"] - seconds["tokenize"]
            parts = ("wait_for_gpu", "fill", "copy", "launch")
            seconds["rest_of_tokenize"] = seconds["tokenize"] - sum(seconds[step] for step in parts)
            path = Path(self._config.output_dir).parent / f"worker_{os.getpid()}.json"
            path.write_text(json.dumps({step: round(value, 3) for step, value in sorted(seconds.items())}))
        return result


def farm(manifest: Path, gpus: int, decode_workers: int) -> dict[str, Any]:
    """The farm's own numbers, its steady speed, its workers' seconds."""
    folder, marks = manifest.parent, []

    def progress(work: Work, rows: int) -> None:
        marks.append((work.seconds, work.audio_seconds))

    config = {"manifest": str(manifest), "output_dir": str(folder / "shards"), "tokenizers": {"audio": {"name": "codec"}}}
    config |= {
        "workers": max(1, gpus),
        "gpus_per_worker": float(gpus > 0),
        "decode_workers": decode_workers,
        "clips_per_unit": CLIPS_A_UNIT,
    }
    work = run_farm(FarmConfig.model_validate(config), progress=progress, worker=TimedWorker)["last_work"]
    steady = [mark for mark in marks if mark[1] >= work["audio_seconds"] / 4]
    (begin, done), (end, all_done) = steady[0], steady[-1]
    first = next(seconds for seconds, audio in marks if audio)
    return {
        "steady_times_real_time": round((all_done - done) / (end - begin)) if end > begin else None,
        "seconds_to_the_first_unit": round(first, 2),
        **work,
        "workers_seconds": [json.loads(path.read_text()) for path in sorted(folder.glob("worker_*.json"))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=72.0)
    parser.add_argument("--gpus", type=int, default=int(CUDA))
    parser.add_argument("--decode-workers", type=int, default=14)
    parser.add_argument("--forms", nargs="+", choices=("flac", "wav"), default=["wav", "flac"])
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    device, begun = "cuda" if CUDA else "cpu", time.perf_counter()
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "cores": os.cpu_count(),
    }

    def tell(**values: Any) -> None:
        result.update(values, seconds=round(time.perf_counter() - begun, 1))
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        sys.stdout.write(json.dumps(values) + f" after {result['seconds']} s\n")
        sys.stdout.flush()

    units = max(2, round(options.hours / 6 * 3600 / (CLIPS_A_UNIT * SECONDS)))  # a sixth of the farm's hours
    bare = bare_loop(device, units)
    tell(bare_times_real_time=bare)
    tell(device_times_real_time=on_device(device, compiled=options.compiled, calls=20 if CUDA else 1))
    alone = tokenizer_alone(units)
    tell(tokenizer_times_real_time=alone)
    with tempfile.TemporaryDirectory() as scratch:
        for form in options.forms:
            manifest = write_corpus(Path(scratch) / form, options.hours, form)
            decoding = decoding_alone(manifest.parent, options.decode_workers)
            whole = farm(manifest, options.gpus, options.decode_workers)
            steady, gpus = whole["steady_times_real_time"] or whole["times_real_time"], max(1, options.gpus)
            shares = {
                "share_of_bound": round(steady / min(bare * gpus, decoding), 3),
                "share_of_tokenizer": round(steady / (alone * gpus), 3),
                "share_of_decoding": round(steady / decoding, 3),
            }
            tell(**{form: {"decoding_alone_times_real_time": decoding, **shares, "farm": whole}})


if __name__ == "__main__":
    main()
