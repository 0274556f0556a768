"""How good the decoded sound is, on held-out recordings, beside codecs that people use.

Owns the choice of clips, the systems that are compared and the means; the measures are `measures/`'s, the other codecs `baselines`'s,
the page `report`'s. Needs the packages of the extra `eval`.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, load_audio, save_wav
from uniaudio.tokenize_farm.codec.baselines import Recode, find_baseline
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.measures.recognition import Recogniser, character_errors
from uniaudio.tokenize_farm.measures.signal import distances
from uniaudio.tokenize_farm.measures.speech import dnsmos, pesq_wb, stoi

COLUMNS = ("system", "kind", "clips", "kbps", "pesq_wb", "stoi", "dnsmos", "cer", "mel", "stft", "si_sdr")
DECIMALS = {"kbps": 2, "si_sdr": 2}
RECORDING = "recording"


def choose_clips(rows: Iterable[ManifestRow], *, per_kind: int, seconds: tuple[float, float] = (2.0, 10.0)) -> list[ManifestRow]:
    """Held-out rows (split `valid`), at most `per_kind` of each kind, spread evenly over the manifest's order.

    A row whose speech would be cut loses its text, so that nobody is blamed for words that were not played.
    """
    groups: dict[str, list[ManifestRow]] = {}
    for row in rows:
        if row.split == "valid" and row.duration is not None and row.duration >= seconds[0]:
            groups.setdefault(row.kind, []).append(row)
    if not groups:
        raise UserError("the manifest has no held-out rows to evaluate on", allowed=f"split valid, at least {seconds[0]} s")
    chosen = []
    for _, members in sorted(groups.items()):
        picks = np.unique(np.linspace(0, len(members) - 1, min(per_kind, len(members))).round().astype(int))
        chosen += [_shortened(members[i], seconds[1]) for i in picks]
    return chosen


def _shortened(row: ManifestRow, seconds: float) -> ManifestRow:
    if row.duration is None or row.duration <= seconds:
        return row
    return row.model_copy(update={"duration": seconds, "text": None})


class Evaluation:
    """Systems to compare, and what was measured of them so far."""

    def __init__(
        self, codec: UniversalCodec, *, levels: list[int], baselines: list[str], recogniser: Recogniser | None, listen: Path | None = None
    ) -> None:
        """`recogniser`: for character errors, None to leave them out. `listen`: a folder for the wavs of the clips that `measure` keeps."""
        self.codec, self.recogniser, self.listen = codec, recogniser, listen
        self.systems: dict[str, Recode] = {RECORDING: lambda clip: (clip, math.nan)}
        self.systems |= {f"ours, {count} levels": partial(_recode, codec, count) for count in levels}
        self.systems |= {name: find_baseline(name) for name in baselines}
        self._scores: dict[tuple[str, str], list[dict[str, float]]] = {}
        self._counts = np.zeros((codec.config.num_codebooks, codec.config.codebook_size), dtype=np.int64)

    def measure(self, row: ManifestRow, *, keep: bool = False) -> None:
        """Puts one clip through every system; `keep` writes what comes out to `listen`."""
        clip = load_audio(row.audio_filepath, offset=row.offset, duration=row.duration)
        for level, codes in enumerate(self.codec.encode(torch.from_numpy(clip)[None])[0].T.cpu().numpy()):
            self._counts[level] += np.bincount(codes, minlength=self.codec.config.codebook_size)
        for name, recode in self.systems.items():
            decoded, bits = recode(clip)
            scores = compare(clip, decoded, row, self.recogniser) | {"kbps": bits / len(clip) * SAMPLE_RATE / 1000}
            self._scores.setdefault((name, row.kind), []).append(scores)
            if keep and self.listen is not None:
                stem = "".join(c if c.isalnum() else "_" for c in row.id)
                system = name.replace(", ", "_").replace(" ", "_").replace(":", "_").replace("/", "_")
                save_wav(self.listen / row.kind / f"{stem}.{system}.wav", decoded)

    def quality(self) -> list[dict[str, object]]:
        """One row a system and kind (COLUMNS); a measure that does not exist there is empty."""
        return [_mean_row(*key, values) for key, values in self._scores.items()]

    def codes(self) -> list[dict[str, float]]:
        """One row a level: share of codes used, and entropy in bits, over all clips."""
        return [_usage(level) for level in self._counts]


def evaluate(evaluation: Evaluation, rows: list[ManifestRow], *, keep: int = 0, report: Callable[[str], None] = lambda text: None) -> None:
    """Measures every row; the first `keep` of each kind are kept to listen to."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        seen[row.kind] = seen.get(row.kind, 0) + 1
        evaluation.measure(row, keep=seen[row.kind] <= keep)
        report(f"{number + 1}/{len(rows)} {row.id}")


def compare(recorded: np.ndarray, copy: np.ndarray, row: ManifestRow, recogniser: Recogniser | None) -> dict[str, float]:
    """Measures of (S,) against (S,) at 16 kHz; those of speech only where `row` is speech.

    A measure that does not exist for this clip (no speech found in it, say) is NaN; `errors` and `characters` make the error rate.
    """
    result = distances(recorded, copy)
    if row.kind == "speech":
        result |= {"pesq_wb": pesq_wb(recorded, copy), "stoi": stoi(recorded, copy), "dnsmos": dnsmos(copy)["overall"]}
        if recogniser is not None and row.text:
            errors, characters = character_errors(row.text, recogniser.transcribe(copy, row.language))
            result |= {"errors": errors, "characters": characters}
    return result


def _recode(codec: UniversalCodec, levels: int, clip: np.ndarray) -> tuple[np.ndarray, float]:
    codes = codec.encode(torch.from_numpy(clip)[None], num_codebooks=levels)
    decoded = codec.decode(codes)[0, : len(clip)].cpu().numpy()
    return np.clip(decoded, -1, 1), codes.numel() * math.log2(codec.config.codebook_size)


def _mean_row(system: str, kind: str, values: list[dict[str, float]]) -> dict[str, object]:
    row: dict[str, object] = {"system": system, "kind": kind, "clips": len(values)}
    for column in COLUMNS[3:]:
        known = [value[column] for value in values if not math.isnan(value.get(column, math.nan))]
        row[column] = round(float(np.mean(known)), DECIMALS.get(column, 3)) if known else ""
    characters = sum(value.get("characters", 0) for value in values)
    if characters:
        row["cer"] = round(sum(value.get("errors", 0) for value in values) / characters, 4)
    return row


def _usage(counts: np.ndarray) -> dict[str, float]:
    share = counts[counts > 0] / counts.sum()
    return {"used": round(float((counts > 0).mean()), 3), "entropy_bits": round(float(-(share * np.log2(share)).sum()), 2)}
