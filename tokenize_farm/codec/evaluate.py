"""How good the decoded sound is, on held-out recordings, beside codecs that people use.

Owns the measures and the table; needs the packages pesq and pystoi (extra `eval`), and the programs opusenc, opusdec,
c2enc, c2dec only when Opus or Codec2 is asked for.
"""

import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from uniaudio.errors import MissingDependency, UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, load_audio, save_wav
from uniaudio.tokenize_farm.codec.losses import ReconstructionLoss, stft
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.manifest import ManifestRow

COLUMNS = ("system", "kind", "clips", "kbps", "pesq_wb", "stoi", "mel", "stft", "si_sdr")
Recode = Callable[[np.ndarray], tuple[np.ndarray, float]]  # samples -> (decoded samples, bits used)


def choose_clips(rows: Iterable[ManifestRow], *, per_kind: int, seconds: tuple[float, float] = (2.0, 10.0)) -> list[ManifestRow]:
    """Held-out rows (split `valid`), at most `per_kind` of each kind, spread evenly over the manifest's order."""
    groups: dict[str, list[ManifestRow]] = {}
    for row in rows:
        if row.split == "valid" and row.duration is not None and row.duration >= seconds[0]:
            groups.setdefault(row.kind, []).append(row)
    if not groups:
        raise UserError("the manifest has no held-out rows to evaluate on", allowed=f"split valid, at least {seconds[0]} s")
    chosen = []
    for _, members in sorted(groups.items()):
        picks = np.unique(np.linspace(0, len(members) - 1, min(per_kind, len(members))).round().astype(int))
        chosen += [members[i].model_copy(update={"duration": min(members[i].duration or 0.0, seconds[1])}) for i in picks]
    return chosen


def evaluate(
    codec: UniversalCodec,
    rows: list[ManifestRow],
    *,
    levels: list[int],
    baselines: list[str],
    report: Callable[[str], None] = lambda text: None,
) -> tuple[list[dict[str, object]], list[dict[str, float]]]:
    """One row a system and kind (COLUMNS), and one row a level: share of codes used and entropy in bits."""
    systems = dict(_systems(codec, levels, baselines))
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    counts = np.zeros((codec.config.num_codebooks, codec.config.codebook_size), dtype=np.int64)
    for number, row in enumerate(rows):
        clip = load_audio(row.audio_filepath, offset=row.offset, duration=row.duration)
        for level, codes in enumerate(codec.encode(torch.from_numpy(clip)[None])[0].T.cpu().numpy()):
            counts[level] += np.bincount(codes, minlength=codec.config.codebook_size)
        for name, recode in systems.items():
            decoded, bits = recode(clip)
            measured = compare(clip, decoded, speech=row.kind == "speech")
            measured["kbps"] = bits / len(clip) * SAMPLE_RATE / 1000
            scores.setdefault((name, row.kind), []).append(measured)
        report(f"{number + 1}/{len(rows)} {row.id}")
    return [_mean_row(*key, values) for key, values in scores.items()], [_usage(level) for level in counts]


def compare(recorded: np.ndarray, decoded: np.ndarray, *, speech: bool) -> dict[str, float]:
    """Measures of (S,) against (S,) at 16 kHz: mel and stft distance, SI-SDR in dB; for speech also PESQ-wb and STOI.

    A measure that does not exist for this clip (no speech found in it, say) is NaN.
    """
    a, b = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[None] for x in (recorded, decoded))
    mel, _ = ReconstructionLoss()(a, b)
    centred = [x - x.mean() for x in (a[0].double(), b[0].double())]
    target = centred[0] * (centred[0] @ centred[1]) / centred[0].square().sum().clamp_min(1e-12)
    ratio = target.square().sum() / (centred[1] - target).square().sum().clamp_min(1e-12)
    result = {"mel": float(mel), "stft": _stft_distance(a, b), "si_sdr": float(10 * ratio.clamp_min(1e-12).log10())}
    if speech:
        result["pesq_wb"], result["stoi"] = _speech_scores(recorded, decoded)
    return result


