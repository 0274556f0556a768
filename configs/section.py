"""The base of every section of a config."""

from pydantic import BaseModel, ConfigDict

LARGEST_SEED = 2**63 - 1  # what every generator takes (numpy, torch, the kernels of `kernels.draw`), with ranks and phases added


class Section(BaseModel):
    """Frozen; unknown keys, NaN and implicit conversions of text to numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
