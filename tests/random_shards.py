"""Shards of random clips that serve all seven training tasks: for tests, and for timing a training without recordings.

Codes are drawn with Zipf's frequencies, so that a model has something to learn: their unigram entropy is well below log(1024).

    python tests/random_shards.py FOLDER --clips 2000 --codebooks 3 --text-width 768
"""

import argparse
from pathlib import Path

import numpy as np

from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard

KINDS = ("speech", "speech", "speech", "sound", "music", "singing")


def _zipf(rng: np.random.Generator, entries: int, shape: tuple[int, ...]) -> np.ndarray:
    weights = 1.0 / np.arange(1, entries + 1)
    return rng.choice(entries, size=shape, p=weights / weights.sum()).astype(np.uint16)


def random_clip(number: int, *, codebooks: int, text_width: int, frames: tuple[int, int]) -> TokenizedClip:
    """The clip that an integer names."""
    rng = np.random.default_rng(number)
    kind, count = KINDS[number % len(KINDS)], int(rng.integers(*frames))
    audio = _zipf(rng, 1024, (count, codebooks))
    views = {"audio": audio}
    meta: dict[str, object] = {"id": f"clip {number}", "kind": kind, "seconds": count / 50}
    if kind in ("speech", "singing"):
        meta["speaker"] = f"s{number % 12}"
        phones = max(2, count // 6)
        lasts = np.bincount(rng.integers(0, phones, count), minlength=phones).clip(1)
        aligned = np.stack([_zipf(rng, 306 if kind == "speech" else 68, (phones,)), lasts], axis=1).astype(np.uint16)
        views["phone" if kind == "speech" else "phone.singing"] = aligned
    if kind == "speech":
        views |= {"semantic": _zipf(rng, 500, (count,)), "audio.noisy": _zipf(rng, 1024, audio.shape)}
        views["audio.mixture"] = _zipf(rng, 1024, audio.shape)
    elif kind == "singing":
        views["midi"] = _zipf(rng, 138, (count,))
    else:
        views["text"] = rng.normal(size=(int(rng.integers(4, 40)), text_width)).astype(np.float16)
    return TokenizedClip(f"clip-{number:06d}", meta, views)


def write_random_shards(
    folder: Path, *, clips: int, valid_clips: int, codebooks: int, text_width: int, frames: tuple[int, int], clips_per_shard: int = 256
) -> Path:
    """Shards train-* and valid-* of random clips; returns the folder."""
    numbers = {"train": range(clips), "valid": range(clips, clips + valid_clips)}
    for split, chosen in numbers.items():
        for unit, first in enumerate(range(chosen.start, chosen.stop, clips_per_shard)):
            made = range(first, min(first + clips_per_shard, chosen.stop))
            made_clips = [random_clip(number, codebooks=codebooks, text_width=text_width, frames=frames) for number in made]
            write_shard(folder, split, unit, made_clips, tokenizers={"audio": "random/1"})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--valid-clips", type=int, default=100)
    parser.add_argument("--codebooks", type=int, default=3)
    parser.add_argument("--text-width", type=int, default=768)
    chosen = parser.parse_args()
    write_random_shards(
        chosen.folder,
        clips=chosen.clips,
        valid_clips=chosen.valid_clips,
        codebooks=chosen.codebooks,
        text_width=chosen.text_width,
        frames=(100, 600),
    )
