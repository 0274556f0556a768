"""From sources to rows: fetch, unpack, read, measure. Owns the registry of sources and the order of the manifest."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.corpus import debian
from uniaudio.tokenize_farm.corpus.source import MADE, Recording, Source, manifest_rows
from uniaudio.tokenize_farm.corpus.sources import asterisk, fillets, hedgewars, kde, read, sounds, sphinx, strategy_games, sung, voices
from uniaudio.tokenize_farm.corpus.split import HELD_OUT_PERCENT
from uniaudio.tokenize_farm.manifest import ManifestRow

_MODULES = (asterisk, fillets, hedgewars, kde, read, sounds, sphinx, strategy_games, sung, voices)
SOURCES: dict[str, Source] = {source.name: source for module in _MODULES for source in module.SOURCES}


@dataclass
class Corpus:
    """Rows by source, both in manifest order, and the recordings left out, counted by reason."""

    by_source: dict[str, list[ManifestRow]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> list[ManifestRow]:
        """All rows, in manifest order."""
        return [row for rows in self.by_source.values() for row in rows]


def find_sources(names: Iterable[str]) -> list[Source]:
    """Sources by name; UserError for an unknown one."""
    unknown = sorted(set(names) - set(SOURCES))
    if unknown:
        raise UserError("unknown source", seen=", ".join(unknown), allowed=", ".join(SOURCES), remedy="correct --source")
    return [SOURCES[name] for name in names]


def build_corpus(sources: Sequence[Source], cache: Path, *, percent: int = HELD_OUT_PERCENT, max_seconds: float = 30.0) -> Corpus:
    """Every recording of `sources` as rows. Fetches what `cache` lacks."""
    corpus = Corpus()
    seen: set[str] = set()
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        names = {name for source in sources for name in source.packages}
        fetching = progress.add_task("fetching packages", total=len(names))
        packages = debian.fetch_packages(names, cache, progress=lambda name: progress.advance(fetching))
        reading = progress.add_task("reading recordings", total=len(sources))
        for source in sources:
            progress.update(reading, description=f"reading {source.name}")
            folders = {name: debian.unpack(packages[name], cache, source.wanted, purpose=source.purpose) for name in source.packages}
            folders[MADE] = cache / MADE / source.name
            origin = f"debian:{source.packages[-1]} {packages[source.packages[-1]].version}"
            recordings: list[Recording] = list(source.read(folders))
            if not recordings:
                raise UserError(f"source {source.name} has no recordings", seen=origin, remedy="leave it out with --source")
            rows = manifest_rows(
                source.name, recordings, origin=origin, dropped=corpus.dropped, seen=seen, percent=percent, max_seconds=max_seconds
            )
            corpus.by_source[source.name] = list(rows)
            progress.advance(reading)
    return corpus
