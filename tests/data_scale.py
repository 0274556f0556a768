"""How long the data path takes to open 30 million clips in 100,000 shards, and to go on in the middle of an epoch of them.

The merged index is made of random columns as `uniaudio shards index` would write it (about 3 GB); no shard is there, and none is read.

    python tests/data_scale.py make FOLDER [--clips 30000000 --shards 100000]
    python tests/data_scale.py open FOLDER
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.pretrain.data.loader import DataPosition, make_loader
from uniaudio.pretrain.data.plan import address
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.tokenize_farm import index_merge, index_table

TASKS = ("tts", "vc", "sound")


def make(folder: Path, clips: int, shards: int) -> dict[str, float]:
    """Writes the index; seconds of its last step, merging and writing."""
    (folder / "index").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    counts = np.full(shards, clips // shards, np.int64)
    frames = np.clip(rng.lognormal(np.log(400), 0.5, clips), 100, 1500).astype(np.int32)
    sound = np.arange(clips) % 4 == 3
    views = ("audio", "phone", "semantic", "text")
    rows = np.stack([frames, np.where(sound, 0, frames // 6), np.where(sound, 0, frames), np.where(sound, 24, 0)]).astype(np.int32)
    columns = np.where(rows > 0, np.array([8, 2, 1, 768], np.uint16)[:, None], 0).astype(np.uint16)
    part = index_merge.Part(
        shards={
            "units": np.arange(shards, dtype=np.int64),
            "tar_bytes": np.full(shards, 2**22, np.int64),
            "tar_sha256": np.zeros((shards, 32), np.uint8),
            "index_sha256": rng.integers(0, 256, (shards, 32), np.uint8),
            "counts": counts,
        },
        clips={"kinds": sound.astype(np.uint8), "seconds": frames / np.float32(50), "key_lengths": np.full(clips, 16, np.int64)},
        speakers=np.where(sound, -1, np.arange(clips) // 400).astype(np.int32),
        names=[f"s{number}" for number in range(clips // 400 + 1)],
        key_bytes=np.full(16 * clips, ord("k"), np.uint8),
        views=views,
        places={"offsets": np.where(rows > 0, 1024, -1).astype(np.int64), "rows": rows, "columns": columns},
    )
    begin = time.perf_counter()
    table = index_merge.merge(str(folder), "train", [part])
    merged = time.perf_counter()
    index_table.write_table(table, index_table.table_path(folder, "train"), mtime=folder.stat().st_mtime_ns)
    size = index_table.table_path(folder, "train").stat().st_size
    return {"clips": clips, "shards": shards, "merge_s": merged - begin, "write_s": time.perf_counter() - merged, "gigabytes": size / 1e9}


def open_index(folder: Path) -> dict[str, float]:
    """Seconds to open, to plan the first step, and, opened anew, to go on in the middle of an epoch."""
    found: dict[str, float] = {}
    data = DataConfig(shards=str(folder), tasks=TASKS, frames_per_row=2048, rows_per_micro_batch=4)
    for name, middle in (("beginning", False), ("middle", True)):
        begin = time.perf_counter()
        loader = make_loader(data, ModelConfig(text_width=768), load_vocabulary("paper"))
        opened = time.perf_counter()
        loader.position = DataPosition(1000, address(0, loader.planner.num_blocks // 2, 7)) if middle else DataPosition()
        rows = loader.step_rows(loader.position.step)
        found |= {f"{name}_open_s": opened - begin, f"{name}_first_step_s": time.perf_counter() - opened}
        found |= {"documents_of_an_epoch": float(loader.planner.service.counts.sum()), "documents_of_the_step": float(len(rows.documents))}
        loader.close()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "open"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=30_000_000)
    parser.add_argument("--shards", type=int, default=100_000)
    given = parser.parse_args()
    result = make(given.folder, given.clips, given.shards) if given.what == "make" else open_index(given.folder)
    sys.stdout.write(json.dumps({key: round(value, 3) for key, value in result.items()}) + "\n")
