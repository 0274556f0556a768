"""The document without conditions that guidance steers away from."""

import numpy as np

from uniaudio.configs.tasks import TaskConfig
from uniaudio.pretrain.data.sequence import Sequence as Document
from uniaudio.pretrain.data.vocabulary import Vocabulary


def free_document(task: TaskConfig, vocabulary: Vocabulary, num_codebooks: int, *, prefix_lm: bool = False) -> Document:
    """`<start> <TASK_task> <a_start> <a_end> ... <audio_start>`: every condition empty."""
    edges = [vocabulary.special(name) for segment in task.conditions for name in (segment.start, segment.end)]
    tokens = [vocabulary.special("<start>"), vocabulary.special(task.token), *edges, vocabulary.special(task.target.start)]
    codes_LQ = np.repeat(np.array(tokens, np.int64)[:, None], num_codebooks, axis=1)
    return Document(
        codes_LQ=codes_LQ,
        target_mask_LQ=np.zeros(codes_LQ.shape, np.int8),
        text_states=np.zeros((0, 0), np.float16),
        text_positions=np.zeros(0, np.int32),
        prefix_length=len(tokens) if prefix_lm else 0,
    )
