"""Tables of token ids as data: special tokens and modalities in explicit order (configs/vocabularies/*.yaml)."""

from pydantic import Field, model_validator

from uniaudio.configs.load import find_config, parse_yaml, validate
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

    def ranges(self, num_codebooks: int) -> tuple[tuple[str, int, int, int], ...]:
        """(modality, first id, entries of a level, levels) for a model of that many codebooks: audio has at least as many levels."""
        start, ranges = self.reserved, []
        for modality in self.modalities:
            levels = max(modality.levels, num_codebooks) if modality.name == "audio" else modality.levels
            ranges.append((modality.name, start, modality.entries, levels))
            start += modality.entries * levels + (modality.name == "audio" == self.audio_mask)
        return tuple(ranges)


def load_table(name: str) -> VocabularyConfig:
    """A shipped table (`paper`, `released`) or a YAML file of that form."""
    path = find_config(name, "vocabularies")
    return validate(VocabularyConfig, parse_yaml(path.read_text(encoding="utf-8"), source=str(path)), source=str(path))
