"""200 files that mean harm or are merely broken, each written by a seed; what the farm's test and anyone's own decoder can be held against.

Every maker returns the file's name (below the folder, or a name that tries to leave it) and what may become of it: a set of reasons, with
"good" among them where a good clip is a right end too.
"""

import io
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

Expectation = tuple[str, set[str]]
Maker = Callable[[Path, int, random.Random], Expectation]

GOOD = {"good"}
BROKEN = {"truncated", "not_audio", "empty", "too_short", "missing", "nan", "silent", "too_long"}


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(max(1, int(seconds * rate))) / rate)
    return np.tile(wave[:, None], (1, channels)).astype(np.float32)


def encoded(kind: str, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, **options: object) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds, rate, channels), rate, format=kind, **options)
    return buffer.getvalue()


def put(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return name


def cut_short(folder: Path, i: int, rng: random.Random) -> Expectation:
    kind = rng.choice(["WAV", "FLAC", "OGG", "MP3"])
    data = encoded(kind)
    return put(folder, f"cut{i}.{kind.lower()}", data[: rng.randrange(1, len(data))]), BROKEN | GOOD  # an mp3 has no end to miss


def flipped(folder: Path, i: int, rng: random.Random) -> Expectation:
    kind = rng.choice(["WAV", "FLAC", "OGG", "MP3"])
    data = bytearray(encoded(kind))
    for _ in range(rng.randrange(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return put(folder, f"flip{i}.{kind.lower()}", bytes(data)), BROKEN | GOOD


def noise(folder: Path, i: int, rng: random.Random) -> Expectation:
    suffix = rng.choice(["wav", "flac", "ogg", "mp3", "opus", "m4a", "g722", "raw", "pcm", "txt"])
    expected = BROKEN | GOOD if suffix in ("mp3", "g722") else BROKEN  # any bytes are some G.722; mp3 looks for a frame anywhere
    return put(folder, f"noise{i}.{suffix}", rng.randbytes(rng.randrange(1, 20_000))), expected


def wrong_suffix(folder: Path, i: int, rng: random.Random) -> Expectation:
    kind, suffix = rng.choice([("WAV", "flac"), ("FLAC", "mp3"), ("OGG", "wav"), ("MP3", "ogg"), ("WAV", "txt")])
    return put(folder, f"wrong{i}.{suffix}", encoded(kind)), GOOD


def zero_bytes(folder: Path, i: int, rng: random.Random) -> Expectation:
    return put(folder, f"empty{i}.{rng.choice(['wav', 'flac', 'm4a', 'g722'])}", b""), {"empty"}


def header_alone(folder: Path, i: int, rng: random.Random) -> Expectation:
    """A wav that claims gigabytes and holds nothing."""
    header = b"RIFF" + struct.pack("<I", 0xFFFFFFF0) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 2, 48_000, 192_000, 4, 16)
    return put(folder, f"claim{i}.wav", header + b"data" + struct.pack("<I", rng.choice([0xFFFFFF00, 0xFFFFFFFF, 1 << 30]))), BROKEN


def not_a_number(folder: Path, i: int, rng: random.Random) -> Expectation:
    samples = tone(1.0)
    samples[rng.randrange(len(samples))] = rng.choice([np.nan, np.inf, -np.inf])
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    return put(folder, f"nan{i}.wav", buffer.getvalue()), {"nan"}


def huge_samples(folder: Path, i: int, rng: random.Random) -> Expectation:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(1.0) * 1e30, 16_000, format="WAV", subtype="FLOAT")
    return put(folder, f"loud{i}.wav", buffer.getvalue()), GOOD | {"nan"}


def very_short(folder: Path, i: int, rng: random.Random) -> Expectation:
    return put(folder, f"short{i}.flac", encoded("FLAC", rng.choice([0.0001, 0.01, 0.019, 0.1]))), {"too_short", "silent", "empty"}


def ten_hours(folder: Path, i: int, rng: random.Random) -> Expectation:
    """36,000 s of wav in a sparse file: 576 MB that take no room on the disk."""
    rate = 8_000
    length = 36_000 * rate * 2
    header = b"RIFF" + struct.pack("<I", length + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    path = folder / f"hours{i}.wav"
    with path.open("wb") as handle:
        handle.write(header + b"data" + struct.pack("<I", length))
        handle.truncate(len(header) + 8 + length)
    return path.name, {"too_long"}


def odd_rate(folder: Path, i: int, rng: random.Random) -> Expectation:
    rate = rng.choice([1, 7, 999, 1_000, 11_025, 192_000, 384_000, 2_000_000_000])
    header = b"RIFF" + struct.pack("<I", 36 + 64_000) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2 & 0xFFFFFFFF, 2, 16)
    pcm = (tone(2.0, 16_000)[:, 0] * 32_767).astype("<i2").tobytes()
    expected = GOOD | {"too_short", "too_long"} if 1_000 <= rate <= 768_000 else {"not_audio"}
    return put(folder, f"rate{i}.wav", header + b"data" + struct.pack("<I", len(pcm)) + pcm), expected


def many_channels(folder: Path, i: int, rng: random.Random) -> Expectation:
    channels = rng.choice([3, 6, 32, 255])
    return put(folder, f"channels{i}.wav", encoded("WAV", 1.0, 16_000, channels)), GOOD | {"not_audio"}


def odd_name(folder: Path, i: int, rng: random.Random) -> Expectation:
    name = rng.choice(
        ["naïve 😀", "日本語", "a\u202eb", "x" * 120, "new\nline", "quote'\"", "tab\t", "-rf", "$(touch pwned)", "%s%n", "a;b|c"]
    )
    return put(folder, f"{name}{i}.flac", encoded("FLAC")), GOOD


def leaving(folder: Path, i: int, rng: random.Random) -> Expectation:
    """Absolute names of things that are no recordings (relative `../` names are refused with the manifest)."""
    return rng.choice(
        ["/etc/passwd", "/dev/zero", "/dev/null", "/proc/self/mem", "/", "/etc", f"{folder}/../outside.txt", "/nowhere/x.wav"]
    ), BROKEN


def linked(folder: Path, i: int, rng: random.Random) -> Expectation:
    path = folder / f"link{i}.wav"
    path.symlink_to(rng.choice(["/etc/passwd", str(path), "/dev/urandom", "nowhere.wav", str(folder)]))
    return path.name, BROKEN


def archive(folder: Path, i: int, rng: random.Random) -> Expectation:
    """Zip and tar files (the zip would unpack to 200 MB), named as recordings."""
    buffer = io.BytesIO()
    if rng.random() < 0.5:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bomb:
            bomb.writestr("a.wav", bytes(2_000_000))
            bomb.writestr("../../b.wav", bytes(100))
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as bomb:
            member = tarfile.TarInfo("../../../c.wav")
            member.size = 2_000_000
            bomb.addfile(member, io.BytesIO(bytes(member.size)))
    return put(folder, f"bomb{i}.{rng.choice(['wav', 'flac', 'ogg', 'm4a'])}", buffer.getvalue()), BROKEN


class Explode:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def pickled(folder: Path, i: int, rng: random.Random) -> Expectation:
    data = pickle.dumps(Explode(folder.parent / "pwned"))
    return put(folder, f"pickle{i}.{rng.choice(['npy', 'wav', 'pkl', 'pt'])}", data), BROKEN


def silent(folder: Path, i: int, rng: random.Random) -> Expectation:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16_000), 16_000, format="FLAC")
    return put(folder, f"silent{i}.flac", buffer.getvalue()), {"silent"}


def gone(folder: Path, i: int, rng: random.Random) -> Expectation:
    return f"gone{i}.wav", {"missing"}


MAKERS: tuple[Maker, ...] = (
    *(cut_short, flipped, noise, wrong_suffix, zero_bytes, header_alone, not_a_number, huge_samples, very_short, odd_rate),
    *(many_channels, odd_name, leaving, linked, archive, pickled, silent, gone, ten_hours),
)


def write_hostile(folder: Path, count: int = 200, seed: int = 0) -> Iterator[Expectation]:
    """Writes `count` files below `folder` and yields name and right ends of each."""
    rng = random.Random(seed)
    for i in range(count):
        yield MAKERS[i % len(MAKERS)](folder, i, rng)
