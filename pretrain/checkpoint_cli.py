"""`uniaudio checkpoint`: the released weights in, any checkpoint out as a folder to share, or whole to go on from."""

from pathlib import Path
from typing import get_args

import click

from uniaudio.pretrain.convert import convert_checkpoint
from uniaudio.pretrain.export import Precision, export_checkpoint
from uniaudio.pretrain.released.importing import import_released

_PATH = click.Path(path_type=Path)


@click.group()
def checkpoint() -> None:
    """Import the released UniAudio weights, export a checkpoint, or convert it.

    Example: uniaudio checkpoint export --checkpoint runs/mine --out exports/mine
    """


@checkpoint.command("import-released")
@click.option("--checkpoint", "source", required=True, type=_PATH, help="The released file (a torch pickle); no code of it is run.")
@click.option("--config", required=True, type=_PATH, help="The YAML beside it: training arguments and token_list.")
@click.option("--out", required=True, type=_PATH, help="New folder.")
def import_command(source: Path, config: Path, out: Path) -> None:
    """Turn the public UniAudio checkpoint into a folder of this project.

    Example: uniaudio checkpoint import-released --checkpoint ep1.checkpoint --config config.yaml --out released
    """
    imported = import_released(source, config, out)
    model, table = imported.description.model, imported.description
    own = f"its own ({len(table.differences)} differences from `released`)" if table.differences else "`released`"
    click.echo(
        f"{out}: {imported.parameters / 1e6:,.1f} M parameters, {model.global_layers} + {model.local_layers} layers, width {model.width}, "
        f"{model.num_heads} heads; vocabulary {own}, {table.vocabulary.size} ids"
    )


@checkpoint.command("export")
@click.option("--checkpoint", "source", required=True, type=_PATH, help="Checkpoint folder, or a run's (its newest is taken).")
@click.option("--out", required=True, type=_PATH, help="New folder.")
@click.option(
    "--precision",
    default="saved",
    show_default=True,
    type=click.Choice(get_args(Precision)),
    help="saved: as trained; fp32: the optimizer's fp32 weights where there are any.",
)
def export_command(source: Path, out: Path, precision: Precision) -> None:
    """Write weights, config, vocabulary and a model card to a folder that loads with one line, whatever layout trained it.

    Example: uniaudio checkpoint export --checkpoint runs/mine --out exports/mine --precision bf16
    """
    path = export_checkpoint(source, out, precision=precision)
    click.echo(f"{out}: {path.name}; load it with uniaudio.pretrain.load_model({str(out)!r})")


@checkpoint.command("convert")
@click.option("--checkpoint", "source", required=True, type=_PATH, help="Checkpoint folder, or a run's (its newest is taken).")
@click.option("--out", required=True, type=_PATH, help="New folder, in the form of a run's.")
def convert_command(source: Path, out: Path) -> None:
    """Put the cuts of a layout together: whole parameters and optimizer state in one file each, which any layout resumes from.

    Example: uniaudio checkpoint convert --checkpoint runs/mine --out runs/mine_whole
    """
    path = convert_checkpoint(source, out)
    click.echo(f"{path}; go on from it with train.output_dir={out}")
