"""A real Slurm of three nodes on this machine: training over two, saved and requeued before its limit, cancelled, failed, given up; farms;
nodes that are sick, crash or die. `make test-cluster` runs it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))
import slurm_cluster
from random_shards import write_random_shards

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "-"),
]
STEPS = 60
MODEL = {"width": 32, "num_heads": 2, "ffn_width": 64, "global_layers": 2, "local_layers": 1, "max_positions": 128, "text_width": 32}
DATA = {
    "tasks": ["tts", "sound"],
    "frames_per_row": 128,
    "rows_per_micro_batch": 2,
    "max_documents_per_row": 8,
    "max_text_states_per_row": 64,
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[slurm_cluster.SlurmCluster]:
    cluster = slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"), nodes=3)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    sizes = {"clips": 200, "valid_clips": 12, "codebooks": 3, "text_width": 32, "frames": (20, 60)}
    return write_random_shards(folder, clips_per_shard=64, **sizes)


class Place:
    """A folder with a run, a cluster config, and `uniaudio` in it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, {**environment, "OMP_NUM_THREADS": "1"}

    def run_file(self, shards: Path, name: str = "out", **train: object) -> Path:
        config = {
            "model": {**MODEL, "kernels": "torch"},
            "data": {**DATA, "shards": str(shards)},
            "parallel": {"data_parallel_size": 2},
            "optim": {"lr": 0.003, "warmup_steps": 5},
            "train": {"output_dir": str(self.folder / name), "steps": STEPS, "device": "cpu", "log_every": 1, "threads": 1, **train},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(config))
        return path

    def cluster_file(self, *, python: str | None = None, preflight: bool = False, path: str | None = None, **slurm: object) -> Path:
        config = {
            "kind": "slurm",
            "job_dir": str(self.folder / "jobs"),
            "resources": {"nodes": 2},
            "environment": {"python": python, "variables": {"PATH": path} if path else {}},
            "preflight": {"enabled": preflight, "free_disk_gb": 0.1, "slow_fraction": 0.01},
            "slurm": {"partition": "main", "master_address": "127.0.0.1", "max_fast": 2, **slurm},
        }
        path = self.folder / "cluster.yaml"
        path.write_text(json.dumps(config))
        return path

    def uniaudio(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "uniaudio", *words]
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.output()}"
        return done.stdout

    def submit(self, run: Path, cluster: Path) -> str:
        """The job's name."""
        return self.uniaudio("submit", str(run), "--cluster", str(cluster)).split(":")[0]

    def state(self, name: str) -> str:
        return next(line.split("\t")[3] for line in self.jobs("list").splitlines() if line.startswith(f"{name}\t"))

    def jobs(self, *words: str, code: int = 0) -> str:
        return self.uniaudio("jobs", *words, "--job-dir", str(self.folder / "jobs"), code=code)

    def nodes(self, name: str) -> list[str]:
        """Where each attempt ran."""
        return [line.split()[1] for line in (self.folder / "jobs" / name / "attempts").read_text().splitlines()]

    def slurm_id(self, name: str) -> str:
        return json.loads((self.folder / "jobs" / name / "job.json").read_text())["id"]

    def output(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("jobs/*/output.log"))

    def attempts(self, name: str) -> list[list[str]]:
        """Exit code and reason of each attempt that has ended."""
        path = self.folder / "jobs" / name / "attempts"
        return [line.split()[3:] for line in path.read_text().splitlines()] if path.exists() else []

    def losses(self, name: str = "out") -> list[tuple[int, float]]:
        """(step, loss) as written to the last bit."""
        path = self.folder / name / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.fixture
def place(slurm, tmp_path) -> Iterator[Place]:
    yield Place(tmp_path, slurm.environment)
    slurm.run("scancel", "--user=root")
    slurm.wait_for(lambda: not slurm.run("squeue", "--noheader").strip(), seconds=60)


def test_training_saves_before_the_limit_is_requeued_and_ends_with_the_losses_of_an_uninterrupted_one(slurm, shards, place) -> None:
    name = place.submit(place.run_file(shards), place.cluster_file(fast_seconds=0))
    slurm.wait_for(lambda: len(place.losses()) >= 5, seconds=120)
    slurm.run("scancel", "--batch", "--signal=USR1", place.slurm_id(name))  # as Slurm itself does `signal_seconds` before the limit
    slurm.wait_for(lambda: place.attempts(name), seconds=60)
    assert place.attempts(name) == [["75", "limit"]]
    assert 5 <= len(place.losses()) < STEPS
    slurm.wait_for(lambda: len(place.attempts(name)) == 2, seconds=180)
    assert place.attempts(name)[1] == ["0", "-"]
    slurm.wait_for(lambda: place.state(name) == "done", seconds=20)
    assert "resumed from" in place.jobs("logs", name)
    place.uniaudio("train", str(place.run_file(shards, "plain")))  # two processes, no Slurm
    assert [step for step, _ in place.losses()] == list(range(1, STEPS + 1))
    assert place.losses() == place.losses("plain")


