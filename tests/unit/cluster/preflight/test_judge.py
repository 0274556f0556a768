"""Sick and slow nodes are named from the reports of all."""

import pytest

from uniaudio.cluster.preflight.judge import Finding, judge, summary
from uniaudio.cluster.preflight.node import Report
from uniaudio.configs.cluster import PreflightConfig

NODES = ["n1", "n2", "n3", "n4"]
LINKS = {"n1": ("n2", "n4"), "n2": ("n1", "n3"), "n3": ("n2", "n4"), "n4": ("n3", "n1")}


def reports(**changes: dict) -> dict[str, Report]:
    """Four healthy nodes of two GPUs in a ring, with what `changes` says of some."""
    made = {}
    for node in NODES:
        fields = {
            "versions": {"torch": "2.13.0"},
            "gpus": ["H100", "H100"],
            "clock_offset": 0.01,
            "tflops": [700.0, 690.0],
            "all_reduce_gb_per_second": 40.0,
            "pairs": dict.fromkeys(LINKS[node], 20.0),
        }
        made[node] = Report(node, **fields | changes.get(node, {}))
    return made


def found(settings: PreflightConfig | None = None, **changes: dict) -> list[tuple[str, str]]:
    return [(finding.node, finding.what) for finding in judge(reports(**changes), NODES, settings or PreflightConfig())]


def test_healthy_nodes_have_no_findings():
    assert found() == []
    assert summary(reports()) == "4 nodes, 8 GPUs, matrix product 690 to 700 TFLOP/s, all-reduce 40 GB/s"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"n3": {"faults": ["no room"]}}, ("n3", "no room")),
        ({"n2": {"versions": {"torch": "2.11.0"}}}, ("n2", "torch 2.11.0, most nodes have 2.13.0")),
        ({"n2": {"versions": {}}}, ("n2", "torch none, most nodes have 2.13.0")),
        ({"n4": {"clock_offset": -5.0}}, ("n4", "clock -5.0 s from the others, preflight.clock_seconds is 2")),
        ({"n1": {"tflops": [700.0, 300.0]}}, ("n1", "GPU 1: matrix product at 300 TFLOP/s, the median is 695")),
        (
            {"n2": {"pairs": {"n1": 3.0, "n3": 3.0}}, "n1": {"pairs": {"n2": 3.0, "n4": 20.0}}, "n3": {"pairs": {"n2": 3.0, "n4": 20.0}}},
            ("n2", "3.0 GB/s to its neighbours, the median is 11.5"),
        ),
    ],
)
def test_the_node_is_named(changes, finding):
    assert found(**changes) == [finding]


def test_a_node_that_has_not_answered_is_named():
    some = reports()
    del some["n2"]
    assert judge(some, NODES, PreflightConfig()) == [Finding("n2", "no answer")]


def test_a_slow_fabric_is_nobodys_fault():
    finding = ("", "all-reduce at 40.0 GB/s, preflight.all_reduce_gb_per_second is 100")
    assert found(PreflightConfig(all_reduce_gb_per_second=100)) == [finding]
    assert found(PreflightConfig(all_reduce_gb_per_second=50)) == []


def test_cpus_are_not_held_against_each_other():
    assert found(**{node: {"gpus": [], "tflops": [0.1 * number]} for number, node in enumerate(NODES, start=1)}) == []
