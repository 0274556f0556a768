"""Which measures each task is judged by, and how they are taken on clips.

The paper's measures (its tables 2 and 3) as far as models for them can be had offline: no human opinion, no KL (a classifier of sounds is
not to be had). Everything is compared with the clip as its own codes give it back, so the codec's losses count against nobody; what the
codec costs shows in the row of the resynthesis, where intelligibility and quality alone are measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from uniaudio.errors import UserError
from uniaudio.pretrain.evaluation.statistics import NOTHING, Interval, weighted_mean
from uniaudio.tokenize_farm.measures import prosody, sets, signal, speaker, speech
from uniaudio.tokenize_farm.measures.recognition import Recogniser, character_errors, word_errors


@dataclass(frozen=True)
class Heard:
    """A clip as it sounds, and what it is held against: samples (S,) at 16 kHz. prompt, text, language: where the task has them."""

    made: np.ndarray
    reference: np.ndarray
    prompt: np.ndarray | None = None
    text: str | None = None
    language: str | None = None


Values = tuple[float, float]  # what is summed, and its weight
SPEECH = ("cer", "wer", "sim", "dnsmos", "mcd", "f0_corr")
REPAIR = ("pesq", "stoi", "si_sdr", "dnsmos", "cer", "wer")
SOUND = ("frechet",)
MEASURES: dict[str, tuple[str, ...]] = {
    "tts": SPEECH,
    "plain_tts": SPEECH,
    "vc": SPEECH,
    "i_tts": SPEECH,
    "s_edit": SPEECH,
    "svs": ("sim", "mcd", "f0_corr"),
    "se": REPAIR,
    "sd": REPAIR,
    "tse": (*REPAIR, "sim"),
    "sound": SOUND,
    "music": SOUND,
    "a_edit": (*SOUND, "mcd"),
}
ALL = tuple(dict.fromkeys(name for names in (*MEASURES.values(), SPEECH) for name in names))
BETTER = dict.fromkeys(ALL, "higher") | {"cer": "lower", "wer": "lower", "mcd": "lower", "frechet": "lower"}
OF_RESYNTHESIS = ("cer", "wer", "sim", "dnsmos")  # against itself the others say nothing


def measures_of(task: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    """The measures of a task, or those chosen that it has. UserError for an unknown one."""
    if unknown := sorted(set(chosen or ()) - set(ALL)):
        raise UserError("--measures: unknown", seen=", ".join(unknown), allowed=", ".join(ALL))
    own = MEASURES.get(task, ("mcd",))
    return own if chosen is None else tuple(name for name in own if name in chosen)


class Judge:
    """Takes measures; keeps the recogniser, which is loaded at the first use."""

    def __init__(self) -> None:
        self._recogniser: Recogniser | None = None
        self._one: dict[str, Callable[[Heard], Values]] = {
            "cer": lambda clip: self._errors(clip, character_errors),
            "wer": lambda clip: self._errors(clip, word_errors),
            "sim": lambda clip: (math.nan if clip.prompt is None else speaker.similarity(clip.prompt, clip.made), 1),
            "dnsmos": lambda clip: (speech.dnsmos(clip.made)["overall"], 1),
            "pesq": lambda clip: (_aligned(speech.pesq_wb, clip), 1),
            "stoi": lambda clip: (_aligned(speech.stoi, clip), 1),
            "si_sdr": lambda clip: (_aligned(signal.si_sdr, clip), 1),
            "mcd": lambda clip: (prosody.mel_cepstral_distortion(clip.reference, clip.made), 1),
            "f0_corr": lambda clip: (prosody.f0_correlation(clip.reference, clip.made), 1),
        }

    def judge(self, measures: Sequence[str], clips: Sequence[Heard]) -> dict[str, Interval]:
        """Measure -> mean over clips with its interval. A clip without sound has all words wrong, and no other value."""
        found: dict[str, Interval] = {}
        for name in measures:
            if name == "frechet":
                found[name] = self._frechet(clips)
                continue
            values = [self._one[name](clip) for clip in clips if len(clip.made) or name in ("cer", "wer")]
            sums, weights = zip(*values) if values else ((), ())
            found[name] = weighted_mean(np.array(sums, np.float64), np.array(weights, np.float64))
        return found

    def _frechet(self, clips: Sequence[Heard]) -> Interval:
        """One number for the whole set: without an interval."""
        if len(clips) < 2:
            return NOTHING
        made, reference = ([sets.embeddings(samples) for samples in side] for side in zip(*((clip.made, clip.reference) for clip in clips)))
        return Interval(sets.frechet_distance(made, reference), math.nan, math.nan, len(clips))

    def _errors(self, clip: Heard, count: Callable[[str, str], tuple[int, int]]) -> Values:
        if not clip.text:
            return math.nan, 1
        if self._recogniser is None:
            self._recogniser = Recogniser()
        language = clip.language.split("-")[0] if clip.language else None
        return count(clip.text, self._recogniser.transcribe(clip.made, language) if len(clip.made) else "")


def _aligned(measure: Callable[[np.ndarray, np.ndarray], float], clip: Heard) -> float:
    length = min(len(clip.made), len(clip.reference))
    return measure(clip.reference[:length], clip.made[:length])
