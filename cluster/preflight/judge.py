"""Which nodes are sick or slow, from the reports of all. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from uniaudio.cluster.preflight.node import Report
from uniaudio.configs.cluster import PreflightConfig


@dataclass(frozen=True)
class Finding:
    """What is wrong with a node; `node` empty: with what lies between them."""

    node: str
    what: str


def judge(reports: Mapping[str, Report], nodes: Sequence[str], settings: PreflightConfig) -> list[Finding]:
    """Findings in the order of the nodes; `nodes`: all that should have answered."""
    findings = [Finding(node, "no answer") for node in nodes if node not in reports]
    findings += [Finding(node, fault) for node, report in reports.items() for fault in report.faults]
    findings += _odd_versions(reports) + _odd_clocks(reports, settings) + _slow_devices(reports, settings) + _slow_links(reports, settings)
    order = {node: number for number, node in enumerate(nodes)}
    return sorted(findings, key=lambda finding: order.get(finding.node, len(order)))


def _odd_versions(reports: Mapping[str, Report]) -> list[Finding]:
    """A node that has another version than most."""
    findings = []
    for package in dict.fromkeys(package for report in reports.values() for package in report.versions):
        counts = Counter(report.versions.get(package, "none") for report in reports.values())
        most = counts.most_common(1)[0][0]
        findings += [
            Finding(node, f"{package} {seen}, most nodes have {most}")
            for node, report in reports.items()
            if (seen := report.versions.get(package, "none")) != most
        ]
    return findings


def _odd_clocks(reports: Mapping[str, Report], settings: PreflightConfig) -> list[Finding]:
    offsets = {node: report.clock_offset for node, report in reports.items() if report.clock_offset is not None}
    if not offsets:
        return []
    middle = median(offsets.values())
    return [
        Finding(node, f"clock {offset - middle:+.1f} s from the others, preflight.clock_seconds is {settings.clock_seconds:g}")
        for node, offset in offsets.items()
        if abs(offset - middle) > settings.clock_seconds
    ]


def _slow_devices(reports: Mapping[str, Report], settings: PreflightConfig) -> list[Finding]:
    """GPUs alone: CPUs of shared nodes differ by what else runs there."""
    speeds = [speed for report in reports.values() if report.gpus for speed in report.tflops]
    if not speeds:
        return []
    middle = median(speeds)
    return [
        Finding(node, f"GPU {number}: matrix product at {speed:.0f} TFLOP/s, the median is {middle:.0f}")
        for node, report in reports.items()
        if report.gpus
        for number, speed in enumerate(report.tflops)
        if speed < settings.slow_fraction * middle
    ]


def _slow_links(reports: Mapping[str, Report], settings: PreflightConfig) -> list[Finding]:
    """A node is slow where all its links are; a sum that is too low without such a node lies between them."""
    expected = settings.all_reduce_gb_per_second
    links = [speed for report in reports.values() for speed in report.pairs.values()]
    wanted = settings.slow_fraction * (median(links) if links else 0.0)
    findings = [
        Finding(node, f"{max(report.pairs.values()):.1f} GB/s to its neighbours, the median is {median(links):.1f}")
        for node, report in reports.items()
        if len(reports) > 2 and report.pairs and max(report.pairs.values()) < wanted
    ]
    slowest = min((report.all_reduce_gb_per_second for report in reports.values() if report.all_reduce_gb_per_second), default=None)
    if expected and slowest is not None and slowest < settings.slow_fraction * expected:
        findings.append(Finding("", f"all-reduce at {slowest:.1f} GB/s, preflight.all_reduce_gb_per_second is {expected:g}"))
    return findings


def summary(reports: Mapping[str, Report]) -> str:
    """One line on what was measured."""
    slowest = min((report.all_reduce_gb_per_second for report in reports.values() if report.all_reduce_gb_per_second), default=None)
    speeds = [speed for report in reports.values() for speed in report.tflops]
    parts = [f"{len(reports)} nodes", f"{sum(len(report.gpus) for report in reports.values())} GPUs"]
    if speeds:
        parts.append(f"matrix product {min(speeds):.3g} to {max(speeds):.3g} TFLOP/s")
    if slowest is not None:
        parts.append(f"all-reduce {slowest:.3g} GB/s")
    return ", ".join(parts)
