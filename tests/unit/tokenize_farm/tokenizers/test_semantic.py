"""The embedded semantic units and their fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from safetensors.numpy import save_file

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.cli import tokenize
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers import fit_semantic
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, num_frames
from uniaudio.tokenize_farm.tokenizers.semantic import NUM_UNITS, SemanticTokenizer, features


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose colour changes every 100 ms."""
    rng = np.random.default_rng(seed)
    pieces = [np.convolve(rng.standard_normal(1_600), rng.standard_normal(8), "same") for _ in range(int(seconds * 10))]
    return (0.05 * np.concatenate(pieces)).astype(np.float32)


def encode(samples: np.ndarray, options: dict | None = None, kind: str = "speech") -> np.ndarray | None:
    return SemanticTokenizer(options or {}).encode([Clip(ManifestRow(id="a", audio_filepath="a", kind=kind), samples)])[0]


def test_shipped_units_cover_the_range_of_the_vocabulary() -> None:
    units = encode(noise(20.0))
    assert units.dtype == np.uint16 and len(units) == 1_000
    assert units.max() < NUM_UNITS == 500 and len(np.unique(units)) > 20
    assert encode(noise(1.0), kind="music") is None


@pytest.mark.parametrize("length", [320, 321, 16_000, 16_319])
def test_one_unit_a_frame_whatever_the_length(length: int) -> None:
    samples = noise(2.0)[:length]
    assert len(features(samples)) == num_frames(samples) == len(encode(samples))


def test_loudness_changes_little() -> None:
    samples = noise(5.0)
    assert np.mean(encode(samples) == encode(0.5 * samples)) > 0.9


def test_k_means_finds_separate_clusters(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.uniform(-50, 50, (8, 3))
    points = (centres[rng.integers(0, 8, 2_000)] + rng.standard_normal((2_000, 3))).astype(np.float32)
    parts, sizes = [tmp_path / f"{i}.npy" for i in range(3)], [500, 900, 600]
    for part, piece in zip(parts, np.split(points, np.cumsum(sizes)[:-1])):
        np.save(part, piece)
    fits = []
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        work, scale = tmp_path / str(seed), np.ones(3, np.float32)
        fits.append(fit_semantic._lloyd(work, parts, sizes, scale, units=8, seed=seed, mapper=map))
    found, distance = min(fits, key=lambda fit: fit[1])
    assert all(np.linalg.norm(found - centre, axis=1).min() < 0.5 for centre in centres)
    nearest = np.square(points[:, None] - found[None]).sum(axis=2).min(axis=1)
    assert distance == pytest.approx(nearest.sum(), rel=1e-3)


def test_a_centre_without_points_moves_to_the_farthest_point(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0.0], [0.1], [9.0]], np.float32))
    sums = fit_semantic.sum_part(np.ones(1, np.float32), np.array([[0.0], [100.0]], np.float32), (4, tmp_path / "a.npy"))
    assert sums.counts.tolist() == [3, 0] and sums.farthest[0][1:] == (4, 2)


def test_fit_command_writes_centres_that_the_tokenizer_takes(tmp_path: Path) -> None:
    rows = [{"audio_filepath": f"{i}.wav"} for i in range(3)] + [{"audio_filepath": "gone.wav"}]
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", noise(4.0, i), 16_000)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.safetensors"
        result = CliRunner().invoke(tokenize, ["fit-semantic", str(manifest), "--out", str(out), "--units", "20"], catch_exceptions=False)
        assert result.exit_code == 0 and "20 units from 600 frames" in result.output
        files.append(out.read_bytes())
    assert files[0] == files[1]
    units = encode(noise(4.0), {"centroids": str(tmp_path / "a.safetensors")})
    assert units.max() < 20 and len(np.unique(units)) > 5
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == ["a.safetensors", "b.safetensors"], "parts are gone"


def speech(tmp_path: Path) -> list[ManifestRow]:
    for i in range(5):
        soundfile.write(tmp_path / f"{i}.wav", noise(3.0, i), 16_000)
    return [ManifestRow(id=str(i), audio_filepath=str(tmp_path / f"{i}.wav")) for i in range(5)]


def test_a_fit_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_semantic, "PART_ROWS", 2)
    rows = speech(tmp_path)
    fit_semantic.fit_semantic(rows, tmp_path / "whole", units=12)
    for calls_left in (1, 2, 5, 20):  # in the features of a part, and in an iteration

        class Killed(Exception):
            pass

        def dying(function, jobs, left=[calls_left]):  # noqa: B006 - counts over calls
            for job in jobs:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                yield function(job)

        with pytest.raises(Killed):
            fit_semantic.fit_semantic(rows, tmp_path / "killed", units=12, mapper=dying)
        fit_semantic.fit_semantic(rows, tmp_path / "killed", units=12)
        assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
        (tmp_path / "killed").unlink()
    (tmp_path / "other.parts").mkdir()
    (tmp_path / "other.parts/fit").write_text("of other rows")
    with pytest.raises(UserError, match="another fit was begun here.*other.parts"):
        fit_semantic.fit_semantic(rows, tmp_path / "other", units=12)


@pytest.mark.slow
def test_a_fit_on_ray_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech(tmp_path)
    lines = [json.dumps({"id": str(i), "audio_filepath": f"{i}.wav"}) for i in range(5)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    for name, workers in (("one", "1"), ("two", "2")):
        command = ["fit-semantic", str(tmp_path / "manifest.jsonl"), "--out", str(tmp_path / name), "--units", "12", "--workers", workers]
        assert CliRunner().invoke(tokenize, command, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_faults_of_a_file_of_centres_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no file of k-means centres.*fit-semantic"):
        SemanticTokenizer({"centroids": str(path)})
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match="not a file of k-means centres.*pickled"):
        SemanticTokenizer({"centroids": str(path)})
    save_file({"centroids": np.zeros((5, 39), np.float32)}, str(path), metadata={"features": "hubert-layer-9"})
    with pytest.raises(UserError, match="centres for other features"):
        SemanticTokenizer({"centroids": str(path)})
    save_file({"centroids": np.zeros((5, 7), np.float32)}, str(path))
    with pytest.raises(UserError, match="differ in width"):
        encode(noise(1.0), {"centroids": str(path)})


def test_too_little_to_fit_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few frames.*at least 5000"):
        fit_semantic.fit_semantic(speech(tmp_path), tmp_path / "out", units=500)
    with pytest.raises(UserError, match="no speech to fit on"):
        fit_semantic.fit_semantic([ManifestRow(id="a", audio_filepath="a", kind="music")], tmp_path / "out", units=5)
