"""Packing and training: held-out clips stay out, a stopped training goes on exactly, bad input is named."""

import json

import numpy as np
import pytest
import torch

from uniaudio.configs.codec import CodecConfig, CodecDataConfig, CodecModelConfig, CodecTrainConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import save_wav
from uniaudio.tokenize_farm.codec.data import PackedRecordings, pack_recordings
from uniaudio.tokenize_farm.codec.group import Group
from uniaudio.tokenize_farm.codec.grow import grow_from
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.codec.run import train_codec
from uniaudio.tokenize_farm.codec.train import CodecTraining, rate_share
from uniaudio.tokenize_farm.codec.weights import codes_digest, load_codec, save_codec
from uniaudio.tokenize_farm.manifest import ManifestRow

CPU = torch.device("cpu")


@pytest.fixture
def pack(tmp_path):
    rows = []
    for i in range(4):
        time = np.arange(16_000) / 16_000
        save_wav(tmp_path / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 200 * (i + 1) * time))
        split, kind = ("valid" if i == 3 else "train"), ("music" if i == 2 else "speech")
        rows.append(ManifestRow(id=str(i), audio_filepath=str(tmp_path / f"{i}.wav"), kind=kind, split=split, source="s"))
    rows.append(ManifestRow(id="gone", audio_filepath=str(tmp_path / "gone.wav"), split="train", source="s"))
    pack_recordings(rows, tmp_path / "pack")
    return tmp_path / "pack"


TINY = CodecModelConfig(
    width=16,
    fine_width=16,
    encoder_fine_layers=1,
    encoder_layers=1,
    decoder_layers=1,
    decoder_fine_layers=1,
    num_codebooks=2,
    codebook_size=8,
)
JUDGES = {"discriminator_batch": 2, "discriminator_frames": 6, "discriminator_scales": [128], "discriminator_channels": 4}
SCHEDULE = {"batch_size": 2, "precision": "fp32", "log_every": 2, "warmup_steps": 1, "revive_every": 2, "max_steps": 8}


def config(pack, out, **train) -> CodecConfig:
    return CodecConfig(
        model=TINY,
        data=CodecDataConfig(pack=str(pack), segment_frames=12, speeds=[1.0, 1.25]),
        train=CodecTrainConfig(**{**JUDGES, **SCHEDULE, **train}),
        output_dir=str(out),
    )


def test_pack_holds_the_training_clips_only_at_every_speed(pack):
    data = PackedRecordings(CodecDataConfig(pack=str(pack), speeds=[1.0, 1.25]), 3840, CPU)
    assert data.names == ["music/s/1", "music/s/1.25", "speech/s/1", "speech/s/1.25"]
    assert [len(x) for x in torch.tensor_split(data.data, data.starts[1:].tolist())] == [16_000, 12_800, 32_000, 25_600]
    peak = torch.fft.rfft(data.data[16_000:28_800].float()).abs().argmax() * 16_000 / 12_800
    assert float(peak) == pytest.approx(600 * 1.25, abs=3)
    clips, voices = data.draw(16)
    assert clips.shape == (16, 3840) and clips.abs().max() <= 1 and bool(torch.isfinite(clips).all())
    assert voices.shape == (16,) and 0 < int(voices.sum()) < 16  # of speech, and of music


def test_a_stopped_training_goes_on_exactly(pack, tmp_path):
    whole = CodecTraining(config(pack, tmp_path / "whole", max_steps=6, discriminate_from=0.3), CPU)
    whole.run()
    part = config(pack, tmp_path / "part", max_steps=6, discriminate_from=0.3)
    ticks = iter(range(1000))
    first = CodecTraining(part, CPU, clock=lambda: float(next(ticks)))
    assert first.run(max_seconds=5) < 1 and 0 < first.step < 6
    second = CodecTraining(part, CPU)
    assert second.step == first.step
    second.run()
    for name, value in whole.work.codec.state_dict().items():
        assert torch.equal(value, second.work.codec.state_dict()[name]), name
    again = load_codec(tmp_path / "part" / "codec.safetensors")
    assert again.encode(torch.zeros(1, 640)).shape == (1, 2, 2)
    assert torch.equal(whole.work.balance.sizes, second.work.balance.sizes)


