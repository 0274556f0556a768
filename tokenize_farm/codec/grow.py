"""Starting a training from trained weights, also in a larger codec that computes the same at first.

What may be larger: the number of blocks of each of the four stacks (new ones come last and add nothing until trained) and the
expansion of the perceptrons (new units are not listened to until trained).
"""

import re

import torch
from torch import Tensor

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.model import UniversalCodec

GROWING = ("encoder_fine_layers", "encoder_layers", "decoder_layers", "decoder_fine_layers", "expansion")


@torch.no_grad()
def grow_from(codec: UniversalCodec, trained: UniversalCodec) -> None:
    """Gives `codec` the function of `trained`, codes included.

    Raises:
        UserError: the shapes differ in another thing than GROWING, or `codec` is the smaller one.
    """
    ours, theirs = codec.config.model_dump(), trained.config.model_dump()
    wrong = [key for key in ours if (ours[key] < theirs[key] if key in GROWING else ours[key] != theirs[key])]
    if wrong:
        seen = ", ".join(f"model.{key} {ours[key]} from {theirs[key]}" for key in wrong)
        raise UserError("train.init_from: these weights cannot grow to this shape", seen=seen, allowed=f"larger {', '.join(GROWING)}")
    known = trained.state_dict()
    for name, value in codec.state_dict().items():
        if name in known:
            value.copy_(_widened(name, known[name].to(value.device, value.dtype), value))
        elif re.search(r"\.(fine|coarse)\.\d+\.scale$", name):
            value.zero_()


def _widened(name: str, old: Tensor, new: Tensor) -> Tensor:
    """`old` at the beginning of `new`: more units of a perceptron keep their random inputs, and weigh nothing in its output."""
    result = torch.zeros_like(new) if name.endswith("down.weight") else new.clone()
    result[tuple(slice(0, size) for size in old.shape)] = old
    return result
