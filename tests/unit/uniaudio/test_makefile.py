"""`make clean`: what make makes again goes, what somebody has trained stays."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("own", [["work/mine/run/checkpoint"], []])
def test_clean_leaves_what_is_not_of_the_demo(tmp_path: Path, own: list[str]) -> None:
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    kept = ["runs/mine/checkpoint", "mlruns/1/artifact", "mlflow.db", ".venv/bin/python", *own]
    for name in (*kept, "work/demo/mlflow.db", "build/lib/x", ".lint/x", ".pytest_cache/x", "uniaudio.egg-info/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "Makefile", "setup.py", "constraints.txt"}
    assert (tmp_path / "work").exists() == bool(own)
