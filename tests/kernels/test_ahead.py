"""The kernels compile for an H100 on a machine without one, and the small ones do not spill."""

import subprocess
import sys

import pytest

NO_SPILLS = ["frame_attention 3 x 128", "decode_linear 1 row down", "varlen_attention packed 64", "bias_gelu tanh 6144", "optimizer"]


@pytest.mark.slow
def test_compiled_kernels_fit_an_h100_without_spills(tmp_path) -> None:
    out = tmp_path / "resources.csv"
    # A process of its own: in this one Triton interprets.
    command = [sys.executable, "-m", "uniaudio.kernels.benchmarks.ahead", "--out", str(out), *NO_SPILLS]
    subprocess.run(command, env={"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path / "cache")}, check=True, timeout=240)
    header, *lines = out.read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(header.split(","), line.split(","))) for line in lines]
    assert {row["case"] for row in rows} == set(NO_SPILLS)
    for row in rows:
        assert int(row["spilled"]) == 0, row
        assert 0 < int(row["registers"]) <= 255
        assert int(row["shared"]) <= 232_448