def _stft_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Multi-resolution: mean of spectral convergence and log-magnitude L1 over three windows (Parallel WaveGAN)."""
    total = 0.0
    for size in (512, 1024, 2048):
        x, y = (stft(signal, torch.hann_window(size)).abs().clamp_min(1e-5) for signal in (a, b))
        total += float((x - y).norm() / x.norm() + (x.log() - y.log()).abs().mean())
    return total / 3


def _speech_scores(recorded: np.ndarray, decoded: np.ndarray) -> tuple[float, float]:
    try:
        from pesq import NoUtterancesError, pesq
        from pystoi import stoi
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "pesq", needed_for="uniaudio codec evaluate", extra="eval") from error
    try:
        quality = float(pesq(SAMPLE_RATE, recorded, decoded, "wb"))
    except NoUtterancesError:
        quality = math.nan
    return quality, float(stoi(recorded, decoded, SAMPLE_RATE))


def _systems(codec: UniversalCodec, levels: list[int], baselines: list[str]) -> Iterator[tuple[str, Recode]]:
    for count in levels:
        yield f"ours, {count} levels", partial(_recode, codec, count)
    for name in baselines:
        kind, _, rate = name.partition(":")
        programs = {"opus": ("opusenc", "opusdec"), "codec2": ("c2enc", "c2dec")}.get(kind)
        if programs is None or not rate.isdigit():
            raise UserError("unknown baseline", seen=name, allowed="opus:KBPS, codec2:BITS_PER_SECOND")
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            raise UserError(f"baseline {name} needs the programs {', '.join(missing)}", remedy="install opus-tools or codec2")
        yield name, partial(_opus if kind == "opus" else _codec2, rate)


def _recode(codec: UniversalCodec, levels: int, clip: np.ndarray) -> tuple[np.ndarray, float]:
    codes = codec.encode(torch.from_numpy(clip)[None], num_codebooks=levels)
    decoded = codec.decode(codes)[0, : len(clip)].cpu().numpy()
    return np.clip(decoded, -1, 1), codes.numel() * math.log2(codec.config.codebook_size)


def _opus(rate: str, clip: np.ndarray) -> tuple[np.ndarray, float]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_wav(root / "in.wav", clip)
        subprocess.run(["opusenc", "--quiet", "--bitrate", rate, root / "in.wav", root / "a.opus"], check=True, capture_output=True)
        subprocess.run(
            ["opusdec", "--quiet", "--rate", str(SAMPLE_RATE), root / "a.opus", root / "out.wav"], check=True, capture_output=True
        )
        return _fit(load_audio(root / "out.wav"), len(clip)), (root / "a.opus").stat().st_size * 8.0


def _codec2(rate: str, clip: np.ndarray) -> tuple[np.ndarray, float]:
    """8 kHz in and out, so a wideband measure counts its missing upper half."""
    import soxr

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        narrow = soxr.resample(clip, SAMPLE_RATE, 8000)
        (root / "in.raw").write_bytes((narrow.clip(-1, 1) * 32767).astype("<i2").tobytes())
        _program("c2enc", rate, root / "in.raw", root / "a.c2")
        _program("c2dec", rate, root / "a.c2", root / "out.raw")
        decoded = np.frombuffer((root / "out.raw").read_bytes(), "<i2").astype(np.float32) / 32768
        return _fit(soxr.resample(decoded, 8000, SAMPLE_RATE), len(clip)), (root / "a.c2").stat().st_size * 8.0


def _program(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def _fit(samples: np.ndarray, size: int) -> np.ndarray:
    return np.pad(samples[:size], (0, max(0, size - len(samples))))


def _mean_row(system: str, kind: str, values: list[dict[str, float]]) -> dict[str, object]:
    row: dict[str, object] = {"system": system, "kind": kind, "clips": len(values)}
    for column in COLUMNS[3:]:
        known = [value[column] for value in values if not math.isnan(value.get(column, math.nan))]
        row[column] = round(float(np.mean(known)), 3) if known else ""
    return row


def _usage(counts: np.ndarray) -> dict[str, float]:
    share = counts[counts > 0] / counts.sum()
    return {"used": round(float((counts > 0).mean()), 3), "entropy_bits": round(float(-(share * np.log2(share)).sum()), 2)}
