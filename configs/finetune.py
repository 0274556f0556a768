"""What a training from a checkpoint changes: which parameters, and whether by low-rank adapters. Names are canonical (configs/flops.py)."""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, model_validator

from uniaudio.configs.section import Section

AdaptedLayer = Literal["attention.qkv", "attention.out", "mlp.up", "mlp.down"]
AdaptedStack = Literal["global", "local"]


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021) on products of the blocks: y = x W^T + (alpha / rank) x A^T B^T, B = 0 at the start."""

    rank: int = Field(0, ge=0, description="rows of A; 0: no adapters")
    alpha: float = Field(16.0, gt=0, description="the adapters' part is multiplied by alpha / rank")
    layers: tuple[AdaptedLayer, ...] = Field(("attention.qkv", "attention.out", "mlp.up", "mlp.down"), min_length=1)
    stacks: tuple[AdaptedStack, ...] = Field(("global", "local"), min_length=1)

    @property
    def scale(self) -> float:
        """What multiplies the adapters' part."""
        return self.alpha / max(1, self.rank)

    def adapts(self, name: str) -> bool:
        """Whether the matrix of this canonical name has an adapter: `global_blocks.3.mlp.up.weight`."""
        stack, _, layer = name.removesuffix(".weight").partition("_blocks.")
        return self.rank > 0 and stack in self.stacks and layer.partition(".")[2] in self.layers


class FinetuneConfig(Section):
    """Frozen parameters keep their values bit for bit, and have no gradient and no optimizer state."""

    lora: LoraConfig = LoraConfig()
    freeze: tuple[str, ...] = Field(
        (), description="patterns of parameter names (`embed.*`, `*_norm.*`); with adapters everything else is frozen unless given"
    )
    thaw: tuple[str, ...] = Field((), description="patterns of names that are trained all the same, for example head.projection.weight")

    @model_validator(mode="after")
    def _thaws_something(self) -> "FinetuneConfig":
        if self.thaw and not self.frozen_patterns:
            raise ValueError("thaw without freeze and without adapters: nothing is frozen")
        return self

    @property
    def active(self) -> bool:
        """Something is frozen or adapted."""
        return bool(self.frozen_patterns)

    @property
    def frozen_patterns(self) -> tuple[str, ...]:
        """`freeze`, or everything where there are adapters and it was not given."""
        return self.freeze or (("*",) if self.lora.rank else ())

    def trains(self, name: str) -> bool:
        """Whether the parameter of this canonical name changes; adapters always do."""
        frozen = any(fnmatchcase(name, pattern) for pattern in self.frozen_patterns)
        return not frozen or is_adapter(name) or any(fnmatchcase(name, pattern) for pattern in self.thaw)


def adapter_names(weight: str) -> tuple[str, str]:
    """Names of A (rank, input) and B (output, rank) of the adapter on a matrix: `...mlp.up.weight` -> `...mlp.up.adapter.a`, `.b`."""
    layer = weight.removesuffix(".weight")
    return f"{layer}.adapter.a", f"{layer}.adapter.b"


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return name.endswith((".adapter.a", ".adapter.b"))
