"""The universal codec: 16 kHz samples <-> codes of 50 frames/s and 8 residual levels.

Owns the network and its use on whole clips (padding, lengths, long clips); training, weights and files live beside it.
Shapes: B clips, S samples, T = ceil(S / hop) frames, Q levels, D width, R spectra a frame.
Every part sees a bounded neighbourhood (`reach`), so long clips run in pieces with the same result, and streams too (`streaming.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniaudio.configs.codec import CodecModelConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.quantizer import ResidualQuantizer
from uniaudio.tokenize_farm.codec.spectral import Spectral

CHUNK_FRAMES = 3000  # frames a row that are computed at once: one minute


class Block(nn.Module):
    """ConvNeXt block over time: depthwise convolution, LayerNorm, two-layer perceptron, scaled residual."""

    def __init__(self, width: int, kernel_size: int, expansion: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.kernel_KD = nn.Parameter(torch.randn(kernel_size, width) / kernel_size**0.5)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, hidden_BTD: Tensor, mask_BT1: Tensor | None) -> Tensor:
        """(B, T, D) -> same; frames where the mask is 0 neither give nor take anything."""
        inputs = hidden_BTD if mask_BT1 is None else hidden_BTD * mask_BT1
        hidden = self.norm(depthwise(inputs, self.kernel_KD, self.causal))
        return torch.addcmul(hidden_BTD, self.scale, self.down(F.gelu(self.up(hidden))))


def depthwise(hidden_BTD: Tensor, kernel_KD: Tensor, causal: bool) -> Tensor:
    """Convolution of each channel with its own kernel, zeros outside, centred or looking back only: (B, T, D) -> (B, T, D)."""
    size, frames = len(kernel_KD), hidden_BTD.shape[1]
    before = size - 1 if causal else size // 2
    if torch.compiler.is_compiling():  # shifts and sums become one kernel, together with the norm that follows
        padded = F.pad(hidden_BTD, (0, 0, before, size - 1 - before))
        return sum(padded[:, k : k + frames] * kernel_KD[k] for k in range(size))
    if causal:
        hidden_BTD = F.pad(hidden_BTD, (0, 0, before, 0))
    # as an image of width 1, channels last in memory: no copy on either side, and on a CPU a fifth of conv1d's time
    image = hidden_BTD.transpose(1, 2).unsqueeze(-1)
    kernel = kernel_KD.to(hidden_BTD.dtype).t()[:, None, :, None].contiguous(memory_format=torch.channels_last)
    convolved = F.conv2d(image, kernel, padding=(0 if causal else before, 0), groups=len(kernel))
    return convolved.squeeze(-1).transpose(1, 2)


def _blocks(width: int, count: int, config: CodecModelConfig) -> nn.ModuleList:
    return nn.ModuleList(Block(width, config.kernel_size, config.expansion, config.causal) for _ in range(count))


class Encoder(nn.Module):
    """Spectra (B, R * T, F) -> (B, T, D)."""

    def __init__(self, config: CodecModelConfig, num_bins: int) -> None:
        super().__init__()
        self.ratio = config.fine_ratio
        self.inputs = nn.Linear(3 * num_bins, config.fine_width)
        self.inputs_norm = nn.LayerNorm(config.fine_width)
        self.fine = _blocks(config.fine_width, config.encoder_fine_layers, config)
        self.merge = nn.Linear(config.fine_ratio * config.fine_width, config.width)
        self.coarse = _blocks(config.width, config.encoder_layers, config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, spectra_BNF: Tensor, mask_BT: Tensor | None) -> Tensor:
        fine_mask, mask = _masks(mask_BT, self.ratio)
        hidden = self.inputs_norm(self.inputs(_features(spectra_BNF).to(self.inputs.weight.dtype)))
        for block in self.fine:
            hidden = block(hidden, fine_mask)
        if fine_mask is not None:
            hidden = hidden * fine_mask
        hidden = self.merge(hidden.reshape(hidden.shape[0], -1, self.merge.in_features))
        for block in self.coarse:
            hidden = block(hidden, mask)
        return self.norm(hidden).float()


class Decoder(nn.Module):
    """(B, T, D) -> spectra (B, R * T, F) complex64."""

    def __init__(self, config: CodecModelConfig, num_bins: int) -> None:
        super().__init__()
        self.ratio, self.fine_width = config.fine_ratio, config.fine_width
        self.inputs = nn.Linear(config.width, config.width)
        self.coarse = _blocks(config.width, config.decoder_layers, config)
        self.split = nn.Linear(config.width, config.fine_ratio * config.fine_width)
        self.fine = _blocks(config.fine_width, config.decoder_fine_layers, config)
        self.norm = nn.LayerNorm(config.fine_width)
        self.outputs = nn.Linear(config.fine_width, 2 * num_bins)

    def forward(self, hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        fine_mask, mask = _masks(mask_BT, self.ratio)
        hidden = self.inputs(hidden_BTD.to(self.inputs.weight.dtype))
        for block in self.coarse:
            hidden = block(hidden, mask)
        hidden = self.split(hidden)
        hidden = hidden.reshape(hidden.shape[0], -1, self.fine_width)
        for block in self.fine:
            hidden = block(hidden, fine_mask)
        log_magnitude, phase = self.outputs(self.norm(hidden)).float().chunk(2, -1)
        return torch.polar(log_magnitude.clamp(max=5.0).exp(), phase)


def _masks(mask_BT: Tensor | None, ratio: int) -> tuple[Tensor | None, Tensor | None]:
    if mask_BT is None:
        return None, None
    return mask_BT[..., None].expand(-1, -1, ratio).flatten(1)[..., None], mask_BT[..., None]


def _features(spectra_BNF: Tensor) -> Tensor:
    """Log magnitude, and real and imaginary part compressed by the root of the magnitude: (B, N, 3 F) float32."""
    magnitude = spectra_BNF.abs().clamp_min(1e-4)
    root = magnitude.sqrt()
    return torch.cat([magnitude.log() * 0.5, spectra_BNF.real / root, spectra_BNF.imag / root], -1)


class UniversalCodec(nn.Module):
    """Encoder, residual quantizer and decoder; see `CodecModelConfig` for the shape."""

    def __init__(self, config: CodecModelConfig) -> None:
        super().__init__()
        self.config = config
        self.spectral = Spectral(config.hop // config.fine_ratio)
        self.encoder = Encoder(config, self.spectral.num_bins)
        self.quantizer = ResidualQuantizer(config.width, config.num_codebooks, config.codebook_size, config.codebook_dim)
        self.decoder = Decoder(config, self.spectral.num_bins)

    @property
    def reach(self) -> tuple[int, int]:
        """Frames before and after it that a frame's codes, or its samples, can depend on (upper bounds)."""
        config, half = self.config, self.config.kernel_size // 2
        edge = -(-2 // config.fine_ratio)  # a spectrum sees one and a half of its hops on each side
        sides = (2 * half, 0) if config.causal else (half, half)

        def blocks(side: int) -> int:
            stacks = ((config.encoder_layers, config.encoder_fine_layers), (config.decoder_layers, config.decoder_fine_layers))
            return max(coarse * side - (-fine * side // config.fine_ratio) for coarse, fine in stacks)

        return blocks(sides[0]) + edge, blocks(sides[1]) + edge

    def compute_in(self, dtype: torch.dtype) -> "UniversalCodec":
        """Lets the blocks compute in `dtype`; spectra and codebooks stay float32. Returns itself."""
        self.encoder.to(dtype)
        self.decoder.to(dtype)
        return self

    def forward(self, samples_BS: Tensor, num_levels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass on full-length segments: (samples (B, S), commitment loss, codebook loss)."""
        hidden = self.encoder(self.spectral(samples_BS), None)
        with torch.autocast(samples_BS.device.type, enabled=False):
            quantized, commitment, codebook = self.quantizer(hidden, num_levels_B)
        spectra = self.decoder(quantized, None)
        return self.spectral.inverse(spectra), commitment, codebook

    @torch.inference_mode()
    def encode(self, samples_BS: Tensor, lengths: Tensor | None = None, num_codebooks: int | None = None) -> Tensor:
        """Samples in [-1, 1] at 16 kHz -> codes (B, T, n) int64 of the first n levels, T = ceil(S / hop).

        `lengths` (B,): samples that count in each row; what lies beyond changes nothing, and its codes are 0.

        Raises:
            UserError: no samples, NaN or infinite samples, or more levels than the codec has.
        """
        levels = self._check(samples_BS, num_codebooks)
        return self.encode_frames(*self._whole_frames(samples_BS.float(), lengths), levels)

    @torch.inference_mode()
    def encode_frames(self, samples_BS: Tensor, mask_BT: Tensor | None, num_codebooks: int) -> Tensor:
        """`encode` of whole frames on the codec's device: checks nothing and waits for nothing.

        S is a multiple of hop, samples are finite and 0 beyond each clip's end; `mask_BT` bool: frames that count, None where all do.
        """
        codes = [self._encode_piece(*piece, num_codebooks) for piece in self._pieces(samples_BS, mask_BT)]
        result = codes[0] if len(codes) == 1 else torch.cat(codes, 1)
        return result if mask_BT is None else result * mask_BT[..., None]

    @torch.inference_mode()
    def decode(self, codes_BTQ: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes (B, T, n) of the first n levels -> samples (B, T * hop) float32, not clipped.

        `lengths` (B,): frames that count in each row; the samples beyond are 0.

        Raises:
            UserError: no frames, more levels than the codec has, or a code outside the codebook.
        """
        codes = self._check_codes(codes_BTQ)
        mask = None if lengths is None else torch.arange(codes.shape[1], device=codes.device) < lengths.to(codes.device)[:, None]
        pieces = [
            self._decode_piece(codes[:, left:right], None if mask is None else mask[:, left:right], start - left, stop - left)
            for start, stop, left, right in _spans(codes.shape[1], self.reach)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)

    @torch.inference_mode()
    def encode_part(self, samples_BS: Tensor, start: int, stop: int, num_codebooks: int) -> Tensor:
        """Codes of the frames `start` to `stop` of samples that hold their neighbourhood; the same checks as `encode`."""
        self._check(samples_BS, num_codebooks)
        samples, _ = self._whole_frames(samples_BS.float(), None)
        return self._encode_piece(samples, None, start, stop, num_codebooks)

    @torch.inference_mode()
    def decode_part(self, codes_BTQ: Tensor, start: int, stop: int) -> Tensor:
        """Samples of the frames `start` to `stop` of codes that hold their neighbourhood; the same checks as `decode`."""
        return self._decode_piece(self._check_codes(codes_BTQ), None, start, stop)

    def check_levels(self, num_codebooks: int | None) -> int:
        """How many levels that means; UserError for more than the codec has."""
        levels = self.config.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= levels <= self.config.num_codebooks:
            raise UserError("number of codec levels", seen=levels, allowed=f"1..{self.config.num_codebooks}")
        return levels

    def _check(self, samples_BS: Tensor, num_codebooks: int | None) -> int:
        levels = self.check_levels(num_codebooks)
        if samples_BS.dim() != 2 or samples_BS.shape[1] == 0 or samples_BS.shape[0] == 0:
            raise UserError("samples must be (clips, samples), at least one of each", seen=tuple(samples_BS.shape))
        return levels

    def _check_codes(self, codes_BTQ: Tensor) -> Tensor:
        """The codes as int64 on the codec's device."""
        config = self.config
        if codes_BTQ.dim() != 3 or codes_BTQ.shape[1] == 0 or not 1 <= codes_BTQ.shape[2] <= config.num_codebooks:
            raise UserError(
                "codes must be (clips, frames, levels)", seen=tuple(codes_BTQ.shape), allowed=f"1..{config.num_codebooks} levels"
            )
        codes = codes_BTQ.to(self.spectral.window.device, torch.int64)
        if bool(((codes < 0) | (codes >= config.codebook_size)).any()):
            raise UserError("a code lies outside the codebook", allowed=f"0..{config.codebook_size - 1}")
        return codes

    def _whole_frames(self, samples_BS: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Zero-pads to a multiple of the hop, zeros what is beyond `lengths`; also returns the mask of frames."""
        device, hop = self.spectral.window.device, self.config.hop
        samples = F.pad(samples_BS.to(device), (0, -samples_BS.shape[1] % hop))
        if lengths is None:
            return _finite(samples), None
        lengths = lengths.to(device)
        if bool(((lengths < 1) | (lengths > samples_BS.shape[1])).any()):
            raise UserError("length of a clip", seen=lengths.tolist(), allowed=f"1..{samples_BS.shape[1]}")
        samples = torch.where(torch.arange(samples.shape[1], device=device) < lengths[:, None], samples, 0.0)
        frames = torch.arange(samples.shape[1] // hop, device=device)
        return _finite(samples), frames * hop < lengths[:, None]

    def _pieces(self, samples_BS: Tensor, mask_BT: Tensor | None) -> list[tuple[Tensor, Tensor | None, int, int]]:
        hop = self.config.hop
        return [
            (samples_BS[:, left * hop : right * hop], None if mask_BT is None else mask_BT[:, left:right], start - left, stop - left)
            for start, stop, left, right in _spans(samples_BS.shape[1] // hop, self.reach)
        ]

    def _encode_piece(self, samples_BS: Tensor, mask_BT: Tensor | None, start: int, stop: int, levels: int) -> Tensor:
        hidden = self.encoder(self.spectral(samples_BS), mask_BT)
        return self.quantizer.encode(hidden[:, start:stop], levels)

    def _decode_piece(self, codes_BTQ: Tensor, mask_BT: Tensor | None, start: int, stop: int) -> Tensor:
        spectra = self.decoder(self.quantizer.decode(codes_BTQ), mask_BT)
        fine_mask = None if mask_BT is None else mask_BT.repeat_interleave(self.config.fine_ratio, dim=1)
        return self.spectral.inverse(spectra, fine_mask)[:, start * self.config.hop : stop * self.config.hop]


def _finite(samples: Tensor) -> Tensor:
    refuse_unless_finite(torch.isfinite(samples).all())
    return samples


def refuse_unless_finite(all_finite: Tensor) -> None:
    """Raises UserError where `all_finite`, one bool, is False; waits for its device."""
    if not bool(all_finite):
        raise UserError("samples must be finite", seen="NaN or infinity", remedy="repair or drop the recording")


def _spans(frames: int, reach: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Cuts `frames` into pieces: (first, end) of each piece and (first, end) of it with its neighbourhood."""
    starts = range(0, frames, CHUNK_FRAMES)
    stops = [min(start + CHUNK_FRAMES, frames) for start in starts]
    return [(start, stop, max(0, start - reach[0]), min(frames, stop + reach[1])) for start, stop in zip(starts, stops)]
