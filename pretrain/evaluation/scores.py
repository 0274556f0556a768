"""Which measures each task is judged by, and how they are taken on clips.

The paper's measures (its tables 2 and 3) but for human opinion. Models for two of them cannot be had offline and are the user's (`Models`):
a classifier of sounds for KL, CLAP for the likeness of text and sound. Everything is compared with the clip as its own codes give it back,
so the codec's losses count against nobody; what the codec costs shows in the row of the resynthesis, where intelligibility and quality
alone are measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uniaudio.errors import UserError
from uniaudio.pretrain.evaluation.statistics import NOTHING, Interval, weighted_mean
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.measures import prosody, sets, signal, speaker, speech, tagging
from uniaudio.tokenize_farm.measures.recognition import Recogniser, character_errors, word_errors


@dataclass(frozen=True)
class Heard:
    """A clip as it sounds, and what it is held against: samples (S,) at 16 kHz. prompt, text, language: where the task has them."""

    made: np.ndarray
    reference: np.ndarray
    prompt: np.ndarray | None = None
    text: str | None = None
    language: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Models:
    """Folders of models that the user has (`measures.tagging`)."""

    classifier: Path | None = None
    clap: Path | None = None

    def lack(self, measure: str) -> str | None:
        """The option that the measure needs and that was not given."""
        given = {"kl": ("--classifier", self.classifier), "text_sim": ("--clap", self.clap)}
        option, folder = given.get(measure, ("", Path()))
        return option if folder is None else None


NO_MODELS = Models()
Values = tuple[float, float]  # what is summed, and its weight
SPEECH = ("cer", "wer", "sim", "dnsmos", "mcd", "f0_corr")
REPAIR = ("pesq", "stoi", "si_sdr", "dnsmos", "cer", "wer")
SOUND = ("frechet", "kl", "text_sim")
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
    "a_edit": ("frechet", "kl", "mcd"),
}
ALL = tuple(dict.fromkeys(name for names in (*MEASURES.values(), SPEECH) for name in names))
BETTER = dict.fromkeys(ALL, "higher") | {"cer": "lower", "wer": "lower", "mcd": "lower", "frechet": "lower", "kl": "lower"}
OF_RESYNTHESIS = ("cer", "wer", "sim", "dnsmos", "text_sim")  # against itself the others say nothing


def measures_of(task: str, chosen: Sequence[str] | None, models: Models = NO_MODELS) -> tuple[str, ...]:
    """The measures of a task that its models are there for, or those chosen that it has. UserError for an unknown one, or one without its
    model."""
    if unknown := sorted(set(chosen or ()) - set(ALL)):
        raise UserError("--measures: unknown", seen=", ".join(unknown), allowed=", ".join(ALL))
    if lacking := next((name for name in chosen or () if models.lack(name)), None):
        raise UserError(f"--measures: {lacking} needs a model of yours", seen="none", remedy=f"{models.lack(lacking)} FOLDER")
    own = [name for name in MEASURES.get(task, ("mcd",)) if not models.lack(name)]
    return tuple(own if chosen is None else (name for name in own if name in chosen))


class Judge:
    """Takes measures; keeps the recogniser, which is loaded at the first use."""

    def __init__(self, models: Models = NO_MODELS) -> None:
        self._recogniser: Recogniser | None = None
        self._classifier = tagging.Classifier(models.classifier) if models.classifier else None
        self._clap = tagging.TextAudio(models.clap) if models.clap else None
        self._one: dict[str, Callable[[Heard], Values]] = {
            "cer": lambda clip: self._errors(clip, character_errors),
            "wer": lambda clip: self._errors(clip, word_errors),
            "sim": lambda clip: (math.nan if clip.prompt is None else speaker.similarity(clip.prompt, clip.made), 1),
            "dnsmos": lambda clip: (speech.dnsmos(clip.made)["overall"], 1),
            "pesq": lambda clip: (_aligned(speech.pesq_wb, clip), 1),
            "stoi": lambda clip: (_aligned(speech.stoi, clip), 1),
            "si_sdr": lambda clip: (_aligned(signal.si_sdr, clip), 1),
            "kl": self._divergence,
            "text_sim": self._likeness,
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

    def rehearse(self, measures: Sequence[str]) -> None:
        """Takes each measure once, on a hum: what is not installed is told before anything is generated. UserError, MissingDependency."""
        time = np.arange(int(1.5 * SAMPLE_RATE)) / SAMPLE_RATE
        hum = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20)) * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * time))
        samples = (0.1 * hum).astype(np.float32)
        self.judge(measures, [Heard(samples, samples, samples, "one", "en", "a hum")] * 2)

    def _frechet(self, clips: Sequence[Heard]) -> Interval:
        """One number for the whole set: without an interval."""
        if len(clips) < 2:
            return NOTHING
        made, reference = ([sets.embeddings(samples) for samples in side] for side in zip(*((clip.made, clip.reference) for clip in clips)))
        return Interval(sets.frechet_distance(made, reference), math.nan, math.nan, len(clips))

    def _divergence(self, clip: Heard) -> Values:
        assert self._classifier is not None
        return self._classifier.divergence(clip.reference, clip.made), 1

    def _likeness(self, clip: Heard) -> Values:
        assert self._clap is not None
        return (self._clap.similarity(clip.caption, clip.made) if clip.caption else math.nan), 1

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
