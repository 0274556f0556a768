"""`uniaudio preflight`: this node alone; with RANK set (srun, torchrun) all ranks together; with --judge what the nodes have reported."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from uniaudio.cluster.preflight.judge import Finding, judge, summary
from uniaudio.cluster.preflight.node import Report, look, read_reports
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig

_SICK = 1


@click.command()
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1)
@click.option("--farm", is_flag=True, help="CONFIG is a farm (tokenize), not a run (train).")
@click.option("--cluster", "cluster_name", default="local", show_default=True, help="Name of configs/clusters or a YAML file.")
@click.option("--report", "folder", type=click.Path(path_type=Path), help="Write NODE.json there instead of judging this node.")
@click.option(
    "--judge",
    "judged",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Judge the reports in this folder; look at nothing.",
)
@click.option("--nodes", default="", help="With --judge: the nodes that should have reported, between spaces.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
def preflight(
    config: str | None,
    overrides: tuple[str, ...],
    farm: bool,
    cluster_name: str,
    folder: Path | None,
    judged: Path | None,
    nodes: str,
    as_json: bool,
) -> None:
    """Look at GPUs, versions, clocks, disk, paths, MLflow and bandwidth. Exits 1 where a node is sick or slow.

    Alone: this node. With RANK set, as srun or torchrun do: all ranks together. --judge reads the reports of all nodes, and writes the
    names of the bad ones beside them, in `bad_nodes`.

    Example: uniaudio preflight paper_1b --cluster slurm data.shards=/data/shards
    """
    cluster = load_config(ClusterConfig, cluster_name, folder="clusters")
    if judged is not None:
        reports = read_reports(judged)
        findings = judge(reports, nodes.split() or list(reports), cluster.preflight)
        bad = list(dict.fromkeys(finding.node for finding in findings if finding.node))
        (judged / "bad_nodes").write_text("".join(f"{node}\n" for node in bad), encoding="utf-8")
        _tell(reports, findings, as_json=as_json)
        sys.exit(_SICK if bad else 0)
    job: RunConfig | FarmConfig | None = None
    if config:
        job = load_config(FarmConfig, config, folder="farms", overrides=overrides) if farm else None
        job = job or load_config(RunConfig, config, folder="runs", overrides=overrides)
    report = look(job, cluster)
    if folder is not None:
        report.write(folder)  # at once: a node that then hangs among the others has at least answered
    from uniaudio.cluster.preflight.bandwidth import measure  # torch

    measured = measure(report, seconds=cluster.preflight.seconds / 2)
    if measured is None:
        return
    if folder is not None:
        measured.write(folder)
        return
    reports = {measured.node: measured}
    findings = judge(reports, [measured.node], cluster.preflight)
    _tell(reports, findings, as_json=as_json)
    sys.exit(_SICK if findings else 0)


def _tell(reports: dict[str, Report], findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        found = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"nodes": [asdict(report) for report in reports.values()], "findings": found}, indent=1))
        return
    for finding in findings:
        click.echo(f"preflight: {finding.node or 'between the nodes'}: {finding.what}")
    click.echo(f"preflight: {summary(reports)}: {'all well' if not findings else f'{len(findings)} findings'}")
