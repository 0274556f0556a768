"""`uniaudio codec` from files to files, one clear line for every fault."""

import json

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from tests.unit.tokenize_farm.codec.test_model import tiny
from uniaudio.errors import PartlyDone, UserError
from uniaudio.tokenize_farm.audio import load_audio, save_wav
from uniaudio.tokenize_farm.codec.cli import codec
from uniaudio.tokenize_farm.codec.weights import load_codec, save_codec


@pytest.fixture
def weights(tmp_path):
    save_codec(tmp_path / "codec.safetensors", tiny(), dtype=torch.float32)
    return str(tmp_path / "codec.safetensors")


def wave(seed: int, samples: int = 16_000) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(codec, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_encode_then_decode_keeps_stems_and_folders(tmp_path, weights):
    save_wav(tmp_path / "in" / "a.wav", wave(0))
    save_wav(tmp_path / "in" / "deep" / "b.wav", wave(1, 12_345))
    run("encode", tmp_path / "in", "--out", tmp_path / "codes", "--weights", weights, "--levels", 3)
    codes = np.load(tmp_path / "codes" / "deep" / "b.npy", allow_pickle=False)
    assert codes.shape == (39, 3) and codes.dtype == np.uint16
    run("decode", tmp_path / "codes", "--out", tmp_path / "wav", "--weights", weights)
    assert load_audio(tmp_path / "wav" / "a.wav").shape == (16_000,)
    assert load_audio(tmp_path / "wav" / "deep" / "b.wav").shape == (39 * 320,)


def test_faults_are_user_errors(tmp_path, weights):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to read"):
        run("encode", tmp_path / "empty", "--out", tmp_path / "o", "--weights", weights)
    for name in ("a.wav", "a.flac"):
        (tmp_path / "empty" / name).write_bytes(b"x")
    with pytest.raises(UserError, match="two files of one stem"):
        run("encode", tmp_path / "empty", "--out", tmp_path / "o", "--weights", weights)
    with pytest.raises(UserError, match="recording cannot be used"):
        run("encode", tmp_path / "empty" / "a.wav", "--out", tmp_path / "o", "--weights", weights)
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match="not a file of codes"):
        run("decode", tmp_path / "bad.npy", "--out", tmp_path / "o", "--weights", weights)
    np.save(tmp_path / "float.npy", np.zeros((3, 2)))
    with pytest.raises(UserError, match="integers"):
        run("decode", tmp_path / "float.npy", "--out", tmp_path / "o", "--weights", weights)
    for command in ("evaluate", "pack"):
        with pytest.raises(UserError, match="--out: nothing can be written there . seen: /proc/o: "):
            run(command, tmp_path / "unread.jsonl", "--out", "/proc/o")
    with pytest.raises(UserError, match="looks like music=40"):
        run("pack", tmp_path / "m.jsonl", "--out", tmp_path / "o", "--source-minutes", "music")


def test_a_bad_file_of_a_folder_does_not_stop_the_others(tmp_path, weights):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"x")
    save_wav(tmp_path / "in" / "b.wav", wave(0))
    with pytest.raises(PartlyDone, match=r"1 of 2 files could not be used; the others are written.*a\.wav.*go on with the others") as told:
        run("encode", tmp_path / "in", "--out", tmp_path / "codes", "--weights", weights)
    assert told.value.exit_code == 3
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["b.npy"]
    (tmp_path / "codes" / "a.npy").write_bytes(b"not an array")
    with pytest.raises(PartlyDone, match=r"1 of 2 files.*a\.npy"):
        run("decode", tmp_path / "codes", "--out", tmp_path / "wav", "--weights", weights)
    assert [path.name for path in (tmp_path / "wav").iterdir()] == ["b.wav"]


def test_a_folder_of_bad_files_alone_leaves_nothing_to_go_on_with(tmp_path, weights):
    (tmp_path / "in").mkdir()
    for number in range(7):
        (tmp_path / "in" / f"{number}.wav").write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of 7 files could be used.*4\.wav, \.\.\.") as told:
        run("encode", tmp_path / "in", "--out", tmp_path / "codes", "--weights", weights)
    assert told.value.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_named(tmp_path, weights):
    with pytest.raises(UserError, match="no CUDA device"):
        run("speed", "--weights", weights, "--device", "cuda")


def test_speed_is_a_positive_multiple_of_real_time(weights):
    figures = json.loads(run("speed", "--weights", weights, "--clips", 1))
    assert figures["encode"] > 0 and figures["decode"] > 0


def test_shipped_weights_encode_and_decode():
    shipped = load_codec()
    clip = torch.from_numpy(wave(0, 16_000))[None]
    codes = shipped.encode(clip)
    assert codes.shape == (1, 50, 8)
    assert float((shipped.decode(codes).std() / clip.std()).log().abs()) < 1


def test_other_rates_channels_and_lengths_become_frames_of_16_khz(tmp_path, weights):
    stereo = np.stack([wave(0, 44_100), wave(1, 44_100)], 1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 44_100)
    soundfile.write(tmp_path / "slow.flac", wave(2, 8_001), 8_000)
    soundfile.write(tmp_path / "clipped.wav", np.sign(wave(3, 1_600)), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "offset.wav", np.full(1_600, 0.9), 16_000)
    soundfile.write(tmp_path / "loud.wav", 5 * wave(4, 1_600), 16_000, subtype="FLOAT")
    run("encode", tmp_path, "--out", tmp_path / "codes", "--weights", weights)
    frames = {path.stem: len(np.load(path)) for path in (tmp_path / "codes").iterdir()}
    assert frames == {"stereo": 50, "slow": 51, "clipped": 5, "offset": 5, "loud": 5}


@pytest.mark.parametrize(
    ("samples", "reason"), [(np.zeros(16_000), "silent"), (np.full(16_000, np.nan), "nan"), (np.full(1, 0.5), "too_short")]
)
def test_recordings_that_hold_nothing_are_refused_by_name(tmp_path, weights, samples, reason):
    soundfile.write(tmp_path / "bad.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=f"recording cannot be used.*{reason}.*bad.wav"):
        run("encode", tmp_path / "bad.wav", "--out", tmp_path / "codes", "--weights", weights)


def test_ten_minutes_go_through_in_pieces(tmp_path, weights):
    soundfile.write(tmp_path / "long.flac", np.tile(wave(5, 16_000), 600), 16_000)
    run("encode", tmp_path / "long.flac", "--out", tmp_path / "codes", "--weights", weights, "--levels", 2)
    assert np.load(tmp_path / "codes" / "long.npy").shape == (30_000, 2)
