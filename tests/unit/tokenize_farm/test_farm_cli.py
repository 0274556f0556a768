"""`uniaudio tokenize` and `uniaudio shards` as a user types them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result

from uniaudio.cli import cli
from uniaudio.configs.codec import CodecModelConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.codec.weights import save_codec
from uniaudio.tokenize_farm.manifest import make_id
from uniaudio.tokenize_farm.output import FolderOutput
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard
from uniaudio.tokenize_farm.summary import write_farm_file
from uniaudio.tokenize_farm.tokenizers.codec import CodecTokenizer
from uniaudio.tokenize_farm.tokenizers.phones import PhoneTokenizer


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A shard with every view, and the farm.json that names its codec."""
    torch.manual_seed(0)
    weights = tmp_path / "codec.safetensors"
    save_codec(weights, UniversalCodec(CodecModelConfig(width=32, encoder_layers=1, decoder_layers=1)))
    rng = np.random.default_rng(0)
    views = {
        "audio": rng.integers(0, 1024, (50, 8), dtype=np.uint16),
        "midi": rng.integers(0, 138, 50, dtype=np.uint16),
        "phone": PhoneTokenizer({}).encode_text("hello world", "en"),
        "phone.singing": np.array([[0, 10], [5, 40]], np.uint16),
        "text": rng.standard_normal((5, 384)).astype(np.float16),
    }
    clip = TokenizedClip("hello_1", {"id": "hello 1", "kind": "speech", "seconds": 1.0, "text": "hello world"}, views)
    folder = tmp_path / "shards"
    write_shard(folder, "train", 0, [clip], tokenizers={}, dropped={"missing": ["gone"]})
    spec = {"name": "codec", "options": {"weights": str(weights)}}
    version = CodecTokenizer(spec["options"]).version
    write_farm_file(FolderOutput(folder), {"tokenizers": {"audio": f"codec/{version}"}, "tokenizer_configs": {"audio": spec}})
    return folder


def test_verify_passes_whole_shards_and_fails_damaged_ones(shards: Path) -> None:
    result = call("shards", "verify", shards)
    assert result.exit_code == 0 and "1 of 1 shards are whole" in result.output
    tar = shards / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[1_000] ^= 1
    tar.write_bytes(data)
    result = call("shards", "verify", shards)
    assert result.exit_code == 1 and "train-000000.tar: sha256" in result.output and "0 of 1" in result.output
    assert list(json.loads(call("shards", "verify", shards, "--json").output)["damaged"]) == ["train-000000"]


def test_verify_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no published shards"):
        call("shards", "verify", tmp_path)


def test_show_lists_what_a_folder_holds(shards: Path) -> None:
    totals = json.loads(call("shards", "show", shards, "--json").output)
    assert totals["clips_by_kind"] == {"speech": 1} and totals["rows_by_view"]["audio"] == 50
    assert "view audio" in call("shards", "show", shards).output


def test_show_lists_ids_of_every_kind_that_it_takes_as_clips(shards: Path) -> None:
    clips = [
        TokenizedClip(f"{kind}-{n}", {"id": f"{kind} {n}", "kind": kind, "seconds": 1.0}, {"audio": np.zeros((50, 8), np.uint16)})
        for kind in ("speech", "music")
        for n in range(4)
    ]
    write_shard(shards, "train", 1, clips, tokenizers={})
    write_shard(shards, "valid", 0, [clips[0]], tokenizers={})
    lines = call("shards", "show", shards).output.splitlines()
    listed = ["speech   hello_1", "speech   speech-0", "speech   speech-1", "music    music-0", "music    music-1", "music    music-2"]
    assert lines[-6:] == listed
    assert json.loads(call("shards", "show", shards, "--ids", 1, "--json").output)["ids_by_kind"] == {
        "speech": ["hello_1"],
        "music": ["music-0"],
    }
    assert not any(line.startswith(("speech ", "music ")) for line in call("shards", "show", shards, "--ids", 0).output.splitlines())
    assert "music 2" in call("shards", "show", shards, "--clip", listed[-1].split()[1]).output
    with pytest.raises(UserError, match=r"--out is for one clip.*remedy: --clip ID; `uniaudio shards show .*lists some"):
        call("shards", "show", shards, "--out", shards / "look")


def test_the_clip_of_the_example_is_one_of_the_demo() -> None:
    example = re.search(r"--clip (\S+)", call("shards", "show", "--help").output)
    assert example and example[1] == make_id("asterisk-en/en/activated")


@pytest.mark.parametrize("name", ["hello_1", "hello 1"])
def test_show_draws_and_decodes_a_clip(shards: Path, tmp_path: Path, name: str) -> None:
    result = call("shards", "show", shards, "--clip", name, "--out", tmp_path / "look")
    assert result.exit_code == 0 and "hello world" in result.output
    assert (tmp_path / "look" / "hello_1.png").read_bytes().startswith(b"\x89PNG")
    samples, rate = soundfile.read(tmp_path / "look" / "hello_1.wav")
    assert rate == 16_000 and len(samples) == 50 * 320 and np.abs(samples).max() > 0
    assert json.loads(call("shards", "show", shards, "--clip", name, "--json").output)["views"]["audio"] == [50, 8]


def test_show_refuses_an_unknown_clip_and_codes_of_another_codec(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such clip"):
        call("shards", "show", shards, "--clip", "nobody")
    write_farm_file(FolderOutput(shards), json.loads((shards / "farm.json").read_text()) | {"tokenizers": {"audio": "codec/000000000000"}})
    with pytest.raises(UserError, match="another codec.*codec/000000000000"):
        call("shards", "show", shards, "--clip", "hello_1", "--out", tmp_path / "look")
    (shards / "farm.json").unlink()
    with pytest.raises(UserError, match=r"no farm.json"):
        call("shards", "show", shards, "--clip", "hello_1", "--out", tmp_path / "look")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokenize", "nosuch"], "no config of that name.*allowed: .*demo.*paper"),
        (["tokenize", "demo", "colour=red"], "unknown key colour"),
        (["tokenize", "demo", "tokenizers={midi: {name: f1}}"], "unknown tokenizer.*f1"),
        (["tokenize", "demo", "manifest=/nowhere/m.jsonl", "tokenizers={midi: {name: f0}}"], "manifest.*nowhere"),
    ],
)
def test_faults_of_a_farm_are_found_before_any_worker_starts(words: list[str], message: str, shards: Path) -> None:
    with pytest.raises(UserError, match=message):
        call(*words, f"output_dir={shards}")
