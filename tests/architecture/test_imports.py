"""The borders of docs/design.md: which package may import which, and where each engine lives."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "kernels", "tokenize_farm", "pretrain", "cluster")
ALLOWED_ACROSS = [
    ("pretrain/model", "uniaudio.kernels"),
    ("pretrain/engine.py", "uniaudio.kernels"),
    ("pretrain/optim.py", "uniaudio.kernels"),
    ("pretrain/parallel", "uniaudio.kernels"),
    ("pretrain/sampling.py", "uniaudio.kernels.draw"),
    ("pretrain/generate", "uniaudio.kernels.draw"),
    ("pretrain/data", "uniaudio.tokenize_farm.schema"),
    ("pretrain/data", "uniaudio.tokenize_farm.shard_reader"),
    ("pretrain/data", "uniaudio.tokenize_farm.index"),
    ("pretrain/data", "uniaudio.tokenize_farm.storage"),
    ("pretrain/generate", "uniaudio.tokenize_farm.tokenizers"),
    ("pretrain/generate", "uniaudio.tokenize_farm.audio"),
    ("pretrain/generate", "uniaudio.tokenize_farm.manifest"),
    ("pretrain/generate", "uniaudio.tokenize_farm.measures"),
    ("pretrain/generate", "uniaudio.tokenize_farm.schema"),
    ("pretrain/evaluation", "uniaudio.tokenize_farm.audio"),
    ("pretrain/evaluation", "uniaudio.tokenize_farm.shard_reader"),
    ("pretrain/evaluation", "uniaudio.tokenize_farm.tokenizers"),
    ("pretrain/evaluation", "uniaudio.tokenize_farm.measures"),
]
ENGINES = {
    "deepspeed": ("pretrain/engine.py", "pretrain/parallel/"),
    "megatron": ("pretrain/engine.py", "pretrain/parallel/"),
    "mlflow": ("uniaudio/store.py",),
    "ray": ("tokenize_farm/flow.py", "tokenize_farm/pool.py", "tokenize_farm/ray_map.py", "cluster/ray_jobs.py"),
    "triton": ("kernels/",),
    "obstore": ("tokenize_farm/storage.py", "pretrain/data/"),
}


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def border_faults(relative: str, modules: set[str]) -> list[str]:
    own = relative.split("/")[0]
    faults = []
    for module in sorted(modules):
        top = module.split(".")[0]
        if top in ENGINES and not relative.startswith(ENGINES[top]):
            faults.append(f"{relative} imports {module}: {top} belongs in {', '.join(ENGINES[top])}")
        if top != "uniaudio" or module.count(".") == 0:
            continue
        package = module.split(".")[1]
        if own == "kernels" and package != "kernels":
            faults.append(f"{relative} imports {module}: kernels know only torch and triton")
        if package not in PACKAGES or package in (own, "configs"):
            continue
        if not any(relative.startswith(place) and module.startswith(target) for place, target in ALLOWED_ACROSS):
            faults.append(f"{relative} imports {module}: not an allowed border")
    return faults


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_respects_borders(path: Path) -> None:
    assert border_faults(str(path.relative_to(ROOT)), imported_modules(path)) == []


@pytest.mark.parametrize(
    ("relative", "module"),
    [
        ("kernels/norm/interface.py", "uniaudio.configs.model"),
        ("pretrain/trainer.py", "deepspeed"),
        ("pretrain/model/blocks.py", "uniaudio.tokenize_farm.schema"),
        ("cluster/slurm.py", "uniaudio.pretrain.train"),
    ],
)
def test_a_crossing_is_reported(relative: str, module: str) -> None:
    assert border_faults(relative, {module})


def test_configs_import_nothing_heavy() -> None:
    heavy = {"torch", "ray", "deepspeed", "megatron", "mlflow", "transformers", "triton", "numpy"}
    for path in [*(ROOT / "configs").rglob("*.py"), *(ROOT / "uniaudio").rglob("*.py")]:
        if path == ROOT / "uniaudio" / "store.py":  # imports mlflow, where a run is opened
            continue
        assert not {module.split(".")[0] for module in imported_modules(path)} & heavy, path
