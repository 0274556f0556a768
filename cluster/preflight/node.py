"""What one node shows by itself: GPUs, versions, disk, paths, MLflow. A fault is a line of text that names what to look at.

The report is JSON, one file a node, so that whoever judges needs to reach no node.
"""

import json
import os
import platform
import socket
import tempfile
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import disk_usage

from uniaudio.atomic import publish_bytes
from uniaudio.cluster.preflight.gpus import find_gpus
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.run import RunConfig

_PACKAGES = ("uniaudio", "torch", "triton", "deepspeed", "megatron-core", "ray", "numpy", "mlflow", "pydantic")
_MLFLOW_SECONDS = 10


@dataclass
class Report:
    """One node. Speeds are of its ranks, in their order; `pairs`: other node -> GB/s between the two."""

    node: str
    faults: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    gpus: list[str] = field(default_factory=list)
    clock_offset: float | None = None
    tflops: list[float] = field(default_factory=list)
    all_reduce_gb_per_second: float | None = None
    pairs: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Publishes `NODE.json`."""
        publish_bytes(folder / f"{self.node}.json", json.dumps(asdict(self), indent=1).encode())


def read_reports(folder: Path) -> dict[str, Report]:
    """The reports that were published, by node."""
    return {path.stem: Report(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))}


def node_name() -> str:
    """Slurm's name for this node, else the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def look(config: RunConfig | FarmConfig | None, cluster: ClusterConfig) -> Report:
    """Everything that needs no other node; `config`: the job whose paths are to be tried."""
    report = Report(node_name(), versions=_versions())
    gpus = find_gpus()
    report.gpus = [gpu.name for gpu in gpus]
    report.faults += [fault for gpu in gpus for fault in gpu.faults]
    if gpus:
        report.versions["NVIDIA driver"] = gpus[0].driver
    wanted = cluster.resources.gpus_per_node
    if len(gpus) < wanted:
        report.faults.append(f"{len(gpus)} GPUs where resources.gpus_per_node is {wanted}")
    if isinstance(config, RunConfig):
        for folder in config.data.folders:
            report.faults += _read_faults("data.shards", folder)
        report.faults += _write_faults("train.output_dir", config.train.output_dir, cluster)
    elif isinstance(config, FarmConfig):
        report.faults += _read_faults("manifest", config.manifest) + _write_faults("output_dir", config.output_dir, cluster)
    report.faults += _space_faults("the temporary folder", Path(tempfile.gettempdir()), cluster) + _mlflow_faults()
    return report


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _read_faults(key: str, place: str) -> list[str]:
    """Lists a folder, and reads the beginning of its first file: a mount that hangs or is stale shows here."""
    if "://" in place:
        return []
    path = Path(place)
    try:
        file = path if path.is_file() else next((file for file in sorted(path.iterdir()) if file.is_file()), None)
        if file is None:
            return [f"{key}: {path} is empty"]
        with file.open("rb") as handle:
            handle.read(2**20)
    except OSError as error:
        return [f"{key}: {path} cannot be read: {error.strerror}"]
    return []


def _write_faults(key: str, place: str, cluster: ClusterConfig) -> list[str]:
    """Writes, syncs and removes a file in the folder, or in the nearest one that exists."""
    if "://" in place:
        return []
    path = Path(place).absolute()
    while not path.exists():
        path = path.parent
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".preflight-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [f"{key}: {path} cannot be written: {error.strerror}"]
    return _space_faults(key, path, cluster)


def _space_faults(what: str, path: Path, cluster: ClusterConfig) -> list[str]:
    free, wanted = disk_usage(path).free / 1e9, cluster.preflight.free_disk_gb
    return [f"{what}: {free:.1f} GB free in {path}, preflight.free_disk_gb is {wanted:g}"] if free < wanted else []


def _mlflow_faults() -> list[str]:
    """Asks the server of MLFLOW_TRACKING_URI for its health; a file store is a path of the outputs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return []
    address = f"{uri.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=_MLFLOW_SECONDS):
            return []
    except urllib.error.HTTPError as error:
        return [] if error.code in (401, 403) else [f"MLflow answers {error.code} at MLFLOW_TRACKING_URI"]
    except (OSError, ValueError) as error:
        return [f"MLflow does not answer at MLFLOW_TRACKING_URI: {getattr(error, 'reason', error)}"]
