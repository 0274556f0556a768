"""A codec training as the command line runs it: one writer a folder, progress on standard error, an MLflow run closed as it ended."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from uniaudio.configs.codec import CodecConfig
from uniaudio.configs.load import dump_config
from uniaudio.lock import only_writer
from uniaudio.store import StoredRun
from uniaudio.tokenize_farm.codec.group import Group
from uniaudio.tokenize_farm.codec.train import CodecTraining


def train_codec(config: CodecConfig, device: torch.device, group: Group, *, stop_after: float | None = None) -> CodecTraining:
    """Trains to the end of the schedule, or for `stop_after` seconds, and returns the training as it then stands."""
    if group.rank != 0:
        training = CodecTraining(config, device, group=group)
        training.run(max_seconds=stop_after)
        return training
    with only_writer(Path(config.output_dir), what="codec training", key="output_dir"):
        training = CodecTraining(config, device, group=group)
        run = _open_run(config, training.run_id)
        training.run_id = run.run_id if run else None
        status = "FAILED"
        try:
            _with_progress(training, run, stop_after)
            status = "FINISHED" if training.progress >= 1 else "KILLED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if run:
                log = training.output / "log.jsonl"
                run.finish(status, {"log.jsonl": log.read_text()} if log.exists() else {})
    return training


def _open_run(config: CodecConfig, run_id: str | None) -> StoredRun | None:
    if config.experiment is None:
        return None
    sections = {name: value for name, value in config.model_dump(mode="json").items() if isinstance(value, dict)}
    params = {f"{section}.{key}": str(value) for section, values in sections.items() for key, value in values.items()}
    return StoredRun(Path(config.output_dir), experiment=config.experiment, run_id=run_id, params=params, config=dump_config(config))


def _with_progress(training: CodecTraining, run: StoredRun | None, stop_after: float | None) -> None:
    def record(step: int, figures: dict[str, float]) -> None:
        if run:
            run.log(step, figures)
            run.flush()

    columns = (TextColumn("codec"), BarColumn(), TextColumn("{task.percentage:>5.1f}% {task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=1.0)
        bar.update(task, completed=training.progress)
        training.run(max_seconds=stop_after, report=lambda done, text: bar.update(task, completed=done, description=text), record=record)
