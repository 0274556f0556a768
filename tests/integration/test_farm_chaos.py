"""Two of the runs of tests/farm_chaos.py, which documents the fifty: a killed driver and a killed node."""

from pathlib import Path

import pytest

from tests.farm_chaos import chaos


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_drivers_and_nodes_lose_and_double_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    rows = chaos(2, seed=1, kinds=("driver", "node"), scratch=tmp_path)
    assert [row["same_sha256"] for row in rows] == [True, True] and all(row["struck"] for row in rows)
