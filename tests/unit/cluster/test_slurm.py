"""The rendered scripts, held against golden files; `UNIAUDIO_UPDATE_GOLDEN=1 pytest` writes them anew."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from uniaudio.cluster import slurm
from uniaudio.cluster.job import Job, Record
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config, validate
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
PYTHON = {"python": "/opt/uniaudio/bin/python"}
GPUS = {"nodes": 2, "gpus_per_node": 8, "cpus_per_process": 12, "memory_gb_per_node": 900, "time_limit_minutes": 1440}
EVERY_KNOB = {
    "partition": "gpu",
    "account": "audio",
    "qos": "high",
    "constraint": "h100&ib",
    "exclude": "n[3-4]",
    "reservation": "week",
    "extra": ["--switches=1@12:00:00", "--comment='two words'"],
    "srun_extra": ["--cpu-bind=cores"],
    "launcher": "torchrun",
    "signal_seconds": 600,
    "requeue": False,
    "master_address": "10.0.0.1",
    "master_port": 29500,
}
CONTAINER = {"container": "registry.example.com/uniaudio:1", "container_mounts": ["/data:/data"], "variables": {"NCCL_DEBUG": "WARN"}}
SCRIPTS = {
    "train": ("run", {"resources": GPUS, "environment": PYTHON}),
    "train_every_knob": ("run", {"resources": GPUS, "environment": CONTAINER, "slurm": EVERY_KNOB}),
    "train_apptainer": ("run", {"resources": GPUS, "environment": CONTAINER, "slurm": {"container_runtime": "apptainer"}}),
    "train_wheelhouse": ("run", {"resources": GPUS, "environment": {"python": "/usr/bin/python3", "wheelhouse": "/data/wheels"}}),
    "farm_one_node": ("farm", {"environment": {**PYTHON, "setup": ["module load ffmpeg"]}}),
    "farm_array": ("farm", {"environment": PYTHON, "slurm": {"array": 8, "array_at_once": 4}}),
    "farm_two_nodes": ("farm", {"resources": {"nodes": 2, "cpus_per_process": 32}, "environment": PYTHON}),
}


def script(name: str, after: tuple[str, ...] = ()) -> str:
    what, sections = SCRIPTS[name]
    cluster = validate(ClusterConfig, {"kind": "slurm", **sections}, source="cluster.yaml")
    if what == "run":
        config: RunConfig | FarmConfig = load_config(RunConfig, "paper_1b", folder="runs")
    else:
        config = load_config(FarmConfig, "demo", folder="farms")
    return slurm.render(Job(config, Path(f"/work/jobs/{name}-1"), Path("/work")), cluster, after)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_the_golden_one(name):
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("UNIAUDIO_UPDATE_GOLDEN"):
        path.write_text(script(name))
    assert script(name) == path.read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_valid_bash(name, tmp_path):
    (tmp_path / "job").write_text(script(name))
    done = subprocess.run([shutil.which("bash") or "bash", "-n", str(tmp_path / "job")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_ray_head_that_cannot_start_ends_the_attempt_and_is_told(tmp_path):
    """Stand-ins for Slurm's commands: every step fails at once, as that of a head whose port is taken."""
    for name, text in {"srun": "exit 1", "scontrol": '[ "$1" != show ] || printf "n1\\nn2\\n"', "sbatch": "exit 0"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    sections = {"resources": {"nodes": 2, "cpus_per_process": 2}, "environment": PYTHON, "preflight": {"enabled": False}}
    cluster = validate(ClusterConfig, {"kind": "slurm", **sections}, source="cluster.yaml")
    job = Job(load_config(FarmConfig, "demo", folder="farms"), tmp_path / "job", tmp_path)
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["/bin/bash", "-c", slurm.render(job, cluster)], env=variables, capture_output=True, text=True, check=False, timeout=60
    )
    assert "uniaudio: error: Ray's head on n1 did not start" in done.stderr
    assert (tmp_path / "job" / "attempts").read_text().split()[3:] == ["69", "-"]
    assert "ended with exit code 69: queued again" in done.stdout


