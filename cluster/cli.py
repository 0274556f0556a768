"""`uniaudio submit`: starts a run or a farm where the cluster config says."""

import sys

import click

from uniaudio.cluster.local import Job, check_environment, render, run
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--farm", is_flag=True, help="CONFIG is a farm (tokenize), not a run (train).")
@click.option("--cluster", "cluster_name", default="local", show_default=True, help="Name of configs/clusters or a YAML file.")
@click.option("--dry-run", is_flag=True, help="Validate and print the command; start nothing.")
def submit(config: str, overrides: tuple[str, ...], farm: bool, cluster_name: str, dry_run: bool) -> None:
    """Validate a job, then start it. A wrong config never starts.

    Example: uniaudio submit demo_cpu --cluster local --dry-run train.steps=50
    """
    cluster = load_config(ClusterConfig, cluster_name, folder="clusters")
    check_environment(cluster.environment)
    if farm:
        load_config(FarmConfig, config, folder="farms", overrides=overrides)
    else:
        load_config(RunConfig, config, folder="runs", overrides=overrides)
    job = Job("tokenize" if farm else "train", config, overrides)
    if dry_run:
        click.echo(render(job))
        return
    sys.exit(run(job, cluster))
