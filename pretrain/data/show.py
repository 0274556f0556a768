"""A document as the model sees it, in words: frame by frame with the names of its tokens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import CONTINUOUS, load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.data.clips import ClipTable, load_clips
from uniaudio.pretrain.data.documents import Rows, starts_of
from uniaudio.pretrain.data.loader import make_loader
from uniaudio.pretrain.data.plan import Planner
from uniaudio.pretrain.data.vocabulary import load_vocabulary

_FRAMES = 2**16  # longer documents are cut
_SPLIT = "train"


def sequence_lines(directory: Path, task: str, *, clip: str | None, vocabulary: str, num_codebooks: int) -> Iterator[str]:
    """The document that `task` makes of a clip (of the first that serves it, where None): a head, then a line a frame: its number, whether
    the loss counts it (`*`), and its codes' names.

    Raises:
        UserError: no clip serves the task, none of that name does, or the vocabulary lacks what the task needs.
    """
    clips = load_clips(directory, _SPLIT)
    data = DataConfig(
        shards=str(directory),
        tasks=(task,),
        frames_per_row=_FRAMES,
        rows_per_micro_batch=1,
        max_documents_per_row=2,
        max_text_states_per_row=4096,
        verify=False,
    )
    table = load_vocabulary(vocabulary, num_codebooks)
    loader = make_loader(data, ModelConfig(num_codebooks=num_codebooks, text_width=_text_width(clips, task)), table, split=_SPLIT)
    try:
        rows, number = _find(loader.planner, clip)
        alone = Rows(rows.documents, starts_of(np.ones(len(rows.documents), np.int64)), rows.layout).take(number, number + 1)
        batch = loader.assembler.batch(alone)
        frames, prompt = int(rows.documents.frames[number]), int(rows.documents.prompt[number])
        yield f"{loader.assembler.key(rows.documents, number)}: {frames} frames" + (
            f", prompt of {clips.key(prompt)}" if prompt >= 0 else ""
        )
        names: dict[int, str] = {}
        for frame, (codes, mask) in enumerate(zip(batch.codes_BTQ[0, :frames].tolist(), batch.target_mask_BTQ[0, :frames, 0].tolist())):
            words = [names.setdefault(code, table.token_name(code)) for code in codes]
            yield f"{frame:6d} {'*' if mask else ' '} {words[0] if len(set(words)) == 1 else '  '.join(words)}"
    finally:
        loader.close()


def _find(planner: Planner, clip: str | None) -> tuple[Rows, int]:
    """The rows of a block, and the number of the document of that clip in them."""
    for block in range(planner.num_blocks):
        rows = planner.block(0, 0, block)
        for number, of in enumerate(rows.documents.clip.tolist()):
            if clip is None or clip in (key := planner.clips.key(of), key.rsplit("/", 1)[-1]):
                return rows, number
    raise UserError("no such clip among those that serve this task", seen=clip, remedy="a key as `uniaudio shards show` gives it")


def _text_width(clips: ClipTable, task: str) -> int:
    views = [segment.view for segment in load_task(task).segments if segment.modality == CONTINUOUS]
    widths = [
        int(table.widest[:, table.view_numbers[view]].max()) for table in clips.tables for view in views if view in table.view_numbers
    ]
    return max(widths, default=8)
