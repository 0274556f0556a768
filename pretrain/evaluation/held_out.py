"""Held-out documents of one task: the batches that the likelihood is measured on, and what to generate from each.

Owns the way back from batches to documents; everything comes through the data path of training, prompts and masks included.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.configs.data import MixConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.tasks import TaskConfig, load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.loader import Loader, make_loader
from uniaudio.pretrain.data.sequence import Sequence, SequenceBuilder
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.tokenize_farm.shard_reader import ShardReader


@dataclass(frozen=True)
class HeldOut:
    """One document. clip: `valid-000000/KEY`. views: raw arrays by segment key. prompt: the document up to `<audio_start>`. target_TQ:
    raw codes. meta: KEY.json of the clip (text, language, speaker, ...)."""

    clip: str
    views: Mapping[str, np.ndarray]
    prompt: Sequence
    target_TQ: np.ndarray
    meta: Mapping[str, Any]


class HeldOutTask:
    """The held-out documents of a task in the shards of `run.data`; `rows` rows of `frames_per_row` at most.

    Raises:
        UserError: no held-out clip serves the task.
    """

    def __init__(self, run: RunConfig, vocabulary: Vocabulary, task: str, *, rows: int) -> None:
        self.task: TaskConfig = load_task(task)
        data = run.data.model_copy(update={"tasks": (task,), "workers": 0, "mix": MixConfig(), "bad_shards": "stop"})
        self._loader: Loader = make_loader(data, run.model, vocabulary, split="valid")
        self._builder = SequenceBuilder(
            self.task, vocabulary, run.model.num_codebooks, loss_on=run.data.loss_on, prefix_lm=run.model.prefix_lm
        )
        self.batches = self._loader.valid_batches(-(-rows // data.rows_per_micro_batch))
        if not any(batch.target_count for batch in self.batches):
            raise UserError(f"no held-out clip serves task {task}", seen=run.data.shards, remedy="leave it out of --tasks")

    def documents(self, count: int) -> list[HeldOut]:
        """The first `count` of them, each clip once."""
        found: dict[str, HeldOut] = {}
        rows = self._loader.planner.first_rows(sum(batch.codes_BTQ.shape[0] for batch in self.batches))
        clips = iter(rows.documents.clip.tolist())
        for sequence in (sequence for batch in self.batches for sequence in _sequences(batch)):
            clip = int(next(clips))
            key = self._loader.planner.clips.key(clip)
            if key in found:
                continue
            views = self._builder.revert(sequence)
            target = views.pop(self.task.target.key)
            prompt = self._builder.prompt({**views, self.task.target.key: target}, clip=key)
            found[key] = HeldOut(key, views, prompt, target, self._meta(clip, key))
            if len(found) == count:
                break
        return list(found.values())

    def close(self) -> None:
        """Closes the shards."""
        self._loader.close()

    def _meta(self, clip: int, key: str) -> dict[str, Any]:
        shard = int(self._loader.planner.clips.shard_of(np.array([clip]))[0])
        with ShardReader(Path(self._loader.assembler.files.path(shard))) as reader:
            return reader.meta(reader.index.keys.tolist().index(key.rsplit("/", 1)[1]))


def _sequences(batch: Batch) -> Iterator[Sequence]:
    """The documents of a micro-batch in order."""
    frames = batch.codes_BTQ.shape[1]
    for row in range(batch.codes_BTQ.shape[0]):
        starts = [*batch.document_starts_BD[row].tolist(), frames]
        for number in range(int((batch.task_ids_BD[row] >= 0).sum())):
            begin, end = starts[number], starts[number + 1]
            inside = (batch.text_positions_BS[row] >= begin) & (batch.text_positions_BS[row] < end)
            yield Sequence(
                batch.codes_BTQ[row, begin:end].numpy(),
                batch.target_mask_BTQ[row, begin:end].numpy(),
                batch.text_states_BSC[row][inside].numpy(),
                (batch.text_positions_BS[row][inside] - begin).numpy(),
                int(batch.prefix_lengths_BD[row, number]),
            )
