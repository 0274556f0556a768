"""Variants of a clip: what each recipe does to the sound, that draws follow the clip's id alone, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from uniaudio.cli import cli
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import validate
from uniaudio.configs.simulate import RoomConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow, read_manifest
from uniaudio.tokenize_farm.simulate import effects, pool, rooms
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.simulate.instruct import measured
from uniaudio.tokenize_farm.simulate.pool import choose_rows
from uniaudio.tokenize_farm.simulate.simulator import Simulator
from uniaudio.tokenize_farm.tokenizers.protocol import Clip

RATE = 16_000
VIEWS = {
    "audio.noisy": {"steps": [{"effect": "noise", "snr_db": [3, 3]}]},
    "audio.mixture": {"steps": [{"effect": "speakers", "sir_db": [0, 0]}]},
    "audio.reverberant": {"steps": [{"effect": "room", "rooms": 2, "rt60_seconds": [0.15, 0.2], "side_meters": [3, 4]}]},
    "audio.narrow": {"steps": [{"effect": "band_limit", "hz": [1000, 1000]}]},
    "audio.broken": {"steps": [{"effect": "gap", "seconds": [0.5, 0.5]}]},
}


def voice(hz: float, seconds: float = 2.0) -> np.ndarray:
    """A buzz with a slow swell, pitched like a voice."""
    t = np.arange(int(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 12))
    return (0.1 * buzz * (1 + 0.5 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers with two clips each, three sounds; one of each kind held out."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"s{i}.wav", voice(90 + 40 * (i // 2)), RATE)
        rows.append({"id": f"s{i}", "audio_filepath": f"s{i}.wav", "speaker": f"p{i // 2}", "text": "one two three", "language": "en"})
        rows[-1]["split"] = "valid" if i == 5 else "train"
    for i, caption in enumerate(["rain", "a dog", "a bell", "wind"]):
        soundfile.write(folder / f"n{i}.wav", 0.1 * rng.normal(size=RATE * (1 + i)), RATE)
        split = "valid" if i == 3 else "train"
        rows.append({"id": f"n{i}", "audio_filepath": f"n{i}.wav", "kind": "sound", "caption": caption, "split": split})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def farm(manifest: Path, **simulate: object) -> FarmConfig:
    tokenizers = {"audio": {"name": "codec"}, "text": {"name": "text"}}
    return FarmConfig.model_validate({"manifest": str(manifest), "output_dir": "out", "tokenizers": tokenizers, "simulate": simulate})


def clip_of(manifest: Path, name: str, **changes: object) -> Clip:
    row = next(row for row in read_manifest(manifest) if row.id == name).model_copy(update=changes)
    return Clip(row, load_audio(row.audio_filepath))


def test_every_effect_changes_the_sound_and_keeps_its_length(manifest: Path) -> None:
    clip = clip_of(manifest, "s0")
    made = Simulator(farm(manifest, views=VIEWS)).variants(clip, "train")
    assert list(made) == list(VIEWS)
    for variant in made.values():
        assert variant.samples.shape == clip.samples.shape and variant.samples.dtype == np.float32
        assert np.isfinite(variant.samples).all() and np.abs(variant.samples).max() <= 1.0
        assert not np.array_equal(variant.samples, clip.samples)
    noise = made["audio.noisy"].samples - clip.samples
    assert 20 * np.log10(effects.rms(clip.samples) / effects.rms(noise)) == pytest.approx(3.0, abs=0.01)
    high = np.abs(np.fft.rfft(made["audio.narrow"].samples))[(1200 * 2) :]
    assert high.max() < 1e-2 * np.abs(np.fft.rfft(clip.samples)).max()
    assert (made["audio.broken"].samples == 0).sum() >= RATE // 2


def test_the_direct_sound_of_a_room_stays_in_place(manifest: Path) -> None:
    click = np.zeros(RATE, np.float32)
    click[3_000] = 0.5
    heard = rooms.RoomBank(0).reverberate(RoomConfig(effect="room", rt60_seconds=(0.2, 0.2), side_meters=(3, 4)), 0, click)
    assert int(np.argmax(np.abs(heard))) == 3_000 and heard[3_000] == pytest.approx(0.5)
    tail = np.abs(heard[3_100:8_000])
    assert tail.max() > 0.005 and not np.abs(heard[:3_000]).max() > 1e-6


def test_draws_follow_the_clip_and_the_seed_alone(manifest: Path) -> None:
    config = farm(manifest, views=VIEWS, edit={}, instruct={})
    first, second = Simulator(config), Simulator(config)
    names = ["s0", "s3", "n1", "n0", "s2"]
    one = {name: first.variants(clip_of(manifest, name), "train") for name in names}
    for name in reversed(names):  # another order, another process's pool
        again = second.variants(clip_of(manifest, name), "train")
        assert {view: clip.row for view, clip in again.items()} == {view: clip.row for view, clip in one[name].items()}
        for view, clip in again.items():
            np.testing.assert_array_equal(clip.samples, one[name][view].samples)
    other = Simulator(config.model_copy(update={"seed": 1}))
    assert other.version != first.version == second.version
    assert not np.array_equal(other.variants(clip_of(manifest, "s0"), "train")["audio.noisy"].samples, one["s0"]["audio.noisy"].samples)


def test_clips_meet_only_their_own_split(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator(farm(manifest, views={"audio.noisy": VIEWS["audio.noisy"], "audio.mixture": VIEWS["audio.mixture"]}, edit={}))
    met: list[str] = []
    piece = pool.piece
    monkeypatch.setattr(pool, "piece", lambda row, draw, seconds: met.append(row.id) or piece(row, draw, seconds))
    valid = simulator.variants(clip_of(manifest, "s5"), "valid")
    assert list(valid) == ["audio.noisy"] and set(met) == {"n3"}, "no second speaker is held out: no mixture"
    met.clear()
    for name in ("s0", "s1", "s2", "s3", "s4", "n0", "n1", "n2"):
        simulator.variants(clip_of(manifest, name), "train")
    assert met and not {"s5", "n3"} & set(met)


def test_other_speakers_are_others_and_an_unknown_speaker_has_no_mixture(manifest: Path) -> None:
    simulator = Simulator(farm(manifest, views={"audio.mixture": {"steps": [{"effect": "speakers", "count": [2, 2], "sir_db": [0, 0]}]}}))
    clip = clip_of(manifest, "s0")
    extra = simulator.variants(clip, "train")["audio.mixture"].samples - clip.samples
    strength = np.abs(np.fft.rfft(extra))[: RATE // 10]
    assert strength[260] > 100 and strength[340] > 100 > strength[180], "130 Hz and 170 Hz join, 90 Hz is the clip's own"
    assert simulator.variants(clip_of(manifest, "s0", speaker=None), "train") == {}


def test_a_fraction_takes_that_share(manifest: Path) -> None:
    simulator = Simulator(farm(manifest, views={"audio.broken": {**VIEWS["audio.broken"], "fraction": 0.3}}))
    clip = clip_of(manifest, "s0")
    rows = [clip.row.model_copy(update={"id": f"r{i}"}) for i in range(400)]
    assert sum(bool(simulator.variants(Clip(row, clip.samples), "train")) for row in rows) == pytest.approx(120, abs=30)


@pytest.mark.parametrize("operation", ["add", "remove", "replace", "inpaint", "super_resolution"])
def test_edits_say_what_was_done(manifest: Path, operation: str) -> None:
    phrases = {"add": "add {event}", "remove": "remove {event}", "replace": "replace {event} with {other}", "inpaint": "fill {sound}"}
    phrase = phrases.get(operation, "sharpen {sound}")
    simulator = Simulator(farm(manifest, edit={"operations": {operation: [phrase]}}))
    clip = clip_of(manifest, "n0")
    made = simulator.variants(clip, "train")
    before, after, words = made["audio.original"].samples, made["audio.edited"].samples, made["text.instruction"].row.caption
    assert before.shape == after.shape == clip.samples.shape and not np.array_equal(before, after)
    unchanged = {"add": before, "remove": after, "inpaint": after, "super_resolution": after}.get(operation)
    assert unchanged is None or np.array_equal(unchanged, clip.samples)
    assert "{" not in words and "rain" not in words.replace("fill rain", "").replace("sharpen rain", "")
    if operation == "replace":
        assert words in ("replace a dog with a bell", "replace a bell with a dog")


def test_instructions_come_from_the_row_or_the_voice(manifest: Path) -> None:
    simulator = Simulator(farm(manifest, instruct={"phrases": ["{pitch} {voice} {speed} {tone}"]}))
    words = {name: simulator.variants(clip_of(manifest, name), "train")["text.instruction"].row.caption for name in ("s0", "s2", "s4")}
    assert [text.split(" voice ")[0] for text in words.values()] == ["very low", "low", "medium"]
    assert words["s0"].endswith("very slowly monotone")
    given = clip_of(manifest, "s0", custom={"gender": "female", "pitch": "squeaky", "speed": "fast", "tone": "angry"})
    assert simulator.variants(given, "train")["text.instruction"].row.caption == "squeaky woman fast angry"
    own = clip_of(manifest, "s0", instruction="whisper it")
    assert simulator.variants(own, "train")["text.instruction"].row.caption == "whisper it"
    assert simulator.variants(clip_of(manifest, "s0", text=None), "train") == {}, "no text: nobody knows how fast it is"
    assert measured("text", np.zeros(RATE, np.float32)) == {}


def test_a_recording_that_cannot_be_used_is_passed_over_in_the_pool(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", voice(100), RATE)
    soundfile.write(tmp_path / "good.wav", voice(300), RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    lines = [{"id": name, "audio_filepath": f"{name}.wav", "kind": "sound", "split": "train"} for name in ("good", "bad")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"id": "s", "audio_filepath": "s.wav", "split": "train"}])))
    simulator = Simulator(farm(tmp_path / "m.jsonl", views={"audio.noisy": VIEWS["audio.noisy"]}))
    clip = clip_of(tmp_path / "m.jsonl", "s")
    for number in range(12):
        row = clip.row.model_copy(update={"id": str(number)})
        assert "audio.noisy" in simulator.variants(Clip(row, clip.samples), "train")


def test_a_piece_is_as_long_as_asked_from_anywhere_in_its_row(tmp_path: Path) -> None:
    ramp = np.linspace(0.1, 0.9, 4 * RATE, dtype=np.float32)  # its level tells the place
    soundfile.write(tmp_path / "a.wav", ramp, RATE, subtype="FLOAT")
    row = ManifestRow(id="a", audio_filepath=str(tmp_path / "a.wav"), offset=1.0, duration=2.0)
    pieces = [pool.piece(row, Draw("piece", number), 0.5) for number in range(30)]
    starts = [float(found[0]) for found in pieces]
    assert (
        all(len(found) == RATE // 2 for found in pieces) and ramp[RATE] <= min(starts) < 0.4 and 0.5 < max(starts) <= ramp[int(2.5 * RATE)]
    )
    assert len(pool.piece(row, Draw(0), 9.0)) == 2 * RATE, "all of a shorter one"
    assert len(pool.piece(row.model_copy(update={"duration": None}), Draw(0), 9.0)) == 3 * RATE


def test_the_pool_is_bounded_and_independent_of_order() -> None:
    rows = [(ManifestRow(id=f"r{i}", audio_filepath="x", kind=("speech", "sound")[i % 2]), "train") for i in range(100)]
    chosen = choose_rows(rows, 7)
    assert len(chosen) == 14 and choose_rows(rows[::-1], 7) == chosen
    assert {row.kind for row, _ in chosen} == {"speech", "sound"}


def test_a_pool_of_its_own_serves_like_the_whole_manifest(manifest: Path, tmp_path: Path) -> None:
    views = {"audio.noisy": VIEWS["audio.noisy"], "audio.mixture": VIEWS["audio.mixture"]}
    config = farm(manifest, views=views)
    (tmp_path / "farm.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    out = tmp_path / "pool.jsonl"
    result = CliRunner().invoke(cli, ["tokenize", "pool", str(tmp_path / "farm.yaml"), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and f"10 recordings; use it with simulate.pool={out}" in result.output
    alone = Simulator(farm(manifest, views=views, pool=str(out)))
    for name in ("s0", "n1"):
        one, two = (simulator.variants(clip_of(manifest, name), "train") for simulator in (Simulator(config), alone))
        assert list(one) == list(two)
        for view in one:
            np.testing.assert_array_equal(one[view].samples, two[view].samples)


def test_draws_are_stable_over_releases() -> None:
    draw = Draw(0, "clip", "noise")
    assert [round(draw.uniform(0, 1), 6) for _ in range(3)] == [0.786081, 0.838314, 0.336448]
    assert 0 <= Draw("x").below(3) < 3 and Draw("y").choose("abc") in "abc"


@pytest.mark.parametrize(
    ("simulate", "message"),
    [
        ({"views": {"audio": VIEWS["audio.noisy"]}}, "makes views named audio.SOMETHING.*seen: audio"),
        ({"views": {"audio.noisy": {"steps": []}}}, "simulate.views.audio.noisy.steps"),
        ({"views": {"audio.noisy": {"steps": [{"effect": "echo"}]}}}, "simulate.*echo"),
        (
            {"views": {"audio.noisy": {"steps": [{"effect": "noise", "snr_db": [5, 1]}]}}},
            r"views.audio.noisy.snr_db: a range ascends.*\[5, 1\]",
        ),
        ({"views": {"audio.original": VIEWS["audio.broken"]}, "edit": {}}, "simulate.edit makes audio.original already"),
        ({"instruct": {"phrases": ["an {old} {voice}"]}}, r"instruct.phrases: a phrase has \{old\}; allowed: \{pitch\}, \{speed\}"),
        ({"edit": {"operations": {"add": ["swap {event} and {other}"]}}}, r"edit.operations.add: a phrase has \{other\}; allowed"),
        ({"edit": {"operations": {"gap": ["x"]}}}, "edit.operations holds no such key . seen: gap"),
        ({"edit": {"operations": {"inpaint": []}}}, "edit.operations.inpaint: no phrase"),
        ({"edit": {"kinds": ["speech"]}, "instruct": {}}, "edit and instruct both write text.instruction of speech"),
    ],
)
def test_a_bad_recipe_is_refused(simulate: dict, message: str) -> None:
    tree = {"manifest": "m", "output_dir": "o", "tokenizers": {"audio": {"name": "codec"}}, "simulate": simulate}
    with pytest.raises(UserError, match=message):
        validate(FarmConfig, tree, source="farm.yaml")


def test_what_a_recipe_needs_is_asked_for_before_the_work(manifest: Path, tmp_path: Path) -> None:
    config = farm(manifest, instruct={})
    without_text = config.model_copy(update={"tokenizers": {"audio": config.tokenizers["audio"]}})
    with pytest.raises(UserError, match="simulate makes text.instruction, but no tokenizer makes text"):
        Simulator(without_text)
    speech_only = tmp_path / "speech.jsonl"
    speech_only.write_text("\n".join(line for line in manifest.read_text().splitlines() if '"kind"' not in line))
    with pytest.raises(UserError, match="simulate.views.audio.noisy: the pool has no recording of kind sound or music"):
        Simulator(farm(manifest, pool=str(speech_only), views={"audio.noisy": VIEWS["audio.noisy"]}))
    with pytest.raises(UserError, match="no room of these sides can have such a reverberation time"):
        rooms.response(RoomConfig(effect="room", rt60_seconds=(0.01, 0.01), side_meters=(30, 30)), Draw(0))
