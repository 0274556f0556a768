"""Short-time spectra whose frames lie symmetrically in the clip, so that S samples give exactly S / hop frames.

Owns the transform in both directions. Frame t is centred on sample (t + 0.5) * hop and sees 4 hops; what lies before
the clip's first sample or after its last is zero, so a clip's spectra do not depend on what it is batched with.
Shapes: B clips, S samples (a multiple of hop), T = S / hop frames, F = 2 * hop + 1 bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OVERLAP = 4  # hops a window spans
KEPT_LENGTHS = 8


class Spectral(nn.Module):
    """Forward and inverse transform for one hop; periodic Hann window of 4 hops; no trainable part."""

    window: Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.size = OVERLAP * hop
        self.num_bins = self.size // 2 + 1
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self._kept: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, samples_BS: Tensor) -> Tensor:
        """(B, S) float32 -> (B, T, F) complex64; S must be a multiple of hop."""
        samples = samples_BS.shape[1]
        frames = samples // self.hop
        margin = (self.size - self.hop) // 2
        padded = F.pad(samples_BS, (margin, margin + (self.size - 2 * margin - self.hop)))
        return torch.fft.rfft(padded.unfold(-1, self.size, self.hop)[:, :frames] * self.window, norm="ortho")

    def inverse(self, spectra_BTF: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """(B, T, F) complex64 -> (B, T * hop) float32 by weighted overlap-add.

        The sum is divided by the windows that really overlap there (only frames where `mask_BT` is True), so
        `inverse(forward(x)) == x` up to rounding at both edges of every clip, whatever its length.
        """
        frames_BTW = torch.fft.irfft(spectra_BTF, n=self.size, norm="ortho") * self.window
        if mask_BT is None:
            return self._overlap_add(frames_BTW) * self._inverse_weights(spectra_BTF.shape[1])
        weights_BTW = (self.window**2).expand(1, spectra_BTF.shape[1], -1) * mask_BT[..., None]
        samples = self._overlap_add(frames_BTW * mask_BT[..., None]) / self._overlap_add(weights_BTW).clamp_min(1e-3)
        return samples * mask_BT.repeat_interleave(self.hop, dim=1)

    def _inverse_weights(self, frames: int) -> Tensor:
        """(1, frames * hop): one over the windows that overlap at each sample. Made once for a length; the newest are kept."""
        key = (frames, self.window.device)
        if key not in self._kept:
            if len(self._kept) >= KEPT_LENGTHS:
                self._kept.pop(next(iter(self._kept)))
            with torch.inference_mode(False), torch.no_grad():  # training may meet it later
                weights = self._overlap_add((self.window**2).expand(1, frames, -1))
                self._kept[key] = 1 / weights.clamp_min(1e-3)
        return self._kept[key]

    def _overlap_add(self, frames_BTW: Tensor) -> Tensor:
        """(B, T, 4 hops) -> (B, T * hop): hop j of frame t is added to hop t + j - 1.5."""
        batch, frames, _ = frames_BTW.shape
        parts = frames_BTW.view(batch, frames, OVERLAP, self.hop)
        if torch.is_grad_enabled():
            total = sum(F.pad(parts[:, :, j], (0, 0, j, OVERLAP - 1 - j)) for j in range(OVERLAP))
        else:  # in place: half the passes over memory
            total = F.pad(parts[:, :, 0], (0, 0, 0, OVERLAP - 1))
            for j in range(1, OVERLAP):
                total[:, j : j + frames] += parts[:, :, j]
        margin = (self.size - self.hop) // 2
        return total.reshape(batch, -1)[:, margin : margin + frames * self.hop]
