"""What a newcomer waits for: `make demo`, `make demo` again, `make lint test` in a fresh clone, with wall seconds and the peak of memory.

Needs quiet cores, network (or a filled pip cache) and about 15 minutes. Each step's output goes to OUT/STEP.log; the table to
OUT/fresh_clone.md.

    python tests/fresh_clone.py /tmp/fresh --steps demo again test
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"venv": ["make", "venv"], "demo": ["make", "demo"], "again": ["make", "demo"], "test": ["make", "lint", "test"]}
SECONDS_BETWEEN_SAMPLES = 1.0


@dataclass
class Peak:
    """Largest sum of PSS (memory, with shared pages divided among those who share them) over a process tree, in bytes."""

    value: int = 0

    def watch(self, pid: int, ended: threading.Event) -> None:
        while not ended.wait(SECONDS_BETWEEN_SAMPLES):
            self.value = max(self.value, sum(map(pss, [pid, *(child.pid for child in descendants(pid))])))


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def pss(pid: int) -> int:
    """Bytes of one process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def run_step(clone: Path, step: str) -> tuple[int, float, int]:
    """Exit code, wall seconds, peak bytes."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "VIRTUAL_ENV")}
    peak, ended, started = Peak(), threading.Event(), time.perf_counter()
    with (clone.parent / f"{step}.log").open("wb") as log:
        process = subprocess.Popen(COMMANDS[step], cwd=clone, env=environment, stdout=log, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=peak.watch, args=(process.pid, ended))
        watcher.start()
        code = process.wait()
    ended.set()
    watcher.join()
    return code, time.perf_counter() - started, peak.value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", nargs="+", choices=list(COMMANDS), default=["venv", "demo", "again", "test"])
    options = parser.parse_args()
    clone = options.out.resolve() / "clone"
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    commit = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    lines = [f"Commit {commit[:12]}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", ""]
    lines += ["| step | exit code | seconds | peak PSS, GiB |", "|---|---|---|---|"]
    failed = 0
    for step in options.steps:
        code, seconds, peak = run_step(clone, step)
        failed = failed or code
        lines.append(f"| `{' '.join(COMMANDS[step])}` ({step}) | {code} | {seconds:.0f} | {peak / 2**30:.2f} |")
        (options.out / "fresh_clone.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write((options.out / "fresh_clone.md").read_text(encoding="utf-8"))
    return failed


if __name__ == "__main__":
    sys.exit(main())
