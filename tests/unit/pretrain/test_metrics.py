import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.metrics import (
    Clock,
    MetricsFile,
    Speed,
    count_codes,
    loss_metrics,
    process_start,
    system_metrics,
    unigram_metrics,
)

TASKS = ["tts", "sound", "music"]


def test_losses_are_sums_over_counts() -> None:
    sums = torch.tensor([[2.0, 4.0], [6.0, 0.0], [0.0, 0.0]])
    counts = torch.tensor([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    metrics = loss_metrics(sums, counts, TASKS, prefix="valid/")
    assert metrics == {
        "valid/loss": 2.0,
        "valid/loss/task/tts": 3.0,
        "valid/loss/task/sound": 1.5,
        "valid/loss/level/0": pytest.approx(8 / 3),
        "valid/loss/level/1": pytest.approx(4 / 3),
    }, "a task without a code has no loss"


def batch() -> Batch:
    """One row of two documents (tasks 1 and 0), Q = 2; frame 0 is no target."""
    codes = torch.tensor([[[5, 6], [1, 2], [1, 3], [4, 2]]])
    mask = torch.tensor([[[0, 0], [1, 1], [1, 1], [1, 1]]], dtype=torch.int8)
    starts, tasks = torch.tensor([[0, 3, 4]], dtype=torch.int32), torch.tensor([[1, 0, -1]], dtype=torch.int32)
    return Batch(codes, mask, starts, starts * 0, torch.zeros(1, 4), torch.zeros(1, 1, 1), torch.zeros(1, 1), tasks)


def test_codes_are_counted_by_task_and_level_where_the_loss_counts_them() -> None:
    histogram = count_codes([batch(), batch()], 3, 8)
    assert histogram.shape == (3, 2, 8) and histogram.sum() == 12
    assert histogram[1, 0, 1] == 4 and histogram[1, 1, 2] == 2 and histogram[1, 1, 3] == 2
    assert histogram[0, 0, 4] == 2 and histogram[0, 1, 2] == 2


def test_counting_a_real_step_equals_counting_code_by_code() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([[0, 3, 7, 12, 12], [0, 12, 12, 12, 12], [0, 1, 2, 5, 9]], dtype=torch.int32)
    tasks = torch.tensor([[2, 0, -1, -1, -1], [1, -1, -1, -1, -1], [0, 2, 2, 1, -1]], dtype=torch.int32)
    codes = torch.randint(0, 8, (3, 12, 2), generator=generator)
    mask = torch.randint(0, 2, (3, 12, 2), generator=generator).to(torch.int8)
    expected = torch.zeros(3, 2, 8, dtype=torch.int64)
    for row in range(3):
        for frame in range(12):
            task = tasks[row, int((starts[row] <= frame).sum()) - 1]
            if task < 0:
                mask[row, frame] = 0  # padding is no target
            for level in range(2):
                expected[task, level, codes[row, frame, level]] += int(mask[row, frame, level])
    unused = torch.zeros(3, 1)
    assert torch.equal(count_codes([Batch(codes, mask, starts, starts * 0, unused, unused, unused, tasks)], 3, 8), expected)


def test_unigram_is_the_entropy_of_the_codes() -> None:
    metrics = unigram_metrics(count_codes([batch()], 3, 8), TASKS)
    third = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert metrics["unigram/level/0"] == pytest.approx(third) and metrics["unigram/level/1"] == pytest.approx(third)
    assert metrics["unigram"] == pytest.approx(third)
    assert metrics["unigram/task/tts"] == 0.0
    assert metrics["unigram/task/sound"] == pytest.approx(math.log(2) / 2)
    assert "unigram/task/music" not in metrics


def test_a_model_of_the_frequencies_pays_exactly_the_unigram_entropy() -> None:
    histogram = torch.randint(0, 9, (1, 1, 50), generator=torch.Generator().manual_seed(3))
    losses = -(histogram.double() / histogram.sum()).log()[0, 0]
    paid = (histogram[0, 0] * losses)[histogram[0, 0] > 0].sum() / histogram.sum()
    assert unigram_metrics(histogram, ["tts"])["unigram"] == pytest.approx(float(paid))


def test_mfu_is_frames_times_operations_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    from uniaudio.pretrain import metrics

    run = load_config(RunConfig, "paper_1b", folder="runs", overrides=["parallel.data_parallel_size=2"])
    clock = [100.0]
    monkeypatch.setattr(metrics, "peak_flops", lambda device: (989e12, "test"))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    speed = Speed(run, 4212, torch.device("cpu"))
    clock[0] += 4.0
    lap = speed.lap(10)
    width, rows = 1536, 4224
    operations = 6 * (24 * 12 * width**2 + 3 * 8 * 12 * width**2 + 3 * width * rows) + 3 * 24 * 2 * 2048 * width
    assert lap["frames_per_second"] == pytest.approx(10 * 2 * 8192 / 4.0)
    assert lap["mfu"] == pytest.approx(lap["frames_per_second"] * operations / (2 * 989e12))
    assert lap["seconds_per_step"] == pytest.approx(0.4)


def test_a_resumed_file_drops_what_lies_behind_the_checkpoint_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path, resume_step=0)
    for step in (1, 2, 3):
        file.write(step, {"loss": 0.1 * step})
    file.close()
    path.write_text(path.read_text() + '{"step": 4, "lo')
    file = MetricsFile(path, resume_step=2)
    file.write(3, {"loss": 1 / 3})
    file.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 1 / 3}], "floats come back exactly"


