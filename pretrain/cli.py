"""`uniaudio train`: starts the processes of the layout, or is one of them."""

import faulthandler
import sys
from collections.abc import Callable

import click

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain import launch
from uniaudio.pretrain.finished import finished_at
from uniaudio.pretrain.recorded import check_beginning
from uniaudio.pretrain.starting import stop_at_once
from uniaudio.signals import ignore_to_the_end


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option("--profile", is_flag=True, help="Write a trace of three steps of each rank below OUT/profile (train.profile=true).")
def train(run: str, overrides: tuple[str, ...], profile: bool) -> None:
    """Train by a config (a YAML file, or the name of a shipped one), resuming where OUT/checkpoints holds a checkpoint.

    One plain command starts all processes of the layout on this machine; under torchrun or Slurm it joins those that were started.
    One training writes into an output folder at a time. Exit code 75: stopped by SIGTERM, SIGUSR1, SIGHUP
    or Ctrl-C, and saved; the same command goes on.

    Example: uniaudio train paper_1b data.shards=shards parallel.data_parallel_size=8 optim.lr=3e-4
    """
    launch.die_with_parent()
    faulthandler.enable(file=2)  # standard error: a crash in native code of a library would end the process without a word
    if profile:
        overrides = (*overrides, "train.profile=true")
    with stop_at_once() as started:
        config = load_config(RunConfig, run, folder="runs", overrides=overrides)
        check_beginning(config)
        with launch.only_training(config):
            if not launch.is_started() and (done := finished_at(config)):
                get_logger("train").warning("nothing to do: %s is of a finished training and train.steps is %d", done, config.train.steps)
                code = 0
            else:
                code = _train(config, ["train", run, *overrides], started)
        ignore_to_the_end()
    if code:
        sys.exit(code)


def _train(config: RunConfig, command: list[str], started: Callable[[], None]) -> int:
    """Starts the ranks and waits for them, or is one; the exit code. `started`: called when signals are handled by these."""
    if config.parallel.world_size > 1 and not launch.is_started():
        launch.require_shards(config)
        launch.require_devices(config)
        return launch.spawn(command, config.parallel.world_size, started=started)
    from uniaudio.pretrain.train import train as train_rank

    try:
        return train_rank(config, started=started)
    except UserError as error:
        if not launch.report_fault(error):
            raise
        return 2
    except Exception:
        if not launch.another_has_failed():  # who has said why
            raise
        return 2