def test_a_cancelled_training_saves_and_is_not_requeued(slurm, shards, place) -> None:
    name = place.submit(place.run_file(shards, steps=5000), place.cluster_file())
    slurm.wait_for(lambda: len(place.losses()) >= 3, seconds=120)
    assert place.state(name) == "running"
    place.jobs("cancel", name)
    slurm.wait_for(lambda: place.state(name) == "cancelled" and not slurm.run("squeue", "--noheader").strip(), seconds=60)
    assert len(list((place.folder / "out" / "checkpoints").glob("step-*"))) == 1
    assert "queued again" not in place.output()


def test_a_fault_of_the_user_is_not_tried_again(slurm, shards, place) -> None:
    copy = place.folder / "shards"
    shutil.copytree(shards, copy)
    for shard in copy.glob("*.tar"):  # what validation does not read
        shard.write_bytes(b"")
    name = place.submit(place.run_file(copy), place.cluster_file())
    slurm.wait_for(lambda: place.attempts(name), seconds=120)
    assert place.attempts(name) == [["2", "-"]]
    assert "not tried again" in place.output()
    place.jobs("status", name, code=1)


def test_a_job_that_crashes_at_once_is_given_up_after_max_fast_attempts(slurm, shards, place) -> None:
    name = place.submit(place.run_file(shards), place.cluster_file(python=shutil.which("false")))
    slurm.wait_for(lambda: len(place.attempts(name)) == 2, seconds=120)
    slurm.wait_for(lambda: place.state(name) == "failed", seconds=30)
    assert place.attempts(name) == [["1", "-"], ["1", "-"]]
    assert "2 fast attempts in a row, given up" in place.output()


def test_slurm_refuses_what_it_does_not_know(slurm, shards, place) -> None:
    cluster = place.cluster_file(partition="nowhere")
    assert place.uniaudio("submit", str(place.run_file(shards)), "--cluster", str(cluster), code=2) == ""
    assert not place.jobs("list")


