"""Speed of the data path beside webdataset's own loader, LitData and MosaicML Streaming, over the same clips in one run.

Packed batches ready for the model, in millions of frames a second of wall time, in process and with two workers. Ours builds seven tasks
(offsets, special tokens, prompts, masks); the others decode a clip's codes, cut them to three levels, and pack them into rows of 8192 by
next fit: what their users would have to write, and no task. Each library runs in the environment whose python is given, or is left out.

    python tests/loader_speed.py make FOLDER [--clips 40000]
    python tests/loader_speed.py run FOLDER --litdata VENV/bin/python --mosaic VENV/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROW, LEVELS = 8192, 3
SECONDS = 8.0
TASKS = ("tts", "vc", "se", "tse", "svs", "sound", "music")


def lengths(clips: int) -> np.ndarray:
    """(clips,) frames: lognormal, mean 450, 100 to 1500."""
    return np.clip(np.random.default_rng(0).lognormal(np.log(400), 0.5, clips), 100, 1500).astype(int)


def clip_codes(number: int, frames: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1024, (frames, 8)).astype(np.uint16)


def make(folder: Path, clips: int) -> None:
    """The clips as our shards (with the views of seven tasks), and, by each library's own writer, as its."""
    from uniaudio.tokenize_farm.index_build import index_folder
    from uniaudio.tokenize_farm.schema import TokenizedClip
    from uniaudio.tokenize_farm.shard_writer import write_shard

    kinds = ("speech", "speech", "speech", "sound", "music", "singing")
    frames = lengths(clips)
    rng = np.random.default_rng(1)
    for unit, first in enumerate(range(0, clips, 500)):
        made = []
        for number in range(first, min(first + 500, clips)):
            kind, count, audio = kinds[number % 6], int(frames[number]), clip_codes(number, int(frames[number]))
            views = {"audio": audio}
            if kind == "speech":
                views |= {
                    "phone": rng.integers(1, 306, (count // 6, 2)).astype(np.uint16),
                    "semantic": rng.integers(0, 500, count).astype(np.uint16),
                }
                views |= {"audio.noisy": audio[::-1].copy(), "audio.mixture": audio[::-1].copy()}
            elif kind == "singing":
                views |= {
                    "phone.singing": np.array([[number % 68, count]], np.uint16),
                    "midi": rng.integers(0, 138, count).astype(np.uint16),
                }
            else:
                views["text"] = rng.normal(size=(int(rng.integers(8, 40)), 768)).astype(np.float16)
            meta: dict[str, object] = {"id": str(number), "kind": kind, "seconds": count / 50, "speaker": f"s{number % 600}"}
            made.append(TokenizedClip(f"c{number:06d}", meta, views))
        write_shard(folder / "uniaudio", "train", unit, made, tokenizers={})
    index_folder(folder / "uniaudio")


def make_webdataset(folder: Path, clips: int) -> None:
    import webdataset

    frames = lengths(clips)
    (folder / "webdataset").mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / "webdataset" / "%06d.tar"), maxcount=500, verbose=0) as writer:
        for number in range(clips):
            writer.write({"__key__": f"c{number:06d}", "npy": clip_codes(number, int(frames[number]))})


def make_litdata(folder: Path, clips: int) -> None:
    from litdata.streaming.writer import BinaryWriter

    frames = lengths(clips)
    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="8MB")
    for number in range(clips):
        writer[number] = {"codes": clip_codes(number, int(frames[number]))}
    writer.done()
    writer.merge()


def make_mosaic(folder: Path, clips: int) -> None:
    from streaming import MDSWriter

    frames = lengths(clips)
    with MDSWriter(out=str(folder / "mosaic"), columns={"codes": "ndarray:uint16"}, size_limit=2**23) as writer:
        for number in range(clips):
            writer.write({"codes": clip_codes(number, int(frames[number]))})


