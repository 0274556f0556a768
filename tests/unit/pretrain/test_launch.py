import os
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from uniaudio.configs.parallel import ParallelConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import launch
from uniaudio.pretrain.cli import train


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", launch.PARENT, launch.FAULTS):
        monkeypatch.delenv(name, raising=False)


def test_a_wrong_world_size_prints_every_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    parallel = ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=2)
    with pytest.raises(UserError) as caught:
        launch.join(parallel)
    message = str(caught.value)
    assert "seen: WORLD_SIZE 6" in message
    for factor in ("tensor_parallel_size 2", "pipeline_parallel_size 2", "data_parallel_size 2", "= 8 processes"):
        assert factor in message


def test_a_missing_folder_of_shards_is_told_before_any_process_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "spawn", lambda *_: pytest.fail("processes were started"))
    words = ["demo_cpu", "parallel.data_parallel_size=2", f"data.shards={tmp_path}/none", f"train.output_dir={tmp_path}/run"]
    with pytest.raises(UserError, match=r"data\.shards: no such folder of shards \| seen: .*/none \| remedy: .*uniaudio tokenize"):
        CliRunner().invoke(train, words, catch_exceptions=False)


def test_one_process_becomes_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert not launch.is_started()
    launch.join(ParallelConfig())
    assert launch.is_started() and os.environ["WORLD_SIZE"] == "1"


def test_spawn_passes_on_success_and_failure() -> None:
    assert launch.spawn(["config", "demo_cpu"], 2) == 0
    assert launch.spawn(["config", "no_such_run"], 2) == 2


def test_a_reported_fault_is_raised_by_the_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(launch.FAULTS, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    assert launch.report_fault(UserError("wrong", seen=4))
    assert "wrong | seen: 4" in (tmp_path / "000003.json").read_text()
    monkeypatch.delenv(launch.FAULTS)
    assert not launch.report_fault(UserError("wrong"))


def test_a_rank_that_hangs_is_ended_with_the_failed_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rank 1 fails at once, rank 0 would wait for ever."""
    monkeypatch.setattr(launch, "FAULT_SECONDS", 0.2)
    (tmp_path / "uniaudio.py").write_text("import os, sys, time\nsys.exit(7) if os.environ['RANK'] == '1' else time.sleep(600)\n")
    monkeypatch.chdir(tmp_path)  # `python -m uniaudio` finds this file first
    start = time.monotonic()
    assert launch.spawn([], 2) == 7
    assert time.monotonic() - start < 30


def test_ports_lie_outside_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = launch.free_port()
    assert 10_000 <= port < max(lowest, 20_000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
