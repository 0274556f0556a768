"""`uniaudio tokenize` and `uniaudio shards`."""

import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.configs.section import LARGEST_SEED
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.index import list_shards
from uniaudio.tokenize_farm.index_build import index_folder, index_store
from uniaudio.tokenize_farm.manifest import is_address, read_manifest, write_manifest
from uniaudio.tokenize_farm.output import open_output
from uniaudio.tokenize_farm.planner import Rates, plan_farm
from uniaudio.tokenize_farm.storage import Store
from uniaudio.tokenize_farm.summary import Work, read_farm_file, total
from uniaudio.tokenize_farm.verify import verify_folder, verify_tables

_SHOWN_DROPS = 20


class _FarmOrCommand(click.Group):
    """`tokenize FARM ...` runs a farm; the name of a subcommand runs that."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_FarmOrCommand, context_settings={"help_option_names": ["-h", "--help"]})
def tokenize() -> None:
    """Turn a manifest into shards of codes on a Ray farm. FARM is a YAML file, or the name of a shipped one; key=value overrides follow.

    Killed anywhere and run again, it makes only what is missing, with the same bytes.

    Example: uniaudio tokenize demo manifest=work/demo/manifest.jsonl output_dir=work/demo/shards
    """


@tokenize.command()
@click.argument("farm")
@click.argument("overrides", nargs=-1)
@click.option("--replace", is_flag=True, help="Make shards again that came of another manifest or other tokenizers.")
@click.option("--json", "as_json", is_flag=True, help="Print farm.json instead of tables.")
def run(farm: str, overrides: tuple[str, ...], replace: bool, as_json: bool) -> None:
    """Run a farm: the default, `run` may be left out."""
    config = load_config(FarmConfig, farm, folder="farms", overrides=overrides)
    from uniaudio.tokenize_farm.farm import run_farm  # ray: only where a farm runs

    with farm_progress() as progress:
        content = run_farm(config, replace=replace, progress=progress)
    if as_json:
        click.echo(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
        return
    console = Console()
    for table in summary_tables(content):
        console.print(table)
    show_drops(console, content["totals"])
    console.print(f"shards and farm.json in {config.output_dir}; MLflow run {content['run_id']}", highlight=False, soft_wrap=True)


class _Bar(Progress):
    """A progress bar with the stages below it."""

    work: Work | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.work is not None and self.work.units:
            table = Table("stage", "busy", title=f"bound by {self.work.bound_by}", title_justify="left")
            for stage, share in self.work.busy().items():
                table.add_row(stage, f"{share:.0%}")
            yield table


class farm_progress:
    """A progress bar on standard error with clips/s, times real time and how busy each stage is; call it with (work, rows to do)."""

    def __init__(self) -> None:
        columns = (TextColumn("tokenize"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
        self._bar = _Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task("tokenize", total=None, speed="starting workers")

    def __enter__(self) -> "farm_progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, work: Work, rows: int) -> None:
        self._bar.work = work
        seconds = max(work.seconds, 1e-9)
        speed = f"{work.clips / seconds:.1f} clips/s, {work.audio_seconds / seconds:.1f} x real time" if work.units else "starting workers"
        self._bar.update(self._task, total=rows, completed=work.rows, speed=speed)


def summary_tables(content: dict) -> list[Table]:
    """What `farm.json` says, for people: by kind, by reason of drop, and speeds."""
    totals, last = content["totals"], content["last_work"]
    kinds = Table("kind", "clips", "minutes", title="shards")
    for kind, clips in totals["clips_by_kind"].items():
        kinds.add_row(kind, str(clips), f"{totals['seconds_by_kind'][kind] / 60:.1f}")
    for split, clips in totals["clips_by_split"].items():
        kinds.add_row(f"split {split}", str(clips), "")
    for reason, count in totals["dropped_by_reason"].items():
        kinds.add_row(f"dropped: {reason}", str(count), "", style="yellow")
    title = f"last work: {last['workers']} workers, {last['seconds']:.0f} s, bound by {last.get('bound_by', 'nothing')}"
    speeds = Table("step", "x real time, one worker", "busy", title=title)
    speeds.add_row("whole farm, all workers", f"{last['times_real_time']:.1f}", "", style="bold")
    for step, times in last["times_real_time_by_step"].items():
        share = last.get("busy", {}).get(step)
        speeds.add_row(step, f"{times:.1f}", "" if share is None else f"{share:.0%}")
    return [kinds, speeds]


def show_drops(console: Console, totals: dict) -> None:
    """One line a dropped clip, the first few."""
    for drop in totals["dropped"][:_SHOWN_DROPS]:
        console.print(
            f"dropped {drop['id']}: {drop['reason']}: {drop['detail']}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    if len(totals["dropped"]) > _SHOWN_DROPS:
        console.print(f"... and {len(totals['dropped']) - _SHOWN_DROPS} more, in farm.json")


@tokenize.command()
@click.argument("farm")
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The manifest to write.")
def pool(farm: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write the recordings that FARM mixes its clips with as a manifest of their own, so that workers need not read the whole one.

    Example: uniaudio tokenize pool full_corpus manifest=corpora/manifest.jsonl --out corpora/pool.jsonl
    """
    from uniaudio.tokenize_farm.simulate.simulator import pool_rows

    rows = pool_rows(load_config(FarmConfig, farm, folder="farms", overrides=overrides))
    write_manifest(out, [row.model_copy(update={"split": split}) for row, split in rows])
    click.echo(f"{out}: {len(rows)} recordings; use it with simulate.pool={out}")


