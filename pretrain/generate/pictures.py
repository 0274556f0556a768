"""One picture of a generated clip: waveform, spectrogram, codes."""

from pathlib import Path

import matplotlib
import numpy as np

from uniaudio.atomic import publish_file

matplotlib.use("Agg")  # a server has no screen

from matplotlib import pyplot

SAMPLE_RATE = 16_000


def draw_clip(path: Path, samples_S: np.ndarray, codes_TQ: np.ndarray, title: str) -> None:
    """Writes a PNG: samples (S,) in [-1, 1] at 16 kHz, codes (T, Q) at 50 frames/s."""
    seconds = len(samples_S) / SAMPLE_RATE
    figure, (wave, spectrum, codes) = pyplot.subplots(3, 1, figsize=(10, 7), height_ratios=[2, 3, 2], constrained_layout=True)
    wave.plot(np.arange(len(samples_S)) / SAMPLE_RATE, samples_S, linewidth=0.4)
    wave.set(xlim=(0, seconds), ylim=(-1, 1), ylabel="amplitude", title=title)
    spectrum.specgram(
        samples_S + 1e-6 * np.random.default_rng(0).standard_normal(len(samples_S)), NFFT=512, Fs=SAMPLE_RATE, noverlap=352, vmin=-120
    )
    spectrum.set(xlim=(0, seconds), ylabel="Hz")
    extent = (0.0, seconds, codes_TQ.shape[1] - 0.5, -0.5)
    codes.imshow(codes_TQ.T, aspect="auto", interpolation="nearest", cmap="viridis", extent=extent)
    codes.set(xlabel="seconds", ylabel="codebook", yticks=range(codes_TQ.shape[1]))
    with publish_file(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    pyplot.close(figure)
