"""Two of the runs of tests/farm_chaos.py, which documents the fifty: a killed driver and a killed node of a real Ray cluster."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_killed_drivers_and_nodes_lose_and_double_nothing(tmp_path: Path) -> None:
    # A process of its own: the drivers are forked from a server that must not have been started before the cluster's token was set.
    table = tmp_path / "chaos.csv"
    command = [sys.executable, str(ROOT / "tests/farm_chaos.py"), str(table), "--runs", "2", "--seed", "1", "--kinds", "driver", "node"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=580)
    with table.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["same_sha256"] for row in rows] == ["True", "True"] and all(row["struck"] and not row["failed"] for row in rows)
