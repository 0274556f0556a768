"""A real Ray head on this machine with token authentication: farm and training submitted, followed and cancelled through its Jobs API."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_shards import write_random_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """`uniaudio` talks to it with the token of `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.gcs_port = folder, free_port(), free_port()
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | variables
        options = ["--head", "--block", "--num-cpus=1", "--disable-usage-stats", f"--ray-client-server-port={free_port()}"]
        options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
        options += [f"--port={self.gcs_port}", f"--dashboard-port={self.port}", "--object-store-memory=100000000"]
        self.options, self.tries = options, 5
        self.process = self._start("head", options)

    def start_node(self) -> "subprocess.Popen[bytes]":
        """One more node, of one CPU, as a process group of its own."""
        address = f"--address=127.0.0.1:{self.gcs_port}"
        return self._start("node", [address, "--block", "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"])

    def _start(self, name: str, options: list[str]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        """Until it takes jobs, a while after the dashboard answers. Ray gives itself 30 s to start: on a loaded machine several times."""
        deadline = time.monotonic() + 400
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", f"http://127.0.0.1:{self.port}", "--", "true"]
        while subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (self.folder / "head.log").read_text()
            if self.process.poll() is not None:
                assert self.tries, (self.folder / "head.log").read_text()
                self.tries -= 1
                self.process = self._start("head", self.options)
            time.sleep(1)

    def stop(self) -> None:
        """Ends the head and what it started: all of one process group."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def nodes(self) -> int:
        """Nodes that are alive."""
        command = [sys.executable, "-c", "import ray; ray.init('auto', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"]
        environment = self.environment | {"RAY_ADDRESS": f"127.0.0.1:{self.gcs_port}"}
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1])

    def uniaudio(self, *words: str, code: int = 0, **variables: str) -> str:
        command = [sys.executable, "-m", "uniaudio", *words]
        done = subprocess.run(command, env=self.environment | variables, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def cluster_file(self) -> Path:
        path = self.folder / "cluster.yaml"
        environment = {"python": sys.executable}
        ray = {"address": f"http://127.0.0.1:{self.port}"}
        path.write_text(json.dumps({"kind": "ray", "job_dir": str(self.folder / "jobs"), "environment": environment, "ray": ray}))
        return path


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    started = Head(tmp_path_factory.mktemp("ray"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def farm_file(head) -> Path:
    """A farm of four tones in two units."""
    seconds = np.arange(16_000) / 16_000
    rows = []
    for number in range(4):
        tone = 0.2 * np.sin(2 * np.pi * (200 + 40 * number) * seconds)
        soundfile.write(head.folder / f"{number}.wav", tone.astype(np.float32), 16_000)
        rows.append({"id": f"clip{number}", "audio_filepath": f"{number}.wav", "text": "a tone", "split": "train"})
    (head.folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    views = {"midi": {"name": "f0"}, "phone": {"name": "phones"}}
    farm = {"manifest": str(head.folder / "manifest.jsonl"), "output_dir": str(head.folder / "shards"), "tokenizers": views}
    (head.folder / "farm.yaml").write_text(json.dumps({**farm, "clips_per_unit": 2, "workers": 1}))
    return head.folder / "farm.yaml"


def test_a_farm_is_submitted_and_followed_to_its_end(head, farm_file) -> None:
    output = head.uniaudio("submit", str(farm_file), "--farm", "--cluster", str(head.cluster_file()), "--follow")
    assert "shards and farm.json in" in output
    assert "tokenize-farm-1: done (SUCCEEDED" in output
    assert len(list((head.folder / "shards").glob("train-*.tar"))) == 2
    assert "\tray\ttokenize-farm-1\tdone\t" in head.uniaudio("jobs", "list", "--job-dir", str(head.folder / "jobs"))


def test_another_token_is_refused_and_no_job_is_left(head, farm_file) -> None:
    words = ["submit", str(farm_file), "--farm", "--cluster", str(head.cluster_file()), f"output_dir={head.folder}/other"]
    wrong = head.folder / "wrong"
    wrong.write_text("0" * 64)
    output = head.uniaudio(*words, code=2, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert "uniaudio: error: the Ray cluster refuses the token" in output and "0" * 64 not in output
    assert not (head.folder / "jobs" / "tokenize-farm-2").exists()


def test_a_training_is_cancelled_and_has_saved(head) -> None:
    sizes = {"clips": 100, "valid_clips": 0, "codebooks": 3, "text_width": 32, "frames": (20, 60)}
    shards = write_random_shards(head.folder / "random", **sizes)
    model = {"width": 32, "num_heads": 2, "ffn_width": 64, "global_layers": 1, "local_layers": 1, "max_positions": 128, "text_width": 32}
    config = {
        "model": {**model, "kernels": "torch"},
        "data": {"shards": str(shards), "tasks": ["sound"], "frames_per_row": 128, "rows_per_micro_batch": 2},
        "train": {"output_dir": str(head.folder / "out"), "steps": 10**6, "device": "cpu", "log_every": 1, "threads": 1, "save_every": 20},
    }
    (head.folder / "run.yaml").write_text(json.dumps(config))
    place = ("--job-dir", str(head.folder / "jobs"))
    head.uniaudio("submit", str(head.folder / "run.yaml"), "--cluster", str(head.cluster_file()))
    deadline = time.monotonic() + 400
    while not list(head.folder.glob("out/checkpoints/step-*")):
        assert time.monotonic() < deadline, head.uniaudio("jobs", "logs", "train-run-1", *place)
        time.sleep(1)
    assert "running" in head.uniaudio("jobs", "status", "train-run-1", *place)
    head.uniaudio("jobs", "cancel", "train-run-1", *place)
    while "cancelled" not in head.uniaudio("jobs", "status", "train-run-1", *place):
        assert time.monotonic() < deadline + 200
        time.sleep(1)
    assert "asked to stop: step" in head.uniaudio("jobs", "logs", "train-run-1", *place)


def test_a_node_that_is_killed_in_the_middle_of_a_farm_costs_its_work_alone(head) -> None:
    """Eight units of gliding tones, one worker on each of two nodes: the second node is killed, the farm goes on with the first."""
    seconds = np.arange(8 * 16_000) / 16_000
    rows = []
    for number in range(32):
        tone = 0.2 * np.sin(2 * np.pi * (100 + 10 * number) * seconds + 5 * np.sin(4 * np.pi * seconds))
        soundfile.write(head.folder / f"glide{number}.wav", tone.astype(np.float32), 16_000)
        rows.append({"id": f"glide{number}", "audio_filepath": f"glide{number}.wav", "text": "a tone", "split": "train"})
    (head.folder / "glides.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = head.folder / "glides"
    farm = {"manifest": str(head.folder / "glides.jsonl"), "output_dir": str(shards), "tokenizers": {"midi": {"name": "f0"}}}
    (head.folder / "glides.yaml").write_text(json.dumps({**farm, "clips_per_unit": 4, "workers": 2}))
    node = head.start_node()
    try:
        deadline = time.monotonic() + 400
        while head.nodes() < 2:
            assert time.monotonic() < deadline, (head.folder / "node.log").read_text()
            if node.poll() is not None:
                node = head.start_node()
            time.sleep(1)
        head.uniaudio("submit", str(head.folder / "glides.yaml"), "--farm", "--cluster", str(head.cluster_file()))
        place = ("--job-dir", str(head.folder / "jobs"))
        while not list(shards.glob("train-*.json")):
            assert time.monotonic() < deadline, head.uniaudio("jobs", "logs", "tokenize-glides-1", *place)
            time.sleep(0.2)
        killed_at = len(list(shards.glob("train-*.json")))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
    output = head.uniaudio("jobs", "logs", "tokenize-glides-1", "--follow", *place)
    assert "tokenize-glides-1: done (SUCCEEDED" in output
    assert killed_at < len(list(shards.glob("train-*.tar"))) == 8
    assert "8 of 8 shards are whole" in head.uniaudio("shards", "verify", str(shards))
