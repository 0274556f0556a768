"""Weights on disk: what is saved is what is loaded; every wrong file is named."""

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.tokenize_farm.codec.test_model import noise, tiny
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.weights import load_codec, read_notes, save_codec


def test_saved_codec_gives_the_same_codes(tmp_path):
    codec = tiny()
    save_codec(tmp_path / "codec.safetensors", codec, dtype=torch.float32, notes={"steps": "3"})
    again = load_codec(tmp_path / "codec.safetensors")
    assert again.config == codec.config
    assert torch.equal(again.encode(noise(6_400)), codec.encode(noise(6_400)))
    assert read_notes(tmp_path / "codec.safetensors") == {"steps": "3"}


def test_half_precision_file_keeps_codebooks_exact_and_loads_as_fp32(tmp_path):
    codec = tiny()
    save_codec(tmp_path / "codec.safetensors", codec)
    again = load_codec(tmp_path / "codec.safetensors")
    assert torch.equal(again.quantizer.levels[1].codes, codec.quantizer.levels[1].codes)
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no codec weights"):
        load_codec(tmp_path / "absent.safetensors")
    (tmp_path / "text").write_text("hello, this is no safetensors file at all")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_codec(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other"))
    with pytest.raises(UserError, match="not weights of the universal codec"):
        load_codec(tmp_path / "other")
