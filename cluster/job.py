"""A job: what to run, and the folder that remembers it.

Owns the folder `JOB_DIR/NAME`: `config.yaml` (resolved: later edits of the user's file change nothing), the rendered script or manifest,
the output, and `job.json`, the record that `uniaudio jobs` reads. Knows no scheduler.
"""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from uniaudio.atomic import publish_bytes
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

RECORD = "job.json"
OUTPUT = "output.log"


@dataclass(frozen=True)
class Job:
    """One run or farm with its folder; both absolute, so that every node means the same files."""

    config: RunConfig | FarmConfig
    folder: Path
    work_dir: Path

    @property
    def name(self) -> str:
        """The folder's name: what `uniaudio jobs` calls it."""
        return self.folder.name

    @property
    def command(self) -> Literal["train", "tokenize"]:
        """The subcommand of `uniaudio`."""
        return "train" if isinstance(self.config, RunConfig) else "tokenize"

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.folder / "config.yaml"

    def argv(self, python: str, *overrides: str) -> list[str]:
        """The words that run it: no shell in between."""
        return [python, "-m", "uniaudio", self.command, str(self.config_file), *overrides]


@dataclass(frozen=True)
class Record:
    """What is kept of a submitted job. `id` is the scheduler's own; `address` where to ask for it."""

    name: str
    kind: str
    id: str
    command: str
    created: str
    address: str = ""
    output: str = ""


def plan_job(config: RunConfig | FarmConfig, stem: str, job_dir: str | Path) -> Job:
    """A job under the next free number; nothing is written yet."""
    root = Path(job_dir).absolute()
    command = "train" if isinstance(config, RunConfig) else "tokenize"
    base = f"{command}-{re.sub(r'[^a-z0-9]+', '-', stem.lower()).strip('-') or 'job'}"[:40].rstrip("-")
    taken = [int(path.name.rsplit("-", 1)[1]) for path in root.glob(f"{base}-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return Job(config, root / f"{base}-{max(taken, default=0) + 1}", Path.cwd())


def create_folder(job: Job) -> None:
    """Makes the job's folder with its resolved config; UserError where another submission has just taken the name."""
    try:
        job.folder.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError("another submission has taken this job's name just now", seen=job.folder, remedy="submit again") from error
    publish_bytes(job.config_file, dump_config(job.config).encode())


def write_record(job: Job, *, kind: str, id: str, address: str = "", output: str = "") -> Record:
    """Writes job.json and returns it."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(job.name, kind, id, job.command, created, address, output)
    publish_bytes(job.folder / RECORD, json.dumps(asdict(record), indent=1).encode())
    return record


def read_record(folder: Path) -> Record:
    """The record of a job's folder; UserError where it is not one."""
    path = folder / RECORD
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(
            "no such job",
            seen=folder.name,
            allowed=", ".join(record.name for record in read_records(folder.parent)) or f"none yet in {folder.parent}",
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError("a job's record is damaged", seen=path, remedy="remove the folder; the scheduler still knows the job") from error


def read_records(root: Path) -> list[Record]:
    """All jobs below `root`, oldest first."""
    return sorted((read_record(path.parent) for path in root.glob(f"*/{RECORD}")), key=lambda record: (record.created, record.name))
