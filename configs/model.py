"""The multi-scale Transformer's shape (paper, section Model)."""

from typing import Literal

from pydantic import Field

from uniaudio.configs.section import Section

Structure = Literal["multi_scale", "flattening", "parallel", "delay", "coarse_first"]


class ModelConfig(Section):
    """Sizes and variants of the global and local Transformer.

    `embedding` and `link` name the two published forms: the paper's (`sum`, `shared`) and its released code's
    (`concat`, `split`).
    """

    vocabulary: str = Field("paper", description="name of a table in configs/vocabularies, or a path to a YAML of that form")
    num_codebooks: int = Field(3, ge=1, le=32, description="Q: codes of one frame")
    width: int = Field(1536, ge=8, description="D")
    num_heads: int = Field(12, ge=1, description="N, of the global Transformer")
    local_num_heads: int | None = Field(None, ge=1, description="N of the local Transformer; num_heads unless given")
    ffn_width: int = Field(6144, ge=8)
    global_layers: int = Field(24, ge=1)
    local_layers: int = Field(8, ge=0)
    structure: Structure = Field(
        "multi_scale",
        description="how the codes of a frame are told apart: by the local stack, or, without one, by their order (docs/experiments.md)",
    )
    max_positions: int = Field(3000, ge=8, description="longest document, in frames; rows of the learned table of positions")
    positions: Literal["learned", "time"] = Field(
        "learned",
        description="learned: a table over the document's frames (paper); time: rotary, by the time inside the segment (docs/positions.md)",
    )
    embedding: Literal["sum", "concat"] = Field(
        "sum", description="frame vector: sum of Q embeddings of width D, or Q of width D/Q side by side"
    )
    link: Literal["shared", "split"] = Field("shared", description="global -> local: one map of h_t for every level, or of its q-th slice")
    gelu: Literal["exact", "tanh"] = "exact"
    norm_eps: float = Field(1e-5, gt=0)
    init_std: float = Field(0.02, gt=0)
    text_width: int = Field(768, ge=1, description="width of the continuous text states (768: T5 v1.1 base, 384: the embedded encoder)")
    prefix_lm: bool = Field(False, description="conditions attend to each other in both directions")
    kernels: Literal["auto", "triton", "torch"] = Field(
        "auto", description="auto: triton on a CUDA device, torch elsewhere; chosen once and logged"
    )
    attention: Literal["kernels", "torch_varlen", "flash_attn"] = Field(
        "kernels", description="the global stack's in training: `kernels`' own, or that of a library (CUDA, bf16, no prefix_lm)"
    )

    @property
    def head_dim(self) -> int:
        """H of the global Transformer."""
        return self.width // self.num_heads

    @property
    def steps_per_frame(self) -> int:
        """Steps of the global stack that a frame of audio takes."""
        return {"flattening": self.num_codebooks, "coarse_first": 2}.get(self.structure, 1)

    @property
    def local_heads(self) -> int:
        """N of the local Transformer."""
        return self.local_num_heads or self.num_heads
