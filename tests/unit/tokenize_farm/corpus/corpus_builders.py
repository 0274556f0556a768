"""Small things the corpus tests are made of: a .deb built by hand, a fake apt-get, tones."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile


def tar_bytes(members: dict[str, bytes], compression: str = "xz", links: dict[str, str] | None = None) -> bytes:
    """A tar with regular files and symbolic links, names taken as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


def deb_bytes(data: bytes, name: str = "data.tar.xz") -> bytes:
    """An ar archive in the form of a .deb around a data member."""
    out = b"!<arch>\n"
    for member, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (name, data)):
        out += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    return out


def make_deb(path: Path, members: dict[str, bytes], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(deb_bytes(tar_bytes(members, **options)))  # type: ignore[arg-type]
    return path


def wav_bytes(seconds: float = 1.0, frequency: float = 440.0, rate: int = 8_000) -> bytes:
    out = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    soundfile.write(out, tone, rate, format="WAV")
    return out.getvalue()


def g722_bytes(seconds: float = 1.0, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, round(seconds * 8_000), dtype=np.uint8).tobytes()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


FAKE_APT = """#!/usr/bin/env python3
import hashlib, pathlib, shutil, sys
mirror = pathlib.Path({mirror!r})
arguments = sys.argv[1:]
(mirror / "log").open("a").write(" ".join(arguments) + chr(10))
private = any(a.startswith("-oDir::State::Lists=") for a in arguments)
words = [a for a in arguments if not a.startswith("-")]
if words[0] == "update":
    sys.exit(0)
debs = [] if (mirror / "stale").exists() and not private else list(mirror.glob("*.deb"))
for name in words[1:]:
    found = [deb for deb in debs if deb.name.split("_")[0] == name]
    if not found:
        sys.exit("E: Unable to locate package " + name)
    if "--print-uris" in arguments:
        data = found[0].read_bytes()
        wrong = (mirror / "wrong_index").exists()
        digest = "0" * 64 if wrong else hashlib.sha256(data).hexdigest()
        print("'http://mirror/" + found[0].name + "'", found[0].name, len(data), "SHA256:" + digest)
    else:
        shutil.copy(found[0], pathlib.Path.cwd())
"""


def make_mirror(folder: Path, packages: dict[str, bytes]) -> Path:
    """A folder with .deb files and a program `bin/apt-get` that serves them, and logs how it was called to `log`."""
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "apt-get"
    program.write_text(FAKE_APT.format(mirror=str(folder)))
    program.chmod(0o755)
    for name, data in packages.items():
        (folder / name).write_bytes(data)
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