def packed(clips: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Rows (ROW, LEVELS) int64 of whole clips, next fit."""
    row, end = np.zeros((ROW, LEVELS), np.int64), 0
    for codes in clips:
        if end + len(codes) > ROW:
            yield row
            row, end = np.zeros((ROW, LEVELS), np.int64), 0
        row[end : end + len(codes)] = codes[:, :LEVELS]
        end += len(codes)


def loader_of(name: str, folder: Path, workers: int) -> Iterator[int]:
    """Frames of one row or step after another."""
    import torch

    torch.set_num_threads(1)
    if name == "uniaudio":
        yield from _ours(folder, workers)
        return

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            return packed(_clips(name, folder))

    loader = torch.utils.data.DataLoader(Rows(), batch_size=None, num_workers=workers)
    while True:
        for row in loader:
            yield int(row.shape[0])


def _clips(name: str, folder: Path) -> Iterator[np.ndarray]:
    if name == "webdataset":
        import webdataset

        shards = sorted(str(path) for path in (folder / name).glob("*.tar"))
        data = (
            webdataset.WebDataset(shards, shardshuffle=100, workersplitter=webdataset.split_by_worker)
            .shuffle(1000)
            .decode()
            .to_tuple("npy")
        )
        return (codes for (codes,) in data)
    if name == "litdata":
        import litdata

        return (item["codes"] for item in litdata.StreamingDataset(str(folder / name), shuffle=True))
    from streaming import StreamingDataset

    return (item["codes"] for item in StreamingDataset(local=str(folder / name), shuffle=True, batch_size=1))


def _ours(folder: Path, workers: int) -> Iterator[int]:
    from uniaudio.configs import DataConfig, ModelConfig
    from uniaudio.pretrain.data.loader import make_loader
    from uniaudio.pretrain.data.vocabulary import load_vocabulary

    verify = not os.environ.get("NO_HASHES")
    data = DataConfig(
        shards=str(folder / "uniaudio"), tasks=TASKS, frames_per_row=ROW, rows_per_micro_batch=4, workers=workers, verify=verify
    )
    loader = make_loader(data, ModelConfig(text_width=768), load_vocabulary("paper"))
    for step in range(10**9):
        yield sum(batch.codes_BTQ.shape[0] * ROW for batch in loader.step_batches(step))


def measure(name: str, folder: Path, workers: int) -> dict[str, float]:
    """Millions of frames a second after a second's start."""
    frames, begin = 0, 0.0
    start = time.perf_counter()
    for count in loader_of(name, folder, workers):
        now = time.perf_counter()
        if not begin:
            if now > start + 1:
                begin = now
            continue
        frames += count
        if now > begin + SECONDS:
            return {"loader": name, "workers": workers, "million_frames_per_second": round(frames / (now - begin) / 1e6, 2)}  # type: ignore[dict-item]
    raise RuntimeError(f"{name} ended")


def run(folder: Path, pythons: dict[str, str]) -> None:
    """One line a loader and number of workers."""
    for name, python in pythons.items():
        for workers in (0, 2):
            command = [python, __file__, "one", str(folder), "--name", name, "--workers", str(workers)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            line = result.stdout.strip().splitlines()[-1] if result.returncode == 0 else f"{name}: {result.stderr.strip().splitlines()[-1]}"
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "one"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=40_000)
    parser.add_argument("--name", default="uniaudio", choices=["uniaudio", "webdataset", "litdata", "mosaic"])
    parser.add_argument("--workers", type=int, default=0)
    for library in ("litdata", "mosaic"):
        parser.add_argument(f"--{library}", help="python of an environment that has it")
    given = parser.parse_args()
    if given.what == "make":
        {"uniaudio": make, "webdataset": make_webdataset, "litdata": make_litdata, "mosaic": make_mosaic}[given.name](
            given.folder, given.clips
        )
    elif given.what == "one":
        sys.stdout.write(json.dumps(measure(given.name, given.folder, given.workers)) + "\n")
    else:
        here = {"uniaudio": sys.executable, "webdataset": sys.executable}
        run(given.folder, here | {name: value for name in ("litdata", "mosaic") if (value := getattr(given, name))})
