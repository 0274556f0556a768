"""`uniaudio submit`: validates a run or a farm against a cluster, then starts it there. `uniaudio jobs`: what was submitted."""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from uniaudio.cluster.fit import describe
from uniaudio.cluster.job import Job, Record, plan_job, read_record, read_records
from uniaudio.cluster.target import ENDED, Status
from uniaudio.cluster.validate import check_job, layout_equation
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

_FOLLOW_SECONDS = 2.0
_TARGETS = {"local": "local", "slurm": "slurm", "ray": "ray_jobs"}
_RENDERED = {"kubernetes": "kubectl apply -f", "skypilot": "sky jobs launch"}
_job_dir = click.option("--job-dir", type=click.Path(path_type=Path), default="work/jobs", show_default=True, help="Folder of the jobs.")


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--farm", is_flag=True, help="CONFIG is a farm (tokenize), not a run (train).")
@click.option("--cluster", "cluster_name", default="local", show_default=True, help="Name of configs/clusters or a YAML file.")
@click.option("--after", multiple=True, help="Slurm: start when this job (its name) has ended well; may be given again.")
@click.option("--dry-run", is_flag=True, help="Validate and print what would be submitted; start nothing.")
@click.option("--follow", is_flag=True, help="Show the job's output until it ends, and exit as it ended.")
def submit(
    config: str, overrides: tuple[str, ...], farm: bool, cluster_name: str, after: tuple[str, ...], dry_run: bool, follow: bool
) -> None:
    """Validate a job, then start it. A wrong config never starts.

    Example: uniaudio submit paper_1b --cluster slurm --dry-run data.shards=/data/shards
    """
    cluster = load_config(ClusterConfig, cluster_name, folder="clusters")
    loaded: RunConfig | FarmConfig
    if farm:
        loaded = load_config(FarmConfig, config, folder="farms", overrides=overrides)
    else:
        loaded = load_config(RunConfig, config, folder="runs", overrides=overrides)
    check_job(loaded, cluster, inputs_exist=not after)
    if isinstance(loaded, RunConfig):
        needs, starts = layout_equation(loaded, cluster)
        for line in (f"layout: {needs}" + ("" if cluster.kind == "local" else f" of {starts}"), *describe(loaded, cluster)):
            click.echo(line, err=True)
    job = plan_job(loaded, Path(config).stem, cluster.job_dir)
    waits_for = _scheduler_ids(after, cluster)
    if dry_run:
        click.echo(_render(job, cluster, waits_for), nl=False)
        return
    if cluster.kind == "local":
        sys.exit(import_module("uniaudio.cluster.local").run(job, cluster))
    record = _start(job, cluster, waits_for)
    click.echo(f"{record.name}: {record.kind} job {record.id}, output: {record.output}", err=follow)
    if follow:
        sys.exit(_follow(record))


def _render(job: Job, cluster: ClusterConfig, waits_for: list[str]) -> str:
    """What would be submitted, as text."""
    if cluster.kind == "local":
        return f"{import_module('uniaudio.cluster.local').render(job, cluster)}\n"
    if cluster.kind == "slurm":
        return import_module("uniaudio.cluster.slurm").render(job, cluster, waits_for)
    if cluster.kind in _RENDERED:
        return import_module(f"uniaudio.cluster.{cluster.kind}").render(job, cluster)
    return f"{json.dumps(import_module('uniaudio.cluster.ray_jobs').request(job, cluster), indent=1)}\n"


def _start(job: Job, cluster: ClusterConfig, waits_for: list[str]) -> Record:
    """Hands the job to its scheduler."""
    if cluster.kind == "slurm":
        return import_module("uniaudio.cluster.slurm").submit(job, cluster, waits_for)
    if cluster.kind == "ray":
        return import_module("uniaudio.cluster.ray_jobs").submit(job, cluster)
    raise UserError(
        "kind: this target renders a file and starts nothing",
        seen=cluster.kind,
        remedy=f"uniaudio submit ... --dry-run > job.yaml, then {_RENDERED[cluster.kind]} job.yaml",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def jobs() -> None:
    """List, follow and cancel what was submitted.

    Example: uniaudio jobs logs train-paper-1b-1 --follow
    """


@jobs.command("list")
@_job_dir
def list_jobs(job_dir: Path) -> None:
    """One line a job, oldest first: name, kind, the scheduler's id, state, when it was submitted."""
    for record in read_records(job_dir):
        click.echo(f"{record.name}\t{record.kind}\t{record.id}\t{_status(record).state}\t{record.created}")


@jobs.command("status")
@click.argument("name")
@_job_dir
def job_status(name: str, job_dir: Path) -> None:
    """State of a job, and what the scheduler says about it. Exits 1 where it has failed."""
    status = _status(read_record(job_dir / name))
    click.echo(f"{name}: {status.state} ({status.detail})")
    if status.state == "failed":
        sys.exit(1)


@jobs.command()
@click.argument("name")
@click.option("--follow", is_flag=True, help="Go on until the job ends, and exit as it ended.")
@_job_dir
def logs(name: str, follow: bool, job_dir: Path) -> None:
    """Output of a job so far."""
    record = read_record(job_dir / name)
    if follow:
        sys.exit(_follow(record))
    _write(_target(record).output(record, 0))


@jobs.command()
@click.argument("name")
@_job_dir
def cancel(name: str, job_dir: Path) -> None:
    """End a job. A training is told first, and saves."""
    record = read_record(job_dir / name)
    _target(record).cancel(record)
    click.echo(f"{name}: asked to end")


def _status(record: Record) -> Status:
    return _target(record).status(record)


def _scheduler_ids(names: tuple[str, ...], cluster: ClusterConfig) -> list[str]:
    """Slurm's ids of jobs that were submitted before."""
    if names and cluster.kind != "slurm":
        raise UserError("--after needs a scheduler that knows dependencies", seen=f"kind {cluster.kind}", allowed="kind slurm")
    records = [read_record(Path(cluster.job_dir).absolute() / name) for name in names]
    foreign = [record.name for record in records if record.kind != "slurm"]
    if foreign:
        raise UserError("--after names a job that is not Slurm's", seen=", ".join(foreign))
    return [record.id for record in records]


def _target(record: Record) -> Any:
    """The module of a job's kind; loaded only when asked for, so that Slurm needs no Ray."""
    return import_module(f"uniaudio.cluster.{_TARGETS[record.kind]}")


def _follow(record: Record) -> int:
    """Copies the output until the job has ended; 0 where it ended well."""
    place = 0
    while True:
        status = _status(record)  # before the output, so that nothing after the end is missed
        block = _target(record).output(record, place)
        _write(block)
        place += len(block)
        if status.state in ENDED:
            click.echo(f"{record.name}: {status.state} ({status.detail})", err=True)
            return 0 if status.state == "done" else 1
        time.sleep(_FOLLOW_SECONDS)


def _write(block: bytes) -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as terminal:
        terminal.write(block)
