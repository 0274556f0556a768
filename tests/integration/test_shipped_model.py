"""The model that comes with the repository, on its own samples: it knows which words are said, with the shipped codec and phones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from uniaudio.pretrain import load_model
from uniaudio.pretrain.generate.api import Generator, Options
from uniaudio.pretrain.generate.inputs import Inputs
from uniaudio.tokenize_farm.audio import load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import Clip

MODEL = Path(__file__).resolve().parents[2] / "models" / "all_tasks_30m"
SAID = {
    "the weather is very nice today": "voice_slt",
    "a small model learned to speak in nine minutes": "voice_hibari",
}


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.load(MODEL, device="cpu")


def losses(module: torch.nn.Module, generator: Generator, sample: str, text: str, voice: str) -> float:
    """Nats a code of the sample's codes as speech of that text in that voice."""
    samples = load_audio(MODEL / "samples" / f"{sample}.wav")
    codes = generator._tokenizers("tts")["audio"].encode([Clip(ManifestRow(id="x", audio_filepath="x", kind="speech"), samples)])[0]
    [request] = generator.requests("tts", Inputs(text=text, prompt=MODEL / "samples" / f"{voice}.wav"), Options())
    bases = [generator.vocabulary.audio_level(level).start for level in range(3)]
    target = torch.from_numpy(codes[:, :3].astype(np.int64) + np.array(bases))
    prompt = torch.from_numpy(request.document.codes_LQ)
    with torch.inference_mode():
        logits = module(torch.cat([prompt, target])[None])[0, len(prompt) :]
    return float(torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten()))


def test_speech_is_likelier_with_its_own_words_and_voice(module, generator) -> None:
    (said, voice), (other, stranger) = SAID.items()
    sample = "tts_" + said.replace(" ", "_")
    own = losses(module, generator, sample, said, voice)
    assert own + 0.5 < losses(module, generator, sample, other, voice), "the words are known"
    assert own + 0.05 < losses(module, generator, sample, said, stranger), "and the voice"
