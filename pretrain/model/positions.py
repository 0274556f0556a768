"""`model.positions: time`: a frame's position is the time at which it stands in its segment: what sounds together stands together.

Owns the rule; `kernels.rotary` turns queries and keys by it. Frame t of a noisy recording, of a melody, of phones held over their
durations and of the speech made from them all get position t, wherever the segments stand in the document (docs/positions.md).
"""

import torch
from torch import nn

from uniaudio.pretrain.data.vocabulary import Vocabulary

PHONE_FRAMES = 4  # of a phone whose duration is not known: 80 ms, near the mean of read English
PROMPT_TIME = -256  # of a speaker prompt's first frame: speech that came before, no part of what is said now
COLLAPSED = ("<tts_task>", "<plain_tts_task>", "<InstructTTS_task>")  # tasks whose phones stand one a frame, without durations

_START, _PHONES, _PROMPT, _COLLAPSED = 1, 2, 4, 8


class SegmentTimes(nn.Module):
    """Positions from ids alone, so that they are the same in training, in generation and for whoever calls the exported model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        marks = torch.zeros(vocabulary.size, dtype=torch.uint8)
        for token, name in enumerate(vocabulary.specials):
            marks[token] = (
                _START * name.endswith("_start>") + _PHONES * (name == "<phone_start>") + _PROMPT * (name == "<audio_prompt_start>")
            ) + _COLLAPSED * (name in COLLAPSED)
        self.register_buffer("marks_V", marks, persistent=False)

    def forward(self, codes_BT: torch.Tensor, inputs_BT: torch.Tensor, first_BT: torch.Tensor) -> torch.Tensor:
        """(B, T) int32. codes_BT: level 0 of the frames. inputs_BT: the same one frame to the right, what the stack sees at each place.
        first_BT: bool, a document's first frame.

        A segment's start token stands at 0 (a prompt's at PROMPT_TIME), its n-th frame n behind it, PHONE_FRAMES n for phones without
        durations; what is before the first segment counts from the document's first frame.
        """
        frames = codes_BT.shape[1]
        index_BT = torch.arange(frames, device=codes_BT.device).expand_as(codes_BT)
        marks_BT = self.marks_V[inputs_BT]
        begins_BT = first_BT | (marks_BT & _START).bool()
        segment_BT = torch.where(begins_BT, index_BT, 0).cummax(dim=1).values
        document_BT = torch.where(first_BT, index_BT, 0).cummax(dim=1).values
        task_BT = self.marks_V[codes_BT].gather(1, (document_BT + 1).clamp(max=frames - 1))
        kind_BT = marks_BT.gather(1, segment_BT)
        slow_BT = (kind_BT & _PHONES).bool() & (task_BT & _COLLAPSED).bool()
        times_BT = (index_BT - segment_BT) * torch.where(slow_BT, PHONE_FRAMES, 1)
        return (times_BT + torch.where((kind_BT & _PROMPT).bool(), PROMPT_TIME, 0)).to(torch.int32)
