"""The target `slurm`: renders a batch script from templates/slurm*.j2, queues it, asks after it, cancels it.

Owns the script's values; what the script does is written in the templates. Talks to Slurm by its commands alone.
"""

import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from uniaudio.atomic import publish_bytes
from uniaudio.cluster.job import OUTPUT, Job, Record, create_folder, write_record
from uniaudio.cluster.target import State, Status, read_output
from uniaudio.cluster.validate import farm_workers, layout_equation
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

SCRIPT = "job.sbatch"
CLUSTER_FILE = "cluster.yaml"
_WAIT_SECONDS = 120  # for the ranks that have not ended when the first has: a crash leaves them waiting for the dead
_STATES: dict[str, State] = {
    "PENDING": "queued",
    "REQUEUED": "queued",
    "CONFIGURING": "queued",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "running",
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
}
_WORST_FIRST: tuple[State, ...] = ("running", "queued", "failed", "cancelled", "unknown", "done")  # of an array's parts


def directives(job: Job, cluster: ClusterConfig, after: Sequence[str] = ()) -> list[str]:
    """The #SBATCH lines, without the prefix, in the order of the script."""
    slurm, resources = cluster.slurm, cluster.resources
    ranks = resources.ranks_per_node
    is_farm = isinstance(job.config, FarmConfig)
    cpus = cluster.resources.cpus_per_node if is_farm else resources.cpus_per_process
    options: dict[str, object] = {
        "job-name": job.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "nodes": resources.nodes,
        "ntasks-per-node": 1 if is_farm else ranks,
        "cpus-per-task": cpus,
        "gpus-per-node": resources.gpus_per_node or None,
        "mem": f"{resources.memory_gb_per_node}G" if resources.memory_gb_per_node else None,
        "time": resources.time_limit_minutes,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "reservation": slurm.reservation,
        "array": f"0-{slurm.array - 1}" + (f"%{slurm.array_at_once}" if slurm.array_at_once else "") if slurm.array else None,
        "signal": f"B:USR1@{slurm.signal_seconds}",
        "dependency": "afterok:" + ":".join(after) if after else None,
        "chdir": job.work_dir,
        "output": str(job.folder / OUTPUT).replace("%", "%%") if not slurm.array else str(job.folder).replace("%", "%%") + "/part-%a.log",
        "open-mode": "append",
    }
    lines = [f"--{name}={_directive_value(str(value))}" for name, value in options.items() if value is not None]
    return [*lines, "--requeue" if slurm.requeue else "--no-requeue", *slurm.extra]


def render(job: Job, cluster: ClusterConfig, after: Sequence[str] = ()) -> str:
    """The batch script; `after`: Slurm's ids of jobs that must end well before."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["q"] = lambda value: shlex.quote(str(value))
    is_run = isinstance(job.config, RunConfig)
    python = _python(cluster)
    command = job.argv("python")[1:]  # behind the interpreter, which may be a shell's variable
    torchrun = is_run and cluster.slurm.launcher == "torchrun"
    return templates.get_template("slurm.sh.j2").render(
        job=job,
        cluster=cluster,
        directives=directives(job, cluster, after),
        layout=" of ".join(layout_equation(job.config, cluster)) if isinstance(job.config, RunConfig) else "",
        command=f"{python} {shlex.join(command)}",
        module_command=shlex.join(command[1:]),
        python=python,
        ray=f"{python} -m ray.scripts.scripts",
        srun_options=_srun_options(cluster, is_farm=not is_run),
        stop_signal="USR1" if is_run else "TERM",
        saved_is_hidden=_hidden_reason(is_run, torchrun),
        world_size=job.config.parallel.world_size if isinstance(job.config, RunConfig) else 0,
        wait_seconds=_WAIT_SECONDS,
        workers=farm_workers(job.config, cluster.resources) if isinstance(job.config, FarmConfig) else 0,
        look=cluster.preflight.enabled and (cluster.resources.nodes > 1 or cluster.resources.gpus_per_node > 0),
        look_ranks=job.config.parallel.world_size if isinstance(job.config, RunConfig) and not torchrun else cluster.resources.nodes,
        look_job=shlex.join([str(job.config_file), *([] if is_run else ["--farm"]), "--cluster", str(job.folder / CLUSTER_FILE)]),
        cluster_file=job.folder / CLUSTER_FILE,
        script=SCRIPT,
        output=OUTPUT,
    )


def submit(job: Job, cluster: ClusterConfig, after: Sequence[str] = ()) -> Record:
    """Writes the job's folder and queues the script; UserError where Slurm refuses it."""
    create_folder(job)
    publish_bytes(job.folder / CLUSTER_FILE, yaml.safe_dump(cluster.model_dump(mode="json", exclude_unset=True)).encode())
    script = job.folder / SCRIPT
    publish_bytes(script, render(job, cluster, after).encode())
    answer = _slurm(["sbatch", "--parsable", str(script)]).strip().split(";")[0]
    return write_record(job, kind="slurm", id=answer, output=str(job.folder / OUTPUT))


