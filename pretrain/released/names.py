"""The released state dict's names and packing against this project's.

Every released parameter has its counterpart and the other way round: the released code's norm behind the global stack is the link's, the
one before the logits the head's. Query, key and value, separate there, are interleaved here by head: (N, 3, H), without a key bias.
"""

from dataclasses import dataclass

import torch

from uniaudio.configs.model import ModelConfig
from uniaudio.errors import UserError

Shapes = dict[str, tuple[int, ...]]
SHOWN = 4
_REMEDY = "--config must be the YAML that this checkpoint's own training saved"


@dataclass(frozen=True)
class Source:
    """Released parameters that make one of ours; more than one are interleaved by head."""

    names: tuple[str, ...]
    heads: int = 1

    def build(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Our parameter, (rows of all, ...)."""
        parts = [tensors[name] for name in self.names]
        if len(parts) == 1:
            return parts[0]
        return torch.stack([part.unflatten(0, (self.heads, -1)) for part in parts], dim=1).flatten(0, 2)


_OUTER = {
    "embed.code.weight": "g_emb.weight",
    "embed.position.weight": "g_pos.weight",
    "embed.text.weight": "continuous_mappings.text_t5.weight",
    "embed.text.bias": "continuous_mappings.text_t5.bias",
    "link.norm.weight": "g_ln.weight",
    "link.norm.bias": "g_ln.bias",
    "link.linear.weight": "g2l_linear.weight",
    "link.linear.bias": "g2l_linear.bias",
    "link.code.weight": "l_emb.weight",
    "link.level.weight": "l_pos.weight",
    "head.norm.weight": "l_ln.weight",
    "head.norm.bias": "l_ln.bias",
    "head.projection.weight": "lm_head.weight",
}
_BLOCK = {"attention_norm": "attn_ln", "attention.out": "attn.out", "mlp_norm": "mlp_ln", "mlp.up": "mlp.0", "mlp.down": "mlp.2"}


def sources(config: ModelConfig) -> dict[str, Source]:
    """Our parameter name -> where it comes from."""
    found = {ours: Source((theirs,)) for ours, theirs in _OUTER.items()}
    stacks = [("global_blocks", "g_layers", config.global_layers), ("local_blocks", "l_layers", config.local_layers)]
    for ours, theirs, layers in stacks:
        for layer in range(layers):
            here, there = f"{ours}.{layer}", f"{theirs}.{layer}"
            for own, released in _BLOCK.items():
                for part in ("weight", "bias"):
                    found[f"{here}.{own}.{part}"] = Source((f"{there}.{released}.{part}",))
            packed = {"weight": ("query", "key", "value"), "bias": ("query", "value")}
            for part, names in packed.items():
                found[f"{here}.attention.qkv.{part}"] = Source(tuple(f"{there}.attn.{name}.{part}" for name in names), config.num_heads)
    return found


def check(tensors: dict[str, torch.Tensor], shapes: Shapes, config: ModelConfig) -> None:
    """UserError where the released tensors are not exactly those of `config`; `shapes`: our parameters'."""
    expected: Shapes = {}
    for name, source in sources(config).items():
        rows, *rest = shapes[name]
        expected |= dict.fromkeys(source.names, (rows // len(source.names), *rest))
    if missing := sorted(expected.keys() - tensors.keys()):
        raise UserError("parameters are missing from the checkpoint", seen=_few(missing), remedy=_REMEDY)
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise UserError("the checkpoint holds parameters that the model does not have", seen=_few(unknown), remedy=_REMEDY)
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"the checkpoint's {name} has another shape", seen=tuple(tensors[name].shape), allowed=shape, remedy=_REMEDY)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
