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
from uniaudio.tokenize_farm.tokenizers.fit_semantic import fit_centroids
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


def test_k_means_finds_separate_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = rng.uniform(-50, 50, (8, 3))
    points = (centres[rng.integers(0, 8, 2_000)] + rng.standard_normal((2_000, 3))).astype(np.float32)
    found = min((fit_centroids(points, 8, seed=seed) for seed in range(5)), key=lambda c: _spread(points, c))
    assert all(np.linalg.norm(found - centre, axis=1).min() < 0.5 for centre in centres)


def _spread(points: np.ndarray, centroids: np.ndarray) -> float:
    return float(np.linalg.norm(points[:, None] - centroids[None], axis=2).min(axis=1).sum())


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


def test_too_little_to_fit_on_is_refused() -> None:
    with pytest.raises(UserError, match="too few frames.*at least 5000"):
        fit_centroids(np.zeros((100, 3), np.float32), 500)
