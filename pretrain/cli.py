"""`uniaudio train`: starts the processes of the layout, or is one of them."""

import sys

import click

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import launch


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1)
def train(run: str, overrides: tuple[str, ...]) -> None:
    """Train by a config (a YAML file, or the name of a shipped one), resuming where OUT/checkpoints holds a checkpoint.

    One plain command starts all processes of the layout on this machine; under torchrun or Slurm it joins those that were started.
    Exit code 75: stopped by SIGTERM or SIGUSR1 and saved; the same command goes on.

    Example: uniaudio train paper_1b data.shards=shards parallel.data_parallel_size=8 optim.lr=3e-4
    """
    launch.die_with_parent()
    config = load_config(RunConfig, run, folder="runs", overrides=overrides)
    if config.parallel.world_size > 1 and not launch.is_started():
        launch.require_devices(config)
        sys.exit(launch.spawn(["train", run, *overrides], config.parallel.world_size))
    from uniaudio.pretrain.train import train as train_rank

    try:
        code = train_rank(config)
    except UserError as error:
        if not launch.report_fault(error):
            raise
        code = 2
    if code:
        sys.exit(code)
