"""Which clips serve which task, and how often they come: from hours, shares and weights to repeats. Reads the groups of the index alone."""

from collections.abc import Sequence

import numpy as np

from uniaudio.configs.data import Shares
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import CONTINUOUS, TaskConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.tokenize_farm.index_table import IndexTable
from uniaudio.tokenize_farm.schema import KINDS

_COPY_UNIT = 2**20  # repeats are multiples of 2^-20, so that their sums over epochs are exact in float64


class Service:
    """Which groups of clips (`IndexTable`) serve which task.

    serves: for each dataset (K, G) bool. hours: (K, datasets). lacking: task -> reason -> clips of its kinds that do not serve it.
    """

    def __init__(self, clips: ClipTable, tasks: Sequence[TaskConfig]) -> None:
        self.clips, self.tasks = clips, tasks
        self.lacking: dict[str, dict[str, int]] = {task.name: {} for task in tasks}
        self.serves = [np.stack([self._groups_for(task, table) for task in tasks]) for table in clips.tables]
        self.hours = np.stack([serves @ table.group_seconds / 3600 for serves, table in zip(self.serves, clips.tables)], axis=1)
        self.counts = np.stack([serves @ table.group_clips for serves, table in zip(self.serves, clips.tables)], axis=1)

    def _groups_for(self, task: TaskConfig, table: IndexTable) -> np.ndarray:
        eligible = np.isin(table.group_kinds, [KINDS.index(kind) for kind in task.kinds])
        demands = {f"no view {view}": _has_view(table, view) for view in task.required_views}
        if task.needs_prompt:
            demands["no other clip of the speaker"] = table.group_company > 0
        for reason, met in demands.items():
            if count := int(table.group_clips[eligible & ~met].sum()):
                self.lacking[task.name][reason] = self.lacking[task.name].get(reason, 0) + count
            eligible = eligible & met
        return eligible

    def check_shapes(self, model: ModelConfig) -> None:
        """Raises UserError for text states of another width, or fewer levels than the model's codebooks."""
        for number, task in enumerate(self.tasks):
            for segment in task.segments:
                for serves, table in zip(self.serves, self.clips.tables):
                    if not serves[number].any():
                        continue
                    place = table.view_numbers[segment.view]
                    low, high = table.narrowest[serves[number], place].min(), table.widest[serves[number], place].max()
                    if segment.modality == CONTINUOUS and (low != model.text_width or high != model.text_width):
                        raise UserError(
                            f"model.text_width is not the width of the shards' view {segment.view}",
                            seen=model.text_width,
                            allowed=int(low if low != model.text_width else high),
                        )
                    if segment.modality == "audio" and low < model.num_codebooks:
                        raise UserError(
                            f"model.num_codebooks exceeds the levels of the shards' view {segment.view}",
                            seen=model.num_codebooks,
                            allowed=f"up to {int(low)}",
                        )

    def check_tasks(self) -> list[str]:
        """Tasks that no clip serves. Raises UserError where that is one of the train split, or all of them."""
        empty = [task.name for task, count in zip(self.tasks, self.counts.sum(axis=1)) if count == 0]
        if empty and (self.clips.split == "train" or len(empty) == len(self.tasks)):
            raise UserError(
                f"no clip of the split {self.clips.split} serves these tasks of data.tasks: {self.why_not(empty)}",
                seen=f"{len(self.clips)} clips in {', '.join(table.directory for table in self.clips.tables)}",
                remedy="leave those tasks out of data.tasks, or tokenize the views they need",
            )
        return empty

    def why_not(self, tasks: Sequence[str]) -> str:
        """Why no clip serves these tasks."""
        return "; ".join(f"{name}: {self.lacking[name] or 'no clip of its kind'}" for name in tasks)

    def repeats(self, shares: Shares) -> np.ndarray:
        """(K, datasets) how often the clips of a dataset come for a task in an epoch, on average; all 1 for held-out clips.

        A task's share of the hours drawn is its hours^alpha, or its weight, over the sum of all; a dataset's weight changes what the
        task's hours consist of, not how many they are. An epoch draws as many hours as the tasks have together.
        """
        self._check_names(shares)
        hours = self.hours.sum(axis=1)
        if self.clips.split != "train":
            return np.ones_like(self.hours)
        weights = np.array([shares.datasets.get(name, 1.0) for name in self.clips.names])
        drawn = self.hours @ weights  # hours of a task as its datasets' weights count them
        within = np.where(drawn[:, None] > 0, weights * (hours / np.maximum(drawn, 1e-300))[:, None], 0.0)
        repeats = np.ones(len(self.tasks))
        if shares.alpha != 1 or shares.weights:
            powers = np.where(hours > 0, hours**shares.alpha, 0.0)
            wanted = np.array([shares.weights.get(task.name, share) for task, share in zip(self.tasks, powers / powers.sum())]) * (
                drawn > 0
            )
            if wanted.sum() == 0:
                raise UserError("data.mix leaves no task with a share above 0", seen=shares.weights)
            repeats = wanted / wanted.sum() * hours.sum() / np.maximum(hours, 1e-300)
        return np.round(repeats[:, None] * within * (self.hours > 0) * _COPY_UNIT) / _COPY_UNIT

    def _check_names(self, shares: Shares) -> None:
        tasks = tuple(task.name for task in self.tasks)
        for key, given, known in (("weights", shares.weights, tasks), ("datasets", shares.datasets, self.clips.names)):
            if unknown := sorted(set(given) - set(known)):
                where = "data.tasks" if key == "weights" else "data.shards"
                raise UserError(
                    f"data.mix.{key} names what is not in {where}",
                    seen=", ".join(unknown),
                    allowed=", ".join(known),
                    remedy=f'shares of your own, or none: "data.mix.{key}={{}}" (a shipped config may hold some)',
                )


def _has_view(table: IndexTable, view: str) -> np.ndarray:
    """(G,) whether the clips of a group have the view."""
    if view not in table.view_numbers:
        return np.zeros(len(table.group_views), bool)
    return (table.group_views >> np.uint64(table.view_numbers[view])) & np.uint64(1) == 1