def test_training_lowers_the_loss_and_logs_it(pack, tmp_path):
    training = CodecTraining(config(pack, tmp_path / "out", max_steps=40, lr=5e-3, discriminate_from=0.9, log_every=10), CPU)
    assert training.run() == 1.0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["mel"] < 0.8 * lines[0]["mel"]
    assert lines[0]["discriminator"] == 0 and lines[-1]["discriminator"] > 0


def test_schedule_warms_up_holds_and_falls_to_zero():
    train = CodecTrainConfig(warmup_steps=9, decay_from=0.5)
    assert rate_share(train, 0, 0.0) == pytest.approx(0.1)
    assert rate_share(train, 100, 0.5) == 1
    assert rate_share(train, 100, 0.75) == pytest.approx(0.5)
    assert rate_share(train, 100, 1.0) == pytest.approx(0)


def test_time_budget_ends_the_schedule(pack, tmp_path):
    ticks = iter(range(10_000))
    training = CodecTraining(config(pack, tmp_path / "out", max_steps=10_000, max_minutes=0.2), CPU, clock=lambda: float(next(ticks)))
    assert training.run() == 1.0 and training.step < 13


def test_faults_are_named(pack, tmp_path):
    with pytest.raises(UserError, match="not a whole pack"):
        PackedRecordings(CodecDataConfig(pack=str(tmp_path / "absent")), 3840, CPU)
    with pytest.raises(UserError, match="no share to a kind"):
        PackedRecordings(CodecDataConfig(pack=str(pack), mix={"speech": 1.0}), 3840, CPU)
    with pytest.raises(UserError, match="no stream as long"):
        PackedRecordings(CodecDataConfig(pack=str(pack)), 320_000, CPU)
    with pytest.raises(UserError, match="no training rows"):
        pack_recordings([], tmp_path / "empty")
    with pytest.raises(UserError, match="--kbps of a pack"):
        pack_recordings([ManifestRow(id="a", audio_filepath="a.wav")], tmp_path / "empty", kbps=1)
    CodecTraining(config(pack, tmp_path / "out"), CPU).save()
    other = config(pack, tmp_path / "out")
    other = other.model_copy(update={"model": other.model.model_copy(update={"width": 24})})
    with pytest.raises(UserError, match="another shape"):
        CodecTraining(other, CPU)


def test_training_starts_from_weights_and_with_more_blocks_gives_the_same_codes(pack, tmp_path):
    small = UniversalCodec(TINY).eval()
    save_codec(tmp_path / "small.safetensors", small, dtype=torch.float32)
    shape = TINY.model_copy(update={"encoder_layers": 2, "decoder_fine_layers": 3, "expansion": 4})
    settings = config(pack, tmp_path / "out", init_from=str(tmp_path / "small.safetensors")).model_copy(update={"model": shape})
    training = CodecTraining(settings, CPU)
    grown, clip = training.work.average, torch.randn(1, 6_400) * 0.1
    codes = small.encode(clip)
    assert torch.equal(grown.encode(clip), codes)
    torch.testing.assert_close(grown.decode(codes), small.decode(codes))
    training.run(max_seconds=None)
    assert not torch.equal(training.work.codec.encoder.coarse[1].scale, torch.zeros(16))
    with pytest.raises(UserError, match=r"cannot grow to this shape .* model.encoder_layers 1 from 2"):
        grow_from(small, grown)