@tokenize.command("plan")
@click.argument("trial")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), required=True, help="Hours of audio to tokenize.")
@click.option("--cores", type=click.IntRange(1), required=True, help="CPU cores to do it on.")
@click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs to do it on.")
@click.option("--clips-per-unit", type=click.IntRange(1), help="Clips a shard. [default: the trial's]")
@click.option("--clip-seconds", type=click.FloatRange(min=0, min_open=True), help="Length of an average clip. [default: the trial's]")
@click.option("--core-price", type=float, default=0.0, help="Money an hour of a core.")
@click.option("--gpu-price", type=float, default=0.0, help="Money an hour of a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def plan(trial: str, hours: float, as_json: bool, **options: Any) -> None:
    """What HOURS of audio take, worked out from a farm that ran on some minutes of them: TRIAL is its output folder or address.

    Example: uniaudio tokenize plan work/demo/shards --hours 165000 --cores 128
    """
    content = plan_farm(Rates.of(read_farm_file(open_output(trial))), hours=hours, **options)
    if as_json:
        click.echo(json.dumps(content, indent=1))
        return
    table = Table("what", "plan", title=f"{hours:,.0f} hours of audio")
    for name, value in content.items():
        shown = ", ".join(f"{step} {each:,}" for step, each in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), f"{shown:,}" if isinstance(shown, int | float) else shown or "none")
    Console().print(table)