@pytest.fixture
def farm_file(place) -> Path:
    """A farm of twelve tones in four units."""
    seconds = np.arange(32_000) / 16_000
    rows = []
    for number in range(12):
        tone = 0.2 * np.sin(2 * np.pi * (150 + 20 * number) * seconds)
        soundfile.write(place.folder / f"{number}.wav", tone.astype(np.float32), 16_000)
        rows.append({"id": f"c{number}", "audio_filepath": f"{number}.wav", "text": f"tone {number}", "speaker": "s", "split": "train"})
    (place.folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    views = {"audio": {"name": "codec"}, "phone": {"name": "phones"}}
    farm = {"manifest": str(place.folder / "manifest.jsonl"), "output_dir": str(place.folder / "shards"), "tokenizers": views}
    (place.folder / "farm.yaml").write_text(json.dumps({**farm, "clips_per_unit": 3, "cpus_per_worker": 2}))
    return place.folder / "farm.yaml"


def farm_cluster(place: Place, *, nodes: int, **slurm: object) -> tuple[str, str]:
    """Options of `submit` for a farm: two CPUs a node."""
    cluster = json.loads(place.cluster_file(**slurm).read_text())
    cluster["resources"] = {"nodes": nodes, "cpus_per_process": 2}
    (place.folder / "cluster.yaml").write_text(json.dumps(cluster))
    return "--cluster", str(place.folder / "cluster.yaml")


def test_a_farm_over_two_nodes_and_the_training_that_waits_for_it(slurm, place, farm_file) -> None:
    run = json.loads(place.run_file(place.folder / "shards", steps=3).read_text())
    run["data"] |= {"tasks": ["tts"], "frames_per_row": 512}
    run["model"] |= {"max_positions": 512}
    (place.folder / "out.yaml").write_text(json.dumps(run))
    options = farm_cluster(place, nodes=2)
    place.uniaudio("submit", str(farm_file), "--farm", *options)
    place.uniaudio("submit", str(place.folder / "out.yaml"), "--after", "tokenize-farm-1", *options)
    assert place.state("train-out-1") == "queued"
    slurm.wait_for(lambda: place.attempts("train-out-1"), seconds=200)
    assert place.attempts("tokenize-farm-1") == place.attempts("train-out-1") == [["0", "-"]], place.output()
    assert place.output().count("Ray runtime started") == 2, "both nodes; whether the second has work left depends on how soon it comes up"
    assert json.loads((place.folder / "shards" / "farm.json").read_text())["totals"]["clips"] == 12
    assert len(place.losses()) == 3


def test_a_job_array_makes_the_shards_of_one_farm(slurm, place, farm_file) -> None:
    place.uniaudio("submit", str(farm_file), "--farm", *farm_cluster(place, nodes=1, array=3, array_at_once=1))
    slurm.wait_for(lambda: place.state("tokenize-farm-1") in ("done", "failed"), seconds=200)
    assert place.jobs("status", "tokenize-farm-1").startswith("tokenize-farm-1: done"), place.output()
    assert sorted(line.split(":")[1] for line in place.jobs("logs", "tokenize-farm-1").splitlines()) == [" part 0", " part 1", " part 2"]
    assert json.loads((place.folder / "shards" / "farm.json").read_text())["totals"]["clips"] == 12
    place.uniaudio("tokenize", str(farm_file), f"output_dir={place.folder}/alone", "workers=1")
    for shard in (place.folder / "alone").glob("train-*"):
        assert (place.folder / "shards" / shard.name).read_bytes() == shard.read_bytes()


def test_a_node_that_dies_in_the_middle_is_left_and_the_training_resumes(slurm, shards, place) -> None:
    """Slurm requeues by itself; the training goes on from its last checkpoint on the nodes that are left."""
    name = place.submit(place.run_file(shards, steps=200, save_every=5), place.cluster_file())
    slurm.wait_for(lambda: list(place.folder.glob("out/checkpoints/step-*")), seconds=120)
    slurm.kill_node("n2")
    slurm.wait_for(lambda: "n2" in slurm.run("sinfo", "--noheader", "--states=down", "--format=%N"), seconds=60)
    # the first attempt is ended by Slurm, or crashes as its other node is gone, whichever comes first: either way it is queued again
    slurm.wait_for(lambda: ["0", "-"] in place.attempts(name), seconds=200)
    slurm.start_node("n2")
    assert place.nodes(name)[-1] == "n[1,3]"
    assert "resumed from" in place.output()
    assert [step for step, _ in place.losses()] == list(range(1, 201))


def test_a_node_whose_process_crashes_is_left_out_of_the_next_attempt(slurm, shards, place) -> None:
    name = place.submit(place.run_file(shards, steps=200, save_every=5), place.cluster_file(fast_seconds=0))
    slurm.wait_for(lambda: list(place.folder.glob("out/checkpoints/step-*")), seconds=120)
    slurm.kill_training("n2")
    slurm.wait_for(lambda: ["0", "-"] in place.attempts(name), seconds=200)
    assert place.nodes(name) == ["n[1-2]", "n[1,3]"]
    assert "queued again, without n2" in place.output()
    assert [step for step, _ in place.losses()] == list(range(1, 201))


NVIDIA_SMI = """#!/bin/bash
errors=0
[ "$SLURMD_NODENAME" != n2 ] || errors=3
echo "<nvidia_smi_log><driver_version>580.1</driver_version><gpu><product_name>H100</product_name>
<ecc_errors><volatile><dram_uncorrectable>$errors</dram_uncorrectable></volatile></ecc_errors></gpu></nvidia_smi_log>"
"""


def test_a_sick_node_is_named_by_preflight_and_the_job_goes_on_without_it(slurm, shards, place) -> None:
    """A stand-in for nvidia-smi tells of memory errors on one node; everything else is looked at for real."""
    tools = place.folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    name = place.submit(place.run_file(shards, steps=4), place.cluster_file(preflight=True, path=f"{tools}:{slurm.environment['PATH']}"))
    slurm.wait_for(lambda: ["0", "-"] in place.attempts(name), seconds=240)
    assert place.attempts(name) == [["76", "-"], ["0", "-"]]
    assert place.nodes(name) == ["n[1-2]", "n[1,3]"]
    assert "preflight: n2: GPU 0: uncorrectable memory errors (dram_uncorrectable 3)" in place.output()
    assert "2 nodes, 2 GPUs" in place.output() and "GB/s: all well" in place.output()
    assert [step for step, _ in place.losses()] == [1, 2, 3, 4]


def test_torchrun_launcher_trains_on_both_nodes(slurm, shards, place) -> None:
    name = place.submit(place.run_file(shards, steps=4), place.cluster_file(launcher="torchrun"))
    slurm.wait_for(lambda: place.attempts(name), seconds=120)
    assert place.attempts(name) == [["0", "-"]], place.output()
    assert [step for step, _ in place.losses()] == [1, 2, 3, 4]