def test_dependencies_are_directives():
    assert "#SBATCH --dependency=afterok:17:18\n" in script("train", ("17", "18"))


def test_words_of_paths_are_quoted():
    cluster = validate(ClusterConfig, {"kind": "slurm", "environment": {"python": "/a b/python; rm -rf /"}}, source="c")
    config = load_config(RunConfig, "demo_cpu", folder="runs", overrides=["parallel.tensor_parallel_size=1"])
    text = slurm.render(Job(config, Path("/work/jobs $HOME/x-1"), Path("/work")), cluster)
    assert "'/a b/python; rm -rf /' -m uniaudio train '/work/jobs $HOME/x-1/config.yaml'" in text
    assert "JOB='/work/jobs $HOME/x-1'\n" in text


def test_without_a_client_the_error_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="no Slurm client .*login node"):
        slurm.cancel(Record("train-x-1", "slurm", "7", "train", "now"))


@pytest.mark.parametrize(
    ("attempts", "state"), [("t n1 9 75 limit\nt n1 9 0 -\n", "done"), ("t n1 9 1 -\n", "failed"), ("t n1 9 75 slurm\n", "cancelled")]
)
def test_what_slurm_has_forgotten_the_job_folder_knows(attempts, state, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "_slurm", lambda command, may_fail: "")
    (tmp_path / "attempts").write_text(attempts)
    assert slurm.status(Record("train-x-1", "slurm", "7", "train", "now", output=str(tmp_path / "output.log"))).state == state
    assert slurm.status(Record("train-x-1", "slurm", "7", "train", "now", output=str(tmp_path / "no" / "output.log"))).state == "unknown"


@pytest.mark.parametrize(
    ("states", "state", "detail"),
    [
        (("COMPLETED", "RUNNING", "PENDING"), "running", "1 done, 1 running, 1 queued"),
        (("COMPLETED", "FAILED", "COMPLETED"), "failed", "2 done, 1 failed"),
        (("COMPLETED", "COMPLETED"), "done", "2 done"),
    ],
)
def test_an_array_is_how_its_parts_are(states, state, detail, monkeypatch):
    lines = "".join(f"JobId={number} ArrayJobId=7 JobState={word}\n" for number, word in enumerate(states))
    monkeypatch.setattr(slurm, "_slurm", lambda command, may_fail: lines)
    status = slurm.status(Record("tokenize-x-1", "slurm", "7", "tokenize", "now", output="/jobs/x/output.log"))
    assert (status.state, status.detail) == (state, detail)


def test_no_script_or_folder_holds_a_secret(monkeypatch, tmp_path):
    """The shell's secrets reach the job by Slurm's own copy of the environment: nothing that is written down names their values."""
    monkeypatch.setenv("HF_TOKEN", "do-not-write-me")
    for name, (what, _) in SCRIPTS.items():
        assert "do-not-write-me" not in script(name), what


@pytest.mark.parametrize(
    ("exits", "blamed"),
    [
        ("12.5 n1 rank 0 code 1\n", ""),  # n2 has died: Slurm knows, and n1 is innocent
        ("12.5 n1 rank 0 code 1\n11.0 n2 rank 1 code 137\n", "n2\n"),
        ("12.5 n1 rank 0 code 137\n", "n1\n"),  # the others still wait for it
        ("12.5 n1 rank 0 code 1\n13.0 n2 rank 1 code 1\n", "n1\n"),
    ],
)
def test_the_node_of_the_first_crash_is_blamed_where_no_node_is_silent(exits, blamed, tmp_path):
    text = script("train")
    lines = text[text.index('if [ "$code" != 75 ] && [ -s') : text.index("bad=$(")]
    (tmp_path / "exits-0").write_text(exits)
    head = f"STATE={tmp_path}; ATTEMPT=0; SLURM_JOB_NUM_NODES=2; code=1; touch $STATE/bad_nodes\n"
    subprocess.run([shutil.which("bash") or "bash", "-c", head + lines], check=True)
    assert (tmp_path / "bad_nodes").read_text() == blamed
