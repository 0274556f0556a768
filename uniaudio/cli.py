"""The command `uniaudio`: loads each command from the package that owns it, and only when it is called."""

import difflib
import errno
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

from uniaudio import __version__
from uniaudio.errors import MissingDependency, UserError

# command -> (module, attribute, one line of help); a module is imported only when its command is used.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "config": ("uniaudio.configs.cli", "config", "Show or check a config."),
    "corpus": ("uniaudio.tokenize_farm.corpus.cli", "corpus", "Fetch the demo recordings, or write a manifest of your own."),
    "codec": ("uniaudio.tokenize_farm.codec.cli", "codec", "Train, use and measure the universal codec."),
    "tokenize": ("uniaudio.tokenize_farm.cli", "tokenize", "Turn a manifest into shards of codes on a Ray farm."),
    "shards": ("uniaudio.tokenize_farm.cli", "shards", "Verify, show or index shards."),
    "train": ("uniaudio.pretrain.cli", "train", "Train the multi-scale Transformer."),
    "plan": ("uniaudio.configs.plan_cli", "plan", "Predict memory, step time and cost of a training."),
    "generate": ("uniaudio.pretrain.generate.cli", "generate", "Generate audio from a checkpoint."),
    "evaluate": ("uniaudio.pretrain.evaluation.cli", "evaluate", "Measure a checkpoint on held-out clips, task by task."),
    "web": ("uniaudio.pretrain.generate.web", "web", "Try a checkpoint in a browser on this machine."),
    "checkpoint": ("uniaudio.pretrain.checkpoint_cli", "checkpoint", "Import, convert or export a checkpoint."),
    "demo": ("uniaudio.demo", "demo", "Recordings -> farm -> training -> audio, and one table."),
    "submit": ("uniaudio.cluster.cli", "submit", "Start a run or a farm on a cluster."),
    "jobs": ("uniaudio.cluster.cli", "jobs", "List, follow and cancel what was submitted."),
    "preflight": ("uniaudio.cluster.preflight.cli", "preflight", "Look at this node, or all, before a long job."),
}

# Faults of paths and disks that a user can mend; of others the trace is needed.
MENDABLE = {errno.EEXIST, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
FULL = {errno.ENOSPC, errno.EDQUOT}

# Third-party packages a command may miss, with the extra that brings them.
EXTRAS = {
    "ray": "farm",
    "jinja2": "cluster",
    "soundfile": "farm",
    "soxr": "farm",
    "transformers": "farm",
    "torch": "train",
    "deepspeed": "train",
    "matplotlib": "train",
    "megatron": "train",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when called, so that `uniaudio config` needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package not in EXTRAS:
                raise
            raise MissingDependency(package, needed_for=f"uniaudio {cmd_name}", extra=EXTRAS[package]) from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; a name that is none is told with the nearest there is."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and (near := difflib.get_close_matches(args[0], COMMANDS, n=1)):
            ctx.fail(f"No such command '{args[0]}'. Did you mean {near[0]}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """UniAudio: one language model for speech, sound, music and singing.

    Exit codes: 0 done; 2 something to correct; 3 some inputs could not be used, the others are done; 69 try again later; 75 asked to stop,
    and saved.

    Example: uniaudio demo --out work/demo
    """
    ctx.obj = {"sequence_lines": _sequence_lines}  # what a command of one package shows of another's, which it may not import


def _sequence_lines(*arguments: Any, **options: Any) -> Iterator[str]:
    from uniaudio.pretrain.data.show import sequence_lines

    return sequence_lines(*arguments, **options)


def main() -> None:
    """Runs the command line; a UserError, or a path that cannot be used, becomes one line on standard error and its exit code
    (2; 3: all but some inputs are done; 69: try again)."""
    try:
        cli(standalone_mode=False)
    except UserError as error:
        click.echo("\n".join([f"uniaudio: error: {error}", *getattr(error, "__notes__", ())]), err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in FULL and (error.errno not in MENDABLE or error.filename is None):
            raise
        seen = f"{error.filename2 or error.filename}: {error.strerror}" if error.filename else error.strerror
        fault = UserError("a path cannot be used", seen=seen, remedy="another path, or its rights")
        if error.errno in FULL:
            fault = UserError("a disk is full", seen=seen, remedy="make room, then run the same command again")
        click.echo(f"uniaudio: error: {fault}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("uniaudio: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
