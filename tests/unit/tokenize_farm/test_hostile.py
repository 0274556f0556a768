"""200 hostile files through the farm's worker: each a counted reason or a good clip, in bounded memory and time, nothing else touched."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.hostile import write_hostile
from uniaudio.configs.farm import FarmConfig
from uniaudio.tokenize_farm.index import ShardPaths
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.verify import verify_shard
from uniaudio.tokenize_farm.worker import UnitWorker

MEMORY_MIB = 600  # more than the worker held before


class Counter:
    """A tokenizer that looks at every sample and makes one frame a clip."""

    name, version, view = "count", "1", "midi"

    def encode(self, clips: list) -> list[np.ndarray]:
        return [np.array([1 + np.isfinite(clip.samples).all()], dtype=np.uint16) for clip in clips]


def run_worker(config: FarmConfig) -> dict:
    """The shard of the only unit; makes its own process limited in memory and time, so call it in one of its own."""
    worker = UnitWorker.__new__(UnitWorker)
    versions = {"midi": "count/1"}
    from uniaudio.tokenize_farm import worker as module

    module.make_tokenizers = lambda config: {"midi": Counter()}
    worker.__init__(config, versions)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    unit = Plan(config.manifest, config, versions)[0]
    sidecar = worker.run(unit).sidecar
    return {"sidecar": sidecar, "grown_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before}


def snapshot(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything below `folder` outside `but`."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) != but]
        for name in names:
            status = Path(place, name).lstat()
            found[str(Path(place, name))] = (status.st_size, status.st_mtime_ns)
    return found


def test_every_hostile_file_ends_in_a_reason_or_a_good_clip(tmp_path: Path) -> None:
    folder, out = tmp_path / "corpus" / "files", tmp_path / "out"
    folder.mkdir(parents=True)
    expected = dict(enumerate(write_hostile(folder)))
    rows = []
    for i, (name, _) in expected.items():
        path = name if name.startswith("/") else f"files/{name}"
        rows.append({"id": f"h{i}", "audio_filepath": path, "split": "train"})
    manifest = tmp_path / "corpus" / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"manifest": str(manifest), "output_dir": str(out), "tokenizers": {"midi": {"name": "f0"}}, "clips_per_unit": 500}
    before = snapshot(tmp_path, out)
    program = (
        "import json, sys\nfrom tests.unit.tokenize_farm.test_hostile import run_worker\nfrom uniaudio.configs.farm import FarmConfig\n"
        "print(json.dumps(run_worker(FarmConfig.model_validate_json(sys.argv[1]))))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps(config)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert ended.returncode == 0, ended.stderr[-3_000:]
    result = json.loads(ended.stdout.strip().splitlines()[-1])
    ends = {name: reason for reason, names in result["sidecar"]["dropped"].items() for name in names}
    wrong = {
        name: (path, ends.get(f"h{name}", "good"), right)
        for name, (path, right) in expected.items()
        if ends.get(f"h{name}", "good") not in right
    }
    assert wrong == {}
    assert result["sidecar"]["clips"] + len(ends) == len(rows) == 200 and result["sidecar"]["clips"] >= 20
    assert result["grown_mib"] < MEMORY_MIB
    assert snapshot(tmp_path, out) == before and not (tmp_path / "corpus" / "pwned").exists()
    assert sorted(path.name for path in out.iterdir()) == ["train-000000.index.npz", "train-000000.json", "train-000000.tar"]
    assert verify_shard(ShardPaths(out, "train", 0)) == []
