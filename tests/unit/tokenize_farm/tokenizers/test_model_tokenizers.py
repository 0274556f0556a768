"""Tokenizers with a network inside, on tiny random models saved to a folder: shapes, exactness, and the faults of their folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import EncodecConfig, EncodecModel, HubertConfig, HubertModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from uniaudio.configs.codec import CodecModelConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.codec.weights import load_codec, save_codec
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.codec import CodecTokenizer
from uniaudio.tokenize_farm.tokenizers.encodec import EncodecTokenizer
from uniaudio.tokenize_farm.tokenizers.hubert import HubertTokenizer
from uniaudio.tokenize_farm.tokenizers.protocol import AheadTokenizer, AudioTokenizer, Clip, num_frames
from uniaudio.tokenize_farm.tokenizers.t5 import T5Tokenizer
from uniaudio.tokenize_farm.tokenizers.text import TextTokenizer

LENGTHS = (320, 4_000, 16_000, 16_319)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_clip(length: int, seed: int = 0, **fields: object) -> Clip:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, length).astype(np.float32)
    return Clip(ManifestRow(id=f"c{seed}", audio_filepath="x", **fields), samples)


@pytest.fixture(scope="module")
def codec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("codec") / "tiny.safetensors"
    save_codec(path, UniversalCodec(CodecModelConfig(width=32, encoder_layers=1, decoder_layers=1)))
    return path


def test_codec_gives_whole_frames_and_sound_again(codec_file: Path) -> None:
    tokenizer = CodecTokenizer({"weights": str(codec_file)})
    clips = [make_clip(length, i) for i, length in enumerate(LENGTHS)]
    codes = tokenizer.encode(clips)
    assert [array.shape for array in codes] == [(num_frames(clip.samples), 8) for clip in clips]
    assert all(array.dtype == np.uint16 for array in codes)
    assert all(np.array_equal(array, tokenizer.encode([clip])[0]) for array, clip in zip(codes, clips))
    assert isinstance(tokenizer, AudioTokenizer)
    samples = tokenizer.decode(codes[1][:, :3])
    assert samples.dtype == np.float32 and len(samples) == len(codes[1]) * 320 and np.abs(samples).max() <= 1


def test_codec_batches_of_a_gpu_give_the_codes_of_single_clips(codec_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = CodecTokenizer({"weights": str(codec_file), "batch_seconds": 2.0})
    clips = [make_clip(length, i) for i, length in enumerate((16_000, 700, 9_000, 16_319, 15_000))]
    single = tokenizer.encode(clips)
    batches = tokenizer._batches([len(clip.samples) for clip in clips], "cuda")
    assert sorted(i for batch in batches for i in batch) == list(range(5)) and len(batches) > 1 and max(map(len, batches)) > 1
    assert all(len(batch) * max(len(clips[i].samples) for i in batch) <= 32_000 for batch in batches)
    monkeypatch.setattr(tokenizer, "_batches", lambda lengths, device: batches)
    assert all(np.mean(one == many) > 0.99 for one, many in zip(single, tokenizer.encode(clips)))


def test_codec_version_follows_weights_and_levels(codec_file: Path) -> None:
    first = CodecTokenizer({"weights": str(codec_file)})
    assert first.version == CodecTokenizer({"weights": str(codec_file)}).version
    assert first.version != CodecTokenizer({"weights": str(codec_file), "num_codebooks": 3}).version


@pytest.mark.parametrize(("part", "same"), [("decoder", True), ("encoder", False), ("quantizer", False)])
def test_codec_version_is_that_of_its_codes_whatever_the_decoder(codec_file: Path, tmp_path: Path, part: str, same: bool) -> None:
    codec = load_codec(codec_file)
    with torch.no_grad():
        next(iter(getattr(codec, part).parameters())).add_(0.01)
    save_codec(tmp_path / "other.safetensors", codec)
    versions = [CodecTokenizer({"weights": str(path)}).version for path in (codec_file, tmp_path / "other.safetensors")]
    assert (versions[0] == versions[1]) == same


def test_codec_files_and_levels_are_looked_at_before_anything_starts(codec_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_codebooks \| seen: 9 \| allowed: 1..8"):
        CodecTokenizer({"weights": str(codec_file), "num_codebooks": 9})
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(UserError, match="not a safetensors file"):
        CodecTokenizer({"weights": str(tmp_path / "text")})
    save_file({"other": np.zeros(3, np.float32)}, str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"not weights of the universal codec.*codec train"):
        CodecTokenizer({"weights": str(tmp_path / "other")})


def test_codec_loads_before_it_is_asked(codec_file: Path) -> None:
    tokenizer = CodecTokenizer({"weights": str(codec_file)})
    assert isinstance(tokenizer, AheadTokenizer)
    tokenizer.load()
    assert "_codec" in vars(tokenizer) and "_encoder" in vars(tokenizer)
    assert tokenizer.begin([])() == []


def test_embedded_text_encoder_gives_states_for_descriptions_only() -> None:
    tokenizer = TextTokenizer({})
    words = "a dog barks at a passing car"
    clips = [make_clip(320, 0, kind="sound", caption=words), make_clip(320, 1, text="spoken"), make_clip(320, 2, kind="music", text=words)]
    states = tokenizer.encode(clips)
    assert states[1] is None and states[0].dtype == np.float16 and states[0].shape[1] == 384 and 8 <= len(states[0]) <= 12
    assert np.array_equal(states[0], states[2]) and np.array_equal(states[0], tokenizer.encode_text(words))
    assert tokenizer.encode_text("rain " * 500).shape == (100, 384)
    near, far = tokenizer.encode_text("a puppy barking"), tokenizer.encode_text("slow piano music")
    assert _cosine(states[0], near) > _cosine(states[0], far) + 0.2


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype(np.float32).mean(axis=0), other.astype(np.float32).mean(axis=0)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(vocab_size=16, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    T5EncoderModel(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "rain": 2, "wind": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def test_t5_states_are_those_of_the_encoder(t5_folder: Path) -> None:
    tokenizer = T5Tokenizer({"model": str(t5_folder), "max_tokens": 5})
    states = tokenizer.encode([make_clip(320, kind="sound", caption="rain wind rain"), make_clip(320, text="spoken")])
    assert states[0].shape == (3, 24) and states[0].dtype == np.float16 and states[1] is None
    with torch.inference_mode():
        expected = T5EncoderModel.from_pretrained(t5_folder).eval()(input_ids=torch.tensor([[2, 3, 2]])).last_hidden_state[0]
    assert np.allclose(states[0], expected.numpy(), atol=2e-3)
    assert tokenizer.encode_text("rain " * 50).shape == (5, 24)


def test_a_state_beyond_float16_is_refused(t5_folder: Path, tmp_path: Path) -> None:
    model = T5EncoderModel.from_pretrained(t5_folder)
    model.encoder.final_layer_norm.weight.data.fill_(1e6)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((t5_folder / name).read_bytes())
    with pytest.raises(UserError, match="does not fit float16"):
        T5Tokenizer({"model": str(tmp_path)}).encode_text("rain")


@pytest.fixture(scope="module")
def hubert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    config = HubertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7, vocab_size=8)
    HubertModel(config).save_pretrained(folder)
    centres = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    save_file({"centroids": centres}, str(folder / "units.npz.safetensors"), metadata={"features": "hubert-layer-2"})
    return folder


def test_hubert_units_are_the_nearest_centres_of_the_layer(hubert_folder: Path, tmp_path: Path) -> None:
    options = {"model": str(hubert_folder), "centroids": str(hubert_folder / "units.npz.safetensors"), "layer": 2}
    tokenizer = HubertTokenizer(options)
    clips = [make_clip(length, i) for i, length in enumerate(LENGTHS)]
    units = tokenizer.encode(clips)
    assert [len(array) for array in units] == [num_frames(clip.samples) for clip in clips]
    assert all(array.dtype == np.uint16 and array.max() < 500 for array in units)
    with torch.inference_mode():
        samples = torch.from_numpy(np.pad(clips[2].samples, (40, 40)))[None]
        model = HubertModel.from_pretrained(hubert_folder).eval()
        states = model(samples, output_hidden_states=True).hidden_states[2][0].numpy()
    distances = np.linalg.norm(states[:, None] - tokenizer._codebook.centroids_KC[None], axis=2)
    assert np.array_equal(units[2], distances.argmin(axis=1))
    assert tokenizer.encode([make_clip(16_000, kind="sound")]) == [None]
    with pytest.raises(UserError, match=r"centres for other features.*hubert-layer-2.*hubert-layer-3"):
        HubertTokenizer(options | {"layer": 3})


@pytest.fixture(scope="module")
def encodec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encodec")
    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=16_000,
        target_bandwidths=[1.5, 4.0],
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        upsampling_ratios=[8, 5, 4, 2],
        num_lstm_layers=1,
    )
    EncodecModel(config).save_pretrained(folder)
    return folder


def test_encodec_gives_whole_frames_and_sound_again(encodec_folder: Path) -> None:
    tokenizer = EncodecTokenizer({"model": str(encodec_folder), "num_codebooks": 8})
    clips = [make_clip(length, i) for i, length in enumerate((4_000, 16_000, 16_319))]
    codes = tokenizer.encode(clips)
    assert [array.shape for array in codes] == [(num_frames(clip.samples), 8) for clip in clips]
    assert codes[0].dtype == np.uint16 and codes[0].max() < 1024
    assert isinstance(tokenizer, AudioTokenizer) and len(tokenizer.decode(codes[1][:, :3])) == 50 * 320
    assert EncodecTokenizer({"model": str(encodec_folder), "num_codebooks": 3}).encode(clips[:1])[0].shape == (13, 3)


def test_encodec_refuses_what_the_shards_cannot_hold(encodec_folder: Path) -> None:
    with pytest.raises(UserError, match=r"num_codebooks.*seen: 5.*allowed: 3, 8"):
        EncodecTokenizer({"model": str(encodec_folder), "num_codebooks": 5})
    with pytest.raises(UserError, match=r"frame rate.*seen: 50.*allowed: 75"):
        EncodecTokenizer({"model": str(encodec_folder), "frames_per_second": 75.0})