def test_the_decoder_alone_trains_on_and_codes_stay(pack, tmp_path):
    given = tmp_path / "given.safetensors"
    save_codec(given, UniversalCodec(TINY))
    only = {
        "decoder_only": True,
        "init_from": str(given),
        "max_steps": 6,
        "discriminate_from": 0.3,
        "revive_below": 9.0,
        "precision": "bf16",
    }
    whole = CodecTraining(config(pack, tmp_path / "whole", **only), CPU)
    whole.run()
    trained, before = load_codec(tmp_path / "whole" / "codec.safetensors").state_dict(), load_codec(given).state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert codes_digest(tmp_path / "whole" / "codec.safetensors") == codes_digest(given)
    ticks = iter(range(1000))
    first = CodecTraining(config(pack, tmp_path / "part", **only), CPU, clock=lambda: float(next(ticks)))
    assert first.run(max_seconds=5) < 1 and first.step > 0
    second = CodecTraining(config(pack, tmp_path / "part", **only), CPU)
    second.run()
    assert codes_digest(tmp_path / "part" / "codec.safetensors") == codes_digest(given)
    assert all(torch.equal(value, second.work.average.state_dict()[name]) for name, value in whole.work.average.state_dict().items())


def test_a_decoder_alone_is_refused_without_weights_of_its_shape(pack, tmp_path):
    with pytest.raises(ValueError, match=r"decoder_only needs the weights .* set train.init_from"):
        CodecTrainConfig(decoder_only=True)
    save_codec(tmp_path / "given.safetensors", UniversalCodec(TINY))
    settings = config(pack, tmp_path / "out", decoder_only=True, init_from=str(tmp_path / "given.safetensors"))
    larger = settings.model_copy(update={"model": TINY.model_copy(update={"decoder_layers": 2})})
    with pytest.raises(UserError, match=r"must have the shape of train.init_from .* model.decoder_layers 2, there 1"):
        CodecTraining(larger, CPU)


def test_levels_that_clips_draw_from_are_chosen_and_checked(pack, tmp_path):
    training = CodecTraining(config(pack, tmp_path / "out", all_levels_probability=(0.0, 0.0), levels=[1]), CPU)
    assert training.work._levels().tolist() == [1, 1]
    with pytest.raises(ValueError, match="levels must list numbers from 1 on"):
        CodecTrainConfig(levels=[])
    with pytest.raises(ValueError, match=r"between 1 and model.num_codebooks 2, seen \[3\]"):
        config(pack, tmp_path / "out", levels=[3])


def test_share_of_clips_with_all_levels_follows_the_progress(pack, tmp_path):
    training = CodecTraining(config(pack, tmp_path / "out", all_levels_probability=(0.0, 1.0)), CPU)
    training.work.set_schedule(1.0, 0.25)
    assert float(training.work.all_levels_share) == 0.25
    training.work.set_schedule(1.0, 1.0)
    assert training.work._levels().tolist() == [2, 2]
    with pytest.raises(ValueError, match="between 0 and 1"):
        CodecTrainConfig(all_levels_probability=(0.0, 1.5))


@pytest.mark.slow
def test_a_run_goes_on_in_its_mlflow_run(pack, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = train_codec(config(pack, tmp_path / "out", max_steps=2), CPU, Group())
    second = train_codec(config(pack, tmp_path / "out", max_steps=4), CPU, Group())
    assert (first.step, second.step) == (2, 4) and second.run_id == first.run_id is not None
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(second.run_id).info.status == "FINISHED"
    assert [entry.step for entry in client.get_metric_history(second.run_id, "quality")] == [2, 4]


def test_capture_of_a_step_is_for_one_process(pack, tmp_path):
    with pytest.raises(UserError, match=r"cuda_graph is for one process .* 2 of them"):
        CodecTraining(config(pack, tmp_path / "out", cuda_graph=True), CPU, group=Group(0, 2))


def test_losses_that_are_not_finite_stop_the_training(pack, tmp_path):
    training = CodecTraining(config(pack, tmp_path / "out"), CPU)
    with torch.no_grad():
        training.work.codec.decoder.outputs.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged"):
        training.run()
