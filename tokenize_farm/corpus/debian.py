"""Debian packages into a cache folder, without root: `apt-get download`, private package lists where the system's are empty or old.

Owns the cache and every hash check. Trust: apt checks the index's signature; the index names the SHA-256; a pinned version must also
have the pinned SHA-256. What is in the cache is used again without network, after its hash is checked.

    CACHE/debs/NAME_VERSION_ARCH.deb (.sha256 beside it)    CACHE/unpacked/...    CACHE/apt/ (private lists)
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from uniaudio.atomic import publish_bytes, publish_directory
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.corpus.archive import unpack_deb
from uniaudio.tokenize_farm.corpus.pins import PINS

log = get_logger("uniaudio.corpus")

_URI_LINE = re.compile(r"^'[^']+' (?P<file>[\w.+~%-]+_[\w.+~%-]+_\w+\.deb) \d+ SHA256:(?P<sha256>[0-9a-f]{64})$", re.MULTILINE)
_APT_SECONDS = 1_800


@dataclass(frozen=True)
class Package:
    """A package file whose SHA-256 was checked."""

    name: str
    version: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class _Offer:
    """What apt's index says about a package."""

    file: str
    sha256: str


def fetch_packages(names: Iterable[str], cache: Path, *, progress: Callable[[str], None] = lambda name: None) -> dict[str, Package]:
    """Every package of `names`, from the cache or by apt-get. `progress` is called with each name when it is there.

    Raises UserError where apt-get is missing or cannot fetch a package, and where a hash differs.
    """
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    packages: dict[str, Package] = {}
    missing = []
    for name in sorted(set(names)):
        package = _cached(name, debs)
        if package is None:
            missing.append(name)
        else:
            packages[name] = package
            progress(name)
    if missing:
        apt = _Apt(cache / "apt")
        for name, offer in apt.offers(missing).items():
            packages[name] = _download(apt, name, offer, debs)
            progress(name)
    return packages


def unpack(package: Package, cache: Path, wanted: Callable[[str], bool], *, purpose: str) -> Path:
    """The folder with the wanted files of a package; unpacked once for each `purpose`, published whole."""
    folder = cache / "unpacked" / f"{package.name}-{package.sha256[:12]}-{purpose}"
    if not folder.is_dir():
        with publish_directory(folder) as temporary:
            unpack_deb(package.path, temporary, wanted)
    return folder


def _cached(name: str, debs: Path) -> Package | None:
    """A package already in the cache, its hash checked again; a file that fails the check is deleted."""
    for path in sorted(debs.glob(f"{name}_*.deb")):
        version = path.name.split("_")[1]
        recorded = path.with_name(path.name + ".sha256")
        expected = _pinned(name, version) or (recorded.read_text().strip() if recorded.is_file() else None)
        if expected is None:
            continue  # an unknown version somebody put here: nothing vouches for it
        if sha256_of(path) == expected:
            return Package(name, version, path, expected)
        log.warning("%s does not have its SHA-256 %s; it is fetched again", path, expected)
        path.unlink()
    return None


def _pinned(name: str, version: str) -> str | None:
    pin = PINS.get(name)
    return pin[1] if pin and pin[0] == version else None


def _download(apt: "_Apt", name: str, offer: _Offer, debs: Path) -> Package:
    """Fetches one package, checks its SHA-256 against index and pin, and only then gives it its name in the cache."""
    version = offer.file.split("_")[1]
    pinned = _pinned(name, version)
    if pinned and pinned != offer.sha256:
        raise UserError(f"package {name} {version} is not the one that is pinned", seen=offer.sha256, allowed=pinned, remedy=_NO_APT)
    if not pinned:
        log.warning("package %s: version %s, pinned %s; texts and clips may differ", name, version, PINS.get(name, ("none",))[0])
    path = debs / offer.file
    with tempfile.TemporaryDirectory(dir=debs, prefix=".download-") as temporary:
        apt.download(name, Path(temporary))
        found = Path(temporary) / offer.file
        if not found.is_file():
            raise UserError(f"apt-get did not write {offer.file}", remedy=_NO_APT)
        seen = sha256_of(found)
        if seen != offer.sha256:
            raise UserError(
                f"package {offer.file} has another SHA-256 than the index says", seen=seen, allowed=offer.sha256, remedy="try again"
            )
        publish_bytes(path.with_name(path.name + ".sha256"), (seen + "\n").encode())
        found.replace(path)
    return Package(name, version, path, offer.sha256)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_NO_APT = "give your own recordings with --audio-dir DIR, or put the .deb files into the debs folder of --cache"


class _Apt:
    """apt-get as an ordinary user. The system's package lists are tried first; `private` lists are fetched where they do not do."""

    def __init__(self, private: Path) -> None:
        program = shutil.which("apt-get")
        if program is None:
            raise UserError("apt-get is not on this machine, and the recordings come from Debian packages", remedy=_NO_APT)
        self._program = program
        self._private = private.absolute()
        self._options: list[str] = []

    def offers(self, names: list[str]) -> dict[str, _Offer]:
        """What the index has of each package; UserError naming those it lacks."""
        found, _ = self._ask(names)
        error = ""
        if set(found) != set(names):
            error = self._use_private_lists()
            found, said = self._ask(names)
            error = said or error
        lacking = sorted(set(names) - set(found))
        if lacking:
            last = error.strip().splitlines()[-1] if error.strip() else "not in the package index"
            raise UserError(f"apt-get cannot find {', '.join(lacking)}", seen=last, remedy=_NO_APT)
        return {name: found[name] for name in names}

    def download(self, name: str, folder: Path) -> None:
        """Writes the package into `folder`; tries once more with fresh lists, since a mirror drops old versions."""
        result = self._run("download", name, folder=folder)
        if result.returncode and not self._options:
            self._use_private_lists()
            result = self._run("download", name, folder=folder)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"apt-get cannot download {name}", seen=last, remedy=_NO_APT)

    def _ask(self, names: list[str]) -> tuple[dict[str, _Offer], str]:
        found: dict[str, _Offer] = {}
        said = ""
        for asked in [names, *([name] for name in names)]:
            if set(found) == set(names):
                break
            result = self._run("download", "--print-uris", *asked)  # all at once gives nothing where one name is unknown
            said = result.stderr or said
            for match in _URI_LINE.finditer(result.stdout):
                found[match["file"].split("_")[0]] = _Offer(match["file"], match["sha256"])
        return found, said

    def _use_private_lists(self) -> str:
        """Fetches package lists into the private folder and uses them from here on; returns what apt-get complained of."""
        log.info("fetching package lists into %s", self._private)
        for folder in ("lists/partial", "cache/archives/partial"):
            (self._private / folder).mkdir(parents=True, exist_ok=True)
        self._options = [
            f"-oDir::State::Lists={self._private / 'lists'}",
            f"-oDir::Cache={self._private / 'cache'}",
            "-oAPT::Sandbox::User=root",
            "-oDebug::NoLocking=1",
        ]
        return self._run("update").stderr

    def _run(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [self._program, "-q", "-oAcquire::Retries=2", "-oAcquire::http::Timeout=30", *self._options, *arguments]
        try:
            return subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "LC_ALL": "C"},
                capture_output=True,
                text=True,
                timeout=_APT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"apt-get gave no answer in {_APT_SECONDS} s", seen=" ".join(arguments), remedy=_NO_APT) from error