@tokenize.command("fit-semantic")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File of centres to write (safetensors).")
@click.option("--units", default=500, show_default=True, type=click.IntRange(2, 65_536))
@click.option("--frames-per-clip", default=200, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, LARGEST_SEED))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="More than one: on Ray. The result is the same.")
@click.option("--ray-address", help="A running Ray cluster; every node must see recordings and --out.")
def fit_semantic(manifest: Path, out: Path, units: int, frames_per_clip: int, seed: int, workers: int, ray_address: str | None) -> None:
    """Fit the centres of the embedded semantic units on the speech of MANIFEST. Killed and run again, it goes on.

    Example: uniaudio tokenize fit-semantic work/demo/manifest.jsonl --out my_units.safetensors
    """
    from uniaudio.tokenize_farm.tokenizers.fit_semantic import fit_semantic as fit

    run_fit = partial(fit, read_manifest(manifest), out, units=units, frames_per_clip=frames_per_clip, seed=seed)
    if workers == 1 and ray_address is None:
        result = run_fit()
    else:
        from uniaudio.tokenize_farm.ray_map import ray_map  # ray: only where it is asked for

        with ray_map(workers, ray_address) as mapper:
            result = run_fit(mapper=mapper)
    click.echo(f"{out}: {units} units from {result.frames} frames, explained variance {result.explained_variance:.4f}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def shards() -> None:
    """Verify, show or index shards.

    Example: uniaudio shards verify work/demo/shards
    """


@shards.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="Shards read at once.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
def verify(directory: Path, processes: int, as_json: bool) -> None:
    """Read every shard of DIRECTORY back: hashes, members, codes, lengths, clips held twice; and the merged indexes. Exits 1 where one is
    damaged.

    Example: uniaudio shards verify work/demo/shards
    """
    found = list_shards(directory)
    if not found:
        raise UserError("no published shards in this folder", seen=directory, remedy="make them with `uniaudio tokenize FARM.yaml`")
    faults = {shard.name: lines for shard, lines in verify_folder(found, processes)}
    whole = sum(not lines for lines in faults.values())
    damaged = {name: lines for name, lines in faults.items() if lines}
    damaged |= verify_tables(directory, {name: not lines for name, lines in faults.items()})
    if as_json:
        click.echo(json.dumps({"shards": len(found), "damaged": damaged}, indent=1))
    else:
        for name, lines in damaged.items():
            for line in lines:
                click.echo(f"{name}: {line}", err=True)
        click.echo(f"{whole} of {len(found)} shards are whole")
    if damaged:
        sys.exit(1)


@shards.command("index")
@click.argument("directory")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
def index_shards(directory: str, as_json: bool) -> None:
    """Merge the indexes of all shards of DIRECTORY into one file a split, which training opens at once; reads only what is new.

    The farm does it at its end. DIRECTORY may be an object store's address; training on one needs the file.

    Example: uniaudio shards index work/demo/shards
    """
    made = index_store(Store(directory)) if is_address(directory) else index_folder(directory)
    if not made:
        raise UserError("no published shards in this folder", seen=directory, remedy="make them with `uniaudio tokenize FARM.yaml`")
    if as_json:
        click.echo(
            json.dumps({split: {"shards": table.num_shards, "clips": len(table), "read": read} for split, (table, read) in made.items()})
        )
        return
    for split, (table, read) in made.items():
        click.echo(f"{split}: {len(table)} clips in {table.num_shards} shards, {read} of them read anew")


@shards.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--clip", "key", help="Show one clip by its key or manifest id.")
@click.option(
    "--ids", default=3, show_default=True, type=click.IntRange(0), help="Without --clip: so many ids of each kind, to choose from."
)
@click.option("--out", type=click.Path(path_type=Path), help="With --clip: write a picture of its views and its decoded sound.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
@click.option("--task", help="Print the sequence that a task makes of the clip (of the first one without --clip), frame by frame.")
@click.option("--vocabulary", default="paper", show_default=True, help="With --task: the table of token ids.")
@click.option("--codebooks", default=3, show_default=True, type=click.IntRange(1), help="With --task: codes of a frame.")
@click.pass_obj
def show(
    packages: dict | None,
    directory: Path,
    key: str | None,
    ids: int,
    out: Path | None,
    as_json: bool,
    task: str | None,
    vocabulary: str,
    codebooks: int,
) -> None:
    """What DIRECTORY holds, one clip of it, or a clip as a sequence of tokens.

    \b
    Example: uniaudio shards show work/demo/shards --out work/demo/look \\
               --clip asterisk-en-en-activated-e5edb5781c07
    """
    if task is not None:
        lines = (packages or {})["sequence_lines"](directory, task, clip=key, vocabulary=vocabulary, num_codebooks=codebooks)
        click.echo("\n".join(lines))
        return
    from uniaudio.tokenize_farm import show as showing

    if key is None:
        if out is not None:
            raise UserError("--out is for one clip", seen=out, remedy=f"--clip ID; `uniaudio shards show {directory}` lists some")
        totals = total(shard.read_sidecar() for shard in list_shards(directory))
        if not totals["shards"]:
            raise UserError("no published shards in this folder", seen=directory, remedy="make them with `uniaudio tokenize FARM.yaml`")
        keys = showing.first_keys(directory, {kind: min(ids, clips) for kind, clips in totals["clips_by_kind"].items()})
        if as_json:
            click.echo(json.dumps(totals | {"ids_by_kind": keys}, indent=1, ensure_ascii=False))
            return
        Console().print(showing.totals_table(totals))
        for kind, names in keys.items():
            for name in names:
                click.echo(f"{kind:<8} {name}")
        return
    clip = showing.find_clip(directory, key)
    if as_json:
        click.echo(json.dumps(showing.clip_as_json(clip), indent=1, ensure_ascii=False))
    else:
        Console().print(showing.clip_table(clip))
    if out is not None:
        for path in showing.write_clip(clip, directory, out):
            click.echo(path)
