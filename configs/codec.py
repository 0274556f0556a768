"""The universal codec: its shape and its training."""

from pydantic import Field
from uniaudio.configs.section import Section


class CodecModelConfig(Section):
    """Shape of the frame-domain codec: STFT -> blocks at 50 Hz -> residual quantizers -> blocks -> inverse STFT."""

    sample_rate: int = 16_000
    hop: int = Field(320, description="samples of a frame: 50 frames/s at 16 kHz")
    fft_size: int = Field(1280)
    width: int = Field(512, ge=8)
    encoder_layers: int = Field(8, ge=1)
    decoder_layers: int = Field(8, ge=1)
    num_codebooks: int = Field(8, ge=1)
    codebook_size: int = Field(1024, ge=2)
    codebook_dim: int = Field(8, ge=1)


class CodecConfig(Section):
    """What `uniaudio codec train` reads."""

    model: CodecModelConfig = CodecModelConfig()
    output_dir: str
