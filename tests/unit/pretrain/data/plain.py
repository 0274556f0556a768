"""What the assembler must equal: rows built one document after another by SequenceBuilder, each view read by ShardReader."""

import numpy as np
import torch

from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.documents import Documents, Rows
from uniaudio.pretrain.data.hide import hidden_span
from uniaudio.pretrain.data.loader import Loader
from uniaudio.pretrain.data.sequence import MASKED, SequenceBuilder
from uniaudio.pretrain.data.tasks import FRAME_RATE
from uniaudio.tokenize_farm.shard_reader import ShardReader


class Plain:
    """Builds batches of a loader's rows the slow way."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.data, self.model = loader, loader.planner.data, loader.assembler.model
        self.clips = loader.planner.clips
        vocabulary = loader.assembler.typesetter.vocabulary
        options = {"loss_on": self.data.loss_on, "prefix_lm": self.model.prefix_lm}
        self.builders = [SequenceBuilder(task, vocabulary, self.model.num_codebooks, **options) for task in loader.planner.tasks]
        self.pad = vocabulary.special("<pad>")

    def view(self, clip: int, view: str) -> np.ndarray:
        shard = int(self.clips.shard_of(np.array([clip]))[0])
        table, place = self.clips.table_of(shard)
        with ShardReader(f"{table.directory}/{table.shard_name(place)}.tar") as reader:
            first = int(self.clips.clips_of_shards(np.array([shard]))[0])
            return reader.view(clip - first, view)

    def views(self, documents: Documents, d: int) -> dict[str, np.ndarray]:
        clip, start, target = int(documents.clip[d]), int(documents.start[d]), int(documents.target[d])
        task = self.loader.planner.tasks[documents.task[d]]
        whole = self.view(clip, task.target.view)
        after = int(documents.frames[d]) - 3 - 2 * len(task.segments) - start - target
        pieces = {"before": slice(0, start), "rest": slice(start, None), "middle": slice(start, start + target)}
        pieces["after"] = slice(start + target, start + target + after)
        views = {}
        for segment in task.segments:
            if segment.draw == "same_speaker":
                crop = int(documents.crop[d])
                frames = max(1, round(self.data.prompt_seconds * FRAME_RATE))
                views["prompt"] = self.view(int(documents.prompt[d]), "audio")[crop : crop + frames]
            elif segment.draw == "masked":
                phones = self.view(clip, segment.mask_words_of) if segment.mask_words_of else None
                first, stop = hidden_span(segment, target, documents.draw[d], phones)
                views[segment.key] = self.view(clip, segment.view)
                views[segment.key][first:stop] = MASKED
            else:
                views[segment.key] = whole[pieces[segment.draw]] if segment.draw in pieces else self.view(clip, segment.view)
        return views

    def batch(self, rows: Rows) -> Batch:
        B, T, Q, D = len(rows), self.data.frames_per_row, self.model.num_codebooks, self.data.max_documents_per_row
        S, C = self.data.max_text_states_per_row, self.model.text_width
        codes, mask = torch.full((B, T, Q), self.pad), torch.zeros(B, T, Q, dtype=torch.int8)
        starts, prefixes, tasks = torch.full((B, D), T), torch.zeros(B, D), torch.full((B, D), -1)
        positions, states, places = torch.zeros(B, T), torch.zeros(B, S, C), torch.full((B, S), -1)
        for b in range(B):
            end = taken = used = 0
            for d in range(int(rows.starts[b]), int(rows.starts[b + 1])):
                views = self.views(rows.documents, d)
                task = int(rows.documents.task[d])
                built = self.builders[task].build(views, target_frames=int(rows.documents.target[d]))
                start, end = end, end + len(built.codes_LQ)
                codes[b, start:end], mask[b, start:end] = torch.from_numpy(built.codes_LQ), torch.from_numpy(built.target_mask_LQ)
                starts[b, used], prefixes[b, used], tasks[b, used] = start, built.prefix_length, task
                positions[b, start:end] = torch.arange(end - start)
                if count := len(built.text_positions):
                    states[b, taken : taken + count] = torch.from_numpy(built.text_states).float()
                    places[b, taken : taken + count] = torch.from_numpy(built.text_positions + start)
                    taken += count
                used += 1
            if end < T:
                starts[b, used], positions[b, end:] = end, torch.arange(T - end)
        integers = [tensor.to(torch.int32) for tensor in (starts, prefixes, positions)]
        return Batch(codes, mask, *integers, states, places.to(torch.int32), tasks.to(torch.int32))
