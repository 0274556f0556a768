"""Tables of token ids as data: special tokens and modalities in explicit order (configs/vocabularies/*.yaml)."""

from pydantic import Field, model_validator

from uniaudio.configs.section import Section


class ModalityConfig(Section):
    """A range of ids: `levels` times `entries`, level after level."""

    name: str = Field(..., pattern=r"^[a-z_]+$")
    entries: int = Field(..., ge=1)
    levels: int = Field(1, ge=1, description="audio: codebooks of the table; a model with more codebooks gets more (load_vocabulary)")


class VocabularyConfig(Section):
    """`reserved` special ids, the first of them named, then the modalities one after another.

    `audio_mask` names what stands for a hidden audio code: a special token, or `audio` for one more id at the end of the audio range.
    """

    reserved: int = Field(..., ge=1)
    specials: tuple[str, ...] = Field(..., min_length=1)
    audio_mask: str
    modalities: tuple[ModalityConfig, ...] = Field(..., min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "VocabularyConfig":
        names = [modality.name for modality in self.modalities]
        if len(self.specials) > self.reserved:
            raise ValueError(f"{len(self.specials)} special tokens, but reserved is {self.reserved}")
        if len(set(self.specials)) != len(self.specials) or len(set(names)) != len(names):
            raise ValueError("a name stands twice among the special tokens or the modalities")
        if "audio" not in names:
            raise ValueError("a modality named audio is needed")
        if self.audio_mask != "audio" and self.audio_mask not in self.specials:
            raise ValueError(f"audio_mask {self.audio_mask} is neither audio nor a special token")
        return self
