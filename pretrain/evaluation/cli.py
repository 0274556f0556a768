"""`uniaudio evaluate`."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from uniaudio.atomic import publish_bytes, require_writable
from uniaudio.configs.section import LARGEST_SEED
from uniaudio.errors import UserError
from uniaudio.pretrain.checkpoint import find
from uniaudio.pretrain.data.remote import folder_has_split
from uniaudio.pretrain.evaluation import report
from uniaudio.pretrain.evaluation.evaluate import Evaluator, Plan, TaskResult
from uniaudio.pretrain.evaluation.scores import Models, measures_of
from uniaudio.pretrain.generate.api import DTYPES
from uniaudio.pretrain.launch import require_shards
from uniaudio.store import StoredRun
from uniaudio.tokenize_farm.tokenizers.resources import pick_device


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tasks", help="Tasks to evaluate, with commas between. [default: those of the run]")
@click.option("--shards", help="Folder with other held-out shards than those of the run.")
@click.option("--clips", default=16, show_default=True, type=click.IntRange(0), help="Clips to generate a task; 0: the likelihood alone.")
@click.option("--rows", default=64, show_default=True, type=click.IntRange(1), help="Rows of held-out frames for the likelihood.")
@click.option("--measures", help="Of the tasks' measures these alone, with commas between; none: generate alone.")
@click.option("--generated", type=click.Path(path_type=Path, exists=True), help="Measure codes of an evaluation before (its OUT/codes).")
@click.option("--classifier", type=click.Path(path_type=Path), help="Your classifier of sounds (transformers' form), for kl.")
@click.option("--clap", type=click.Path(path_type=Path), help="Your CLAP (transformers' form), for text_sim.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the table, the JSON and the wavs. [default: RUN/evaluation]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, LARGEST_SEED))
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
def evaluate(
    run: Path,
    tasks: str | None,
    shards: str | None,
    clips: int,
    rows: int,
    measures: str | None,
    generated: Path | None,
    classifier: Path | None,
    clap: Path | None,
    out: Path | None,
    seed: int,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Measure RUN (a run's folder, a checkpoint or an export) on held-out clips: loss and accuracy by level, and what it generates.

    Beside the model stand two lines: the clips as their own codes give them back, and codes drawn by how often they occur. The measures
    need the extra `eval`; a missing model is named with how to get it. A GPU host without them generates with --measures none; the codes in
    OUT/codes are measured elsewhere with --generated.

    Example: uniaudio evaluate work/demo/run --tasks tts,sound --clips 8
    """
    if shards is not None and Path(shards).is_dir() and not folder_has_split(Path(shards), "valid"):
        raise UserError("--shards: no held-out shards valid-* in this folder", seen=shards, remedy="a folder of `uniaudio tokenize`")
    place = pick_device(device)
    folder = find(run)
    chosen = () if measures == "none" else tuple(measures.split(",")) if measures else None
    models = Models(classifier, clap)
    measures_of("", chosen, models)  # what cannot be measured is told before any work
    evaluator = Evaluator.load(folder, shards=shards, device=place, dtype=DTYPES[precision], models=models)
    require_shards(evaluator.run, "--shards FOLDER, with held-out shards of `uniaudio tokenize`")
    wanted = tuple(tasks.split(",")) if tasks else evaluator.run.data.tasks
    if strange := [name for name in wanted if name not in evaluator.run.data.tasks]:
        raise UserError("--tasks: the checkpoint does not know", seen=", ".join(strange), allowed=", ".join(evaluator.run.data.tasks))
    plan = Plan(wanted, clips=clips, rows=rows, measures=chosen, seed=seed, pass_over=tasks is None, generated=generated)
    target = out or (run / "evaluation" if folder != run else run.with_name(f"{run.name}-evaluation"))
    require_writable(target, "--out")
    about = {
        "checkpoint": str(folder),
        "shards": str(evaluator.run.data.shards),
        "device": str(place),
        "precision": precision,
        "seed": str(seed),
    }
    results: list[TaskResult] = []
    table = ""
    content: dict[str, Any] = {}
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("evaluate", total=len(wanted))
        for result in evaluator.evaluate(plan, lambda what: progress.update(bar, description=what)):
            results.append(result)
            # After every task, as an evaluation takes hours: what is there outlives what comes after it.
            report.write_codes([result], target / "codes")
            table, content = _publish(results, about, target)
            progress.advance(bar)
    if not results:
        raise UserError(
            "no held-out clip serves any task of this run",
            seen=", ".join(wanted),
            remedy="hold out more recordings and tokenize again (docs/data.md: what is held out), or give --shards",
        )
    wavs = report.write_audio(results, target / "audio")
    _track(run if folder != run else target, evaluator, about, table, report.metrics(results))
    click.echo(json.dumps(content) if as_json else table, nl=as_json)
    click.echo(f"{target / 'evaluation.md'}, evaluation.json, {len(wavs)} wavs", err=True)


def _publish(results: list[TaskResult], about: dict[str, str], target: Path) -> tuple[str, dict[str, Any]]:
    """Writes the table and the JSON of the tasks so far, and returns them."""
    table, content = report.markdown(results, about), report.as_json(results, about)
    publish_bytes(target / "evaluation.md", table.encode())
    publish_bytes(target / "evaluation.json", json.dumps(content, indent=1).encode())
    return table, content


def _track(where: Path, evaluator: Evaluator, about: dict[str, str], table: str, metrics: dict[str, float]) -> None:
    """An MLflow run of its own, in the store of the training."""
    experiment = f"{evaluator.run.train.experiment}-evaluation"
    stored = StoredRun(where, experiment=experiment, run_id=None, params=about, config=json.dumps(about, indent=1))
    stored.log(0, metrics)
    stored.finish("FINISHED", {"evaluation.md": table})
