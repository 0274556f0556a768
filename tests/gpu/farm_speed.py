"""How near the farm comes to the bare codec loop on a GPU, and to decoding alone from flac files.

    python tests/gpu/farm_speed.py OUT.json [--hours 6] [--gpus 1] [--decode-workers 14] [--form flac]

Writes tones of 10 s as flac, or as wav (audio already decoded; one file for a hundred rows: what is measured is decoding, not the disk),
then, in this order: the codec over clips held in memory (the bare loop), decoding alone in as many processes as the farm has decoders, and
the farm from the files with its stage table. `share_of_bound` is the farm against the smaller of the two.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from uniaudio.configs.farm import FarmConfig
from uniaudio.tokenize_farm.audio import load_audio
from uniaudio.tokenize_farm.farm import run_farm
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.codec import CodecTokenizer
from uniaudio.tokenize_farm.tokenizers.protocol import Clip

SECONDS, ROWS_A_FILE, CLIPS_A_UNIT = 10.0, 100, 256


def write_corpus(folder: Path, hours: float, form: str) -> Path:
    """Noise-like tones, which flac cannot pack to nothing."""
    rng = np.random.default_rng(0)
    rows = int(hours * 3600 / SECONDS)
    with (folder / "manifest.jsonl").open("w") as handle:
        for i in range(rows):
            name = f"{i // ROWS_A_FILE}.{form}"
            if i % ROWS_A_FILE == 0:
                soundfile.write(folder / name, rng.normal(0, 0.1, int(SECONDS * 16_000)).clip(-1, 1), 16_000, subtype="PCM_16")
            handle.write(json.dumps({"id": f"c{i}", "audio_filepath": name, "split": "train"}) + "\n")
    return folder / "manifest.jsonl"


def bare_loop(hours: float) -> float:
    """Times real time of the codec tokenizer over decoded clips, in calls of a unit."""
    tokenizer = CodecTokenizer({"num_codebooks": 8})
    samples = np.random.default_rng(0).normal(0, 0.1, int(SECONDS * 16_000)).astype(np.float32)
    clips = [Clip(ManifestRow(id=str(i), audio_filepath="x"), samples) for i in range(CLIPS_A_UNIT)]
    tokenizer.encode(clips)
    calls, begin = max(1, int(hours * 3600 / SECONDS / CLIPS_A_UNIT)), time.perf_counter()
    for _ in range(calls):
        tokenizer.encode(clips)
    return calls * CLIPS_A_UNIT * SECONDS / (time.perf_counter() - begin)


def _decode(path: Path, times: int) -> int:
    return sum(len(load_audio(path)) for _ in range(times))


def decoding_alone(folder: Path, workers: int) -> float:
    """Times real time of load_audio in `workers` processes, a second and more each."""
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".jsonl")
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_decode, [paths[0]] * workers, [1] * workers))
        begin = time.perf_counter()
        samples = sum(pool.map(_decode, [paths[i % len(paths)] for i in range(workers * 4)], [200] * workers * 4))
        return samples / 16_000 / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--decode-workers", type=int, default=14)
    parser.add_argument("--form", choices=("flac", "wav"), default="flac")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = write_corpus(folder, options.hours, options.form)
        bare = bare_loop(options.hours) * options.gpus
        alone = decoding_alone(folder, options.decode_workers)
        fields = {"manifest": str(manifest), "output_dir": str(folder / "shards"), "tokenizers": {"audio": {"name": "codec"}}}
        config = {**fields, "workers": options.gpus, "gpus_per_worker": 1.0, "decode_workers": options.decode_workers}
        farm = run_farm(FarmConfig.model_validate({**config, "clips_per_unit": CLIPS_A_UNIT}))["last_work"]
    result = {
        "bare_times_real_time": round(bare),
        "decoding_alone_times_real_time": round(alone),
        "farm_times_real_time": farm["times_real_time"],
        "share_of_bound": round(farm["times_real_time"] / min(bare, alone), 3),
        "farm": farm,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