def status(record: Record) -> Status:
    """What Slurm says; where it has forgotten the job, what the script wrote down at the end of its last attempt.

    Of a job array: how many parts are how.
    """
    answer = _slurm(["scontrol", "show", "job", "--oneliner", record.id], may_fail=True)
    jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in answer.splitlines()]
    parts = [_said_by_slurm(fields) for fields in jobs if "JobState" in fields]
    if not parts:
        folder = Path(record.output).parent
        parts = [_written_down(path) for path in sorted([*folder.glob("attempts"), *folder.glob("part-*/attempts")])]
    if not parts:
        return Status("unknown", "Slurm has forgotten this job, and it never started")
    if len(parts) == 1:
        return parts[0]
    counts = Counter(part.state for part in parts)
    state = next(state for state in _WORST_FIRST if counts[state])
    return Status(state, ", ".join(f"{count} {word}" for word, count in counts.items()))


def _said_by_slurm(fields: dict[str, str]) -> Status:
    word = fields["JobState"]
    wanted = ("Reason", "NodeList", "RunTime", "Restarts", "ExitCode")
    detail = ", ".join([word, *(f"{key} {fields[key]}" for key in wanted if fields.get(key) not in (None, "None", "(null)"))])
    return Status(_STATES.get(word, "failed"), detail)


def _written_down(attempts: Path) -> Status:
    *_, last = attempts.read_text(encoding="utf-8").splitlines()
    _, nodes, seconds, code, asked = last.split()
    state: State = "done" if code == "0" else "cancelled" if asked == "slurm" else "failed"
    return Status(state, f"last attempt: exit code {code} after {seconds} s on {nodes}")


def output(record: Record, start: int) -> bytes:
    """The job's output from byte `start`."""
    return read_output(record.output, start)


def cancel(record: Record) -> None:
    """Ends the job; a training saves first, within Slurm's KillWait."""
    _slurm(["scancel", record.id])


def _slurm(command: list[str], *, may_fail: bool = False) -> str:
    """Output of a command of Slurm."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError("this machine has no Slurm client", seen=command[0], remedy="submit from a login node of the cluster") from error
    if done.returncode and not may_fail:
        raise UserError(f"{command[0]} refused", seen=done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout


def _python(cluster: ClusterConfig) -> str:
    """The interpreter on a node, as shell text."""
    environment = cluster.environment
    if environment.wheelhouse:
        return '"$VENV/bin/python"'
    python = environment.python or ("python3" if environment.container else sys.executable)
    if environment.container and cluster.slurm.container_runtime == "apptainer":
        mounts = [word for mount in environment.container_mounts for word in ("--bind", mount)]
        gpus = ["--nv"] if cluster.resources.gpus_per_node else []
        return shlex.join(["apptainer", "exec", *gpus, *mounts, environment.container, python])
    return shlex.quote(python)


def _srun_options(cluster: ClusterConfig, *, is_farm: bool) -> str:
    environment, slurm = cluster.environment, cluster.slurm
    cpus = cluster.resources.cpus_per_node if is_farm or slurm.launcher == "torchrun" else cluster.resources.cpus_per_process
    options = ["--kill-on-bad-exit=0", *([f"--cpus-per-task={cpus}"] if cpus else [])]
    if environment.container and slurm.container_runtime == "pyxis":
        options.append(f"--container-image={environment.container}")
        if environment.container_mounts:
            options.append("--container-mounts=" + ",".join(environment.container_mounts))
    return shlex.join([*options, *slurm.srun_extra])


def _hidden_reason(is_run: bool, torchrun: bool) -> str:
    """Why exit code 75 does not reach the script, where it does not."""
    if torchrun:
        return "torchrun hides that its ranks have saved"
    return "" if is_run else "a farm that was ended goes on with the same command"


def _directive_value(value: str) -> str:
    return value if all(character.isalnum() or character in "/._-+=:@%,|&*[]~" for character in value) else f'"{value}"'
