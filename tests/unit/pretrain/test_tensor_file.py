from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from uniaudio.pretrain.tensor_file import TensorFiles, TensorFileWriter, file_digest


def write(path: Path, tensors: dict[str, torch.Tensor]) -> TensorFileWriter:
    with TensorFileWriter(path, [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return writer


def example() -> dict[str, torch.Tensor]:
    values = torch.arange(24.0).view(4, 6)
    return {
        "a": values,
        "b": values.bfloat16().t(),
        "c.d": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "u": torch.arange(5, dtype=torch.uint8),
    }


def test_any_reader_gets_the_tensors_back(tmp_path: Path) -> None:
    writer = write(tmp_path / "x.safetensors", example())
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == example().keys()
    for name, tensor in example().items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    assert writer.digest == file_digest(tmp_path / "x.safetensors")
    assert writer.size == (tmp_path / "x.safetensors").stat().st_size


def test_slices_of_rows_and_columns(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", example())
    files = TensorFiles(tmp_path)
    assert files.has("x.safetensors", "a") and not files.has("x.safetensors", "z")
    assert torch.equal(files.read("x.safetensors", "a", 0, 1, 3), example()["a"][1:3])
    assert torch.equal(files.read("x.safetensors", "a", 1, 2, 6), example()["a"][:, 2:6])
    assert torch.equal(files.read("x.safetensors", "u"), example()["u"])
    files.close()


def test_a_tensor_that_was_not_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not follow"), TensorFileWriter(tmp_path / "x", [("a", torch.float32, (2,))]) as writer:
        writer.write("a", torch.zeros(3))


def test_a_missing_tensor_is_noticed_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 announced"), TensorFileWriter(tmp_path / "x", [("a", torch.float32, (2,))]):
        pass


def test_a_full_device_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write(Path("/dev/full"), example())


def test_a_file_that_is_not_safetensors_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(OSError, match=r"x\.safetensors"):
        TensorFiles(tmp_path).has("x.safetensors", "a")
