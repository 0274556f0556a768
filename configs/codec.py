"""The universal codec: its shape, and how it is trained."""

from typing import Literal

from pydantic import Field, model_validator

from uniaudio.configs.section import LARGEST_SEED, Section


class CodecModelConfig(Section):
    """Frame-domain codec: STFT -> fine blocks -> blocks at the frame rate -> residual quantizers, and the same backwards.

    The fine blocks run `fine_ratio` times a frame (100 Hz); the spectra are theirs: window 4 hops.
    """

    sample_rate: int = Field(16_000, ge=1)
    hop: int = Field(320, ge=8, description="samples of a frame: 50 frames/s at 16 kHz")
    fine_ratio: int = Field(2, ge=1, description="spectra a frame")
    width: int = Field(512, ge=8)
    fine_width: int = Field(384, ge=8)
    kernel_size: int = Field(7, ge=1, description="width of each block's convolution over time; odd")
    expansion: int = Field(3, ge=1, description="width of each block's perceptron, in widths of the block")
    causal: bool = Field(False, description="blocks look back only: codes and samples follow within two frames, for streams")
    encoder_fine_layers: int = Field(3, ge=0)
    encoder_layers: int = Field(3, ge=1)
    decoder_layers: int = Field(4, ge=1)
    decoder_fine_layers: int = Field(5, ge=0)
    num_codebooks: int = Field(8, ge=1)
    codebook_size: int = Field(1024, ge=2)
    codebook_dim: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "CodecModelConfig":
        if self.hop % self.fine_ratio:
            raise ValueError(f"hop {self.hop} must be a multiple of fine_ratio {self.fine_ratio}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, seen {self.kernel_size}")
        return self


class CodecDataConfig(Section):
    """Recordings packed by `uniaudio codec pack` and how batches are drawn from them."""

    pack: str = Field(description="folder of packed recordings")
    mix: dict[str, float] = Field(
        default_factory=lambda: {"speech": 0.65, "music": 0.15, "sound": 0.15, "singing": 0.05},
        description="share of each kind in a batch; kinds without recordings leave their share to the others",
    )
    source_power: float = Field(0.6, ge=0, le=1, description="inside a kind a source of d minutes weighs d ** power")
    speeds: list[float] = Field(default_factory=lambda: [1.0, 0.86, 1.14], description="resampled copies: more voices than were recorded")
    segment_frames: int = Field(80, ge=4)
    gain_db: tuple[float, float] = (-18.0, 4.0)
    mix_probability: float = Field(0.12, ge=0, le=1, description="chance that a second recording is added")
    tilt_probability: float = Field(0.25, ge=0, le=1, description="chance of a random smooth filter of up to 6 dB")


class CodecLossConfig(Section):
    """Weights of the terms of the loss. Those said to be shares are sizes of a term's gradient beside the mel term's, kept throughout.

    Small shares are not small terms: mel's gradient is steep in quiet bins and cancels on its way to the weights (docs/codec/training.md).
    """

    mel: float = Field(15.0, gt=0)
    louder: float = Field(0.3, ge=0, description="weight, beside mel's own value, of moments louder than the recording (bursts)")
    spectrum: float = Field(0.002, ge=0, description="share of the complex STFT difference")
    quality: float = Field(0.03, ge=0, description="share of the disturbance after ITU-T P.862 (PESQ)")
    intelligibility: float = Field(0.013, ge=0, description="share of 1 - STOI")
    judges: float = Field(0.0007, ge=0, description="share of what the discriminators say: feature differences and verdicts")
    adversarial: float = Field(0.25, ge=0, description="weight of the verdicts beside the feature differences")
    commitment: float = Field(0.25, ge=0)
    codebook: float = Field(1.0, ge=0)


class CodecTrainConfig(Section):
    """Schedule and resources of codec training; progress is the larger of steps/max_steps and minutes/max_minutes."""

    init_from: str | None = Field(None, description="weights to start from, a file or `shipped`; layers and expansion may be larger here")
    decoder_only: bool = Field(False, description="encoder and codebooks stay those of init_from, bit for bit, and so do all codes")
    max_steps: int = Field(100_000, ge=1)
    max_minutes: float | None = Field(None, gt=0, description="training minutes over all restarts; the schedule fits itself to it")
    batch_size: int = Field(96, ge=1, description="clips of one process")
    lr: float = Field(5e-4, gt=0)
    discriminator_lr: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(300, ge=0)
    decay_from: float = Field(0.3, ge=0, le=1, description="progress at which the cosine to zero begins")
    betas: tuple[float, float] = (0.8, 0.97)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(5.0, gt=0)
    discriminate_from: float = Field(0.25, ge=0, le=1, description="progress at which the discriminators begin")
    discriminator_batch: int = Field(32, ge=1)
    discriminator_frames: int = Field(40, ge=4)
    discriminator_scales: list[int] = Field(default_factory=lambda: [2048, 1024, 512, 256, 128])
    discriminator_channels: int = Field(32, ge=4)
    all_levels_probability: tuple[float, float] = Field(
        (0.5, 0.5), description="share of clips that use every level, at the start and at the end; the rest draws 1..all"
    )
    levels: list[int] | None = Field(None, description="how many levels the other clips draw from, each as likely; default: 1..all")
    revive_every: int = Field(100, ge=1)
    revive_below: float = Field(0.05, ge=0, description="usage, 1 being even use, under which a code is replaced")
    revive_until: float = Field(0.8, ge=0, le=1, description="progress after which no code is replaced")
    average_decay: float = Field(0.999, ge=0, lt=1, description="moving average of the weights that is shipped")
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    cuda_graph: bool = Field(False, description="capture the whole step; one GPU")
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    log_every: int = Field(200, ge=1)
    save_every_minutes: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "CodecTrainConfig":
        if not all(0 <= share <= 1 for share in self.all_levels_probability):
            raise ValueError(f"all_levels_probability must lie between 0 and 1, seen {self.all_levels_probability}")
        if self.levels is not None and (not self.levels or min(self.levels) < 1):
            raise ValueError(f"levels must list numbers from 1 on, seen {self.levels}")
        if self.decoder_only and self.init_from is None:
            raise ValueError("decoder_only needs the weights whose encoder it keeps: set train.init_from to a file or to shipped")
        return self


class CodecConfig(Section):
    """What `uniaudio codec train` reads."""

    model: CodecModelConfig = CodecModelConfig()
    data: CodecDataConfig
    losses: CodecLossConfig = CodecLossConfig()
    train: CodecTrainConfig = CodecTrainConfig()
    output_dir: str
    experiment: str | None = Field("codec", description="MLflow experiment; null keeps no MLflow run")

    @model_validator(mode="after")
    def _check(self) -> "CodecConfig":
        if self.train.levels is not None and max(self.train.levels) > self.model.num_codebooks:
            raise ValueError(
                f"train.levels must lie between 1 and model.num_codebooks {self.model.num_codebooks}, seen {self.train.levels}"
            )
        return self