def test_steps_that_no_checkpoint_has_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, resume_step=0)
    for step in (1, 2, 3):
        file.write(step, {"loss": 1.0})
    file.close()
    path.write_text(path.read_text() + '{"step": 4, "lo')
    logging.getLogger("uniaudio").addHandler(caplog.handler)
    MetricsFile(path, resume_step=2).close()
    MetricsFile(path, resume_step=2).close()
    logging.getLogger("uniaudio").removeHandler(caplog.handler)
    told = "the training before came to step 3, or further: the steps behind 2 were not saved and are trained again"
    assert [record.message for record in caplog.records] == [told], "once: the second time all lines are of the checkpoint or before"


@contextmanager
def two_lines_on_a_full_disk(path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[tuple[MetricsFile, Any]]:
    """A file that was given two lines without room for them, and its handle on a disk that has room; what is logged is caught."""
    file = MetricsFile(path, resume_step=0)
    disk = file._handle
    logging.getLogger("uniaudio").addHandler(caplog.handler)
    with Path("/dev/full").open("ab", buffering=0) as full:
        file._handle = full
        file.write(1, {"loss": 1.0})
        file.write(2, {"loss": 2.0})
        yield file, disk
    logging.getLogger("uniaudio").removeHandler(caplog.handler)


def test_lines_wait_in_memory_while_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    with two_lines_on_a_full_disk(path, caplog) as (file, disk):
        pass
    assert [record.message for record in caplog.records] == [
        f"{path} cannot be written (No space left on device); its lines are kept in memory"
    ]
    file._handle = disk
    file.write(3, {"loss": 3.0})
    file.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("room", [True, False])
def test_lines_that_were_kept_are_tried_again_at_the_end(tmp_path: Path, room: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    with two_lines_on_a_full_disk(path, caplog) as (file, disk):
        caplog.clear()
        if room:
            file._handle = disk
        file.close()
    disk.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == ([1, 2] if room else [])
    lost = [f"{path} lacks its last 2 lines: it cannot be written (No space left on device)"]
    assert [record.message for record in caplog.records] == ([] if room else lost)


def test_lines_that_were_kept_outlive_a_rewind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, resume_step=0)
    file.write(1, {"loss": 1.0})
    with Path("/dev/full").open("ab", buffering=0) as full:
        file._handle.close()
        file._handle = full
        file.write(2, {"loss": 2.0})
        file.write(3, {"loss": 3.0})
    file.drop_after(2)
    file.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


GARBAGE = ['{"step": 2, "lo\0\n', "\0\0\n", "[2]\n", "{}\n", "\n", '{"step": null}\n', "\xff\n", "2\n"]


@pytest.mark.parametrize("line", GARBAGE)
def test_a_damaged_line_among_those_to_keep_is_told_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + line.encode("latin-1") + b'{"step": 3}\n'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is no line of metrics \| seen: .*remedy: remove the line, or move"):
        MetricsFile(path, resume_step=3)
    assert path.read_bytes() == content, "nothing is lost"
    MetricsFile(path, resume_step=2).close()
    assert path.read_text() == '{"step": 1}\n', "behind the checkpoint it goes with the others"


def test_goodput_counts_from_the_first_start_of_all() -> None:
    begun = process_start()
    assert 0 <= time.time() - begun < 3600 * 24 and abs(process_start() - begun) < 1
    clock = Clock(first_start=time.time() - 200, productive=100)
    assert clock.metrics()["goodput"] == pytest.approx(0.5, abs=0.01)
    assert Clock(**clock.record()) == clock, "carried by the checkpoint's manifest"


def test_system_metrics_are_of_this_process() -> None:
    metrics = system_metrics(torch.device("cpu"))
    assert 0.05 < metrics["system/memory_gb"] < 100 and metrics["system/load"] >= 0


def test_a_rewind_drops_the_lines_behind_it(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", resume_step=0)
    for step in (1, 2, 3):
        file.write(step, {"loss": 1.0})
    file.drop_after(1)
    file.write(2, {"loss": 2.0})
    file.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
