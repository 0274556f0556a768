"""What a node shows by itself: paths, disk, MLflow; and the command that tells it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from uniaudio.cluster.preflight import bandwidth
from uniaudio.cluster.preflight.cli import preflight
from uniaudio.cluster.preflight.node import Report, look, node_name, read_reports
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import Unavailable


def run(tmp_path, **places: object) -> RunConfig:
    (tmp_path / "shards").mkdir(exist_ok=True)
    (tmp_path / "shards" / "train-000000.tar").write_bytes(b"x")
    chosen = {"data.shards": tmp_path / "shards", "train.output_dir": tmp_path / "new" / "out"} | places
    return load_config(RunConfig, "demo_cpu", folder="runs", overrides=[f"{key}={value}" for key, value in chosen.items()])


def faults(config: RunConfig | FarmConfig | None, **sections: object) -> list[str]:
    return look(config, ClusterConfig.model_validate({"preflight": {"free_disk_gb": 0}, **sections})).faults


def test_a_node_that_sees_everything_has_no_fault_and_leaves_nothing(tmp_path):
    assert faults(run(tmp_path)) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["shards", "train-000000.tar"]


def test_what_a_node_cannot_read_or_write_is_named_with_its_key(tmp_path):
    (tmp_path / "empty").mkdir()
    assert faults(run(tmp_path, **{"data.shards": "/no/such"})) == ["data.shards: /no/such cannot be read: No such file or directory"]
    assert faults(run(tmp_path, **{"data.shards": tmp_path / "empty"})) == [f"data.shards: {tmp_path / 'empty'} is empty"]
    assert faults(run(tmp_path, **{"train.output_dir": "/proc/out"})) == [
        "train.output_dir: /proc cannot be written: No such file or directory"
    ]
    farm = load_config(FarmConfig, "demo", folder="farms", overrides=["manifest=/no/m.jsonl", f"output_dir={tmp_path}"])
    assert faults(farm) == ["manifest: /no/m.jsonl cannot be read: No such file or directory"]


def test_a_full_disk_and_missing_gpus_are_named(tmp_path):
    full = faults(run(tmp_path), preflight={"free_disk_gb": 1e9})
    assert [fault.split(":")[0] for fault in full] == ["train.output_dir", "the temporary folder"]
    assert "preflight.free_disk_gb is 1e+09" in full[0]
    assert faults(None, kind="slurm", resources={"gpus_per_node": 8}) == ["0 GPUs where resources.gpus_per_node is 8"]


@pytest.fixture
def server() -> Iterator[str]:
    """Answers 500, as an MLflow behind which the store is gone."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/well/health" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_mlflow_is_asked_for_its_health(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/well")
    assert faults(None) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/ill")
    assert faults(None) == ["MLflow answers 500 at MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    (fault,) = faults(None)
    assert fault.startswith("MLflow does not answer at MLFLOW_TRACKING_URI") and "secret" not in fault


def test_this_node_alone_is_judged_by_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(bandwidth, "_TRIES", 1)
    words = ["demo_cpu", f"data.shards={tmp_path}", f"train.output_dir={tmp_path}"]
    (tmp_path / "cluster.yaml").write_text("preflight: {free_disk_gb: 0}\n")
    result = CliRunner().invoke(preflight, [*words, "--cluster", str(tmp_path / "cluster.yaml")], catch_exceptions=False)
    assert (result.exit_code, "all well" in result.stdout) == (0, True)
    (tmp_path / "cluster.yaml").write_text("preflight: {free_disk_gb: 1.0e+9}\n")
    result = CliRunner().invoke(preflight, [*words, "--cluster", str(tmp_path / "cluster.yaml"), "--json"], catch_exceptions=False)
    assert (result.exit_code, len(json.loads(result.stdout)["findings"])) == (1, 2)


def test_reports_are_judged_and_the_bad_nodes_written_down(tmp_path):
    Report("n1").write(tmp_path)
    Report("n2", faults=["broken"]).write(tmp_path)
    result = CliRunner().invoke(preflight, ["--judge", str(tmp_path), "--nodes", "n1 n2 n3"], catch_exceptions=False)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == ["preflight: n2: broken", "preflight: n3: no answer"]
    assert (tmp_path / "bad_nodes").read_text() == "n2\nn3\n"
    assert list(read_reports(tmp_path)) == ["n1", "n2"]


def test_slurms_name_of_the_node_wins(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert node_name() == "n7"


def test_ranks_that_do_not_come_are_an_error_that_may_pass(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="not all ranks have come .*1 s waited"):
        bandwidth.measure(Report("n1"), seconds=1)
