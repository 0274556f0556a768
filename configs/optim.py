"""AdamW and its schedule (paper, section Optimisation)."""

from typing import Annotated, Literal

from pydantic import Field

from uniaudio.configs.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """Peak learning rate, warm-up, decay, clipping."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="on matrices only: biases, norms and embeddings are left alone")
    warmup_steps: int = Field(10_000, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="learning rate at the end over the peak")
    clip_norm: float = Field(1.0, gt=0)
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches of one data-parallel rank in a step")
