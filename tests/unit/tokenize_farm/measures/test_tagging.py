"""KL of labels and likeness to a text by models of the user's own; here: tiny ones that were never trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    RobertaTokenizerFast,
)

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.measures.tagging import Classifier, TextAudio


def clip(seed: int, seconds: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ast")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "num_labels": 5}
    torch.manual_seed(0)
    ASTForAudioClassification(ASTConfig(max_length=64, initializer_range=0.5, **sizes)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64).save_pretrained(folder)
    return folder


def test_labels_of_the_same_clip_do_not_differ(classifier: Path) -> None:
    model = Classifier(classifier)
    assert model.log_probabilities(clip(0)).exp().sum().item() == pytest.approx(1)
    assert model.divergence(clip(0), clip(0)) == 0 < model.divergence(clip(0), 30 * clip(1))


def test_text_and_sound_are_compared_at_the_models_rate(tmp_path: Path) -> None:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = RobertaTokenizerFast(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    text = {"vocab_size": len(names), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    audio = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 1], "hidden_size": 16, "num_hidden_layers": 2}
    torch.manual_seed(0)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(tmp_path)
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(tmp_path)
    model = TextAudio(tmp_path)
    near = model.similarity("a dog barks", clip(0))
    assert -1 <= near <= 1 and model.similarity("a dog barks", clip(0)) == near != model.similarity("rain", clip(0))


def test_a_folder_that_holds_no_such_model_is_one_line(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(UserError, match=r"--classifier: not a model of that kind \| seen: .*allowed: a folder that AutoModelForAudio"):
        Classifier(tmp_path).divergence(clip(0), clip(0))
    with pytest.raises(UserError, match=r"--clap: not a model of that kind"):
        TextAudio(classifier).similarity("rain", clip(0))
