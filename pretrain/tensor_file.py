"""Safetensors files, written one tensor at a time with the hash on the way, and read by slices.

Owns the bytes of a file; knows no model. The format is https://github.com/huggingface/safetensors: an 8-byte length, a JSON header, raw
little-endian data; so a tensor never has to exist beside a copy of itself, and any safetensors reader opens the file.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}
_CHUNK = 1 << 24


class TensorFileWriter:
    """Writes the announced tensors in the announced order; `digest` and `size` hold once the block ends. OSError passes through."""

    def __init__(self, path: Path, entries: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]) -> None:
        self._entries = list(entries)
        self._hash = hashlib.sha256()
        self._handle = path.open("wb", buffering=0)  # so that a full disk is met here, not when a buffer is flushed later
        self._next = 0
        self.size = 0
        header, offset = {}, 0
        for name, dtype, shape in self._entries:
            stop = offset + dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._put(len(text).to_bytes(8, "little") + text)

    def _put(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._handle.write(rest[:_CHUNK]) :]
        self._hash.update(data)
        self.size += len(data)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Appends the next tensor; ValueError where it is not the one announced."""
        expected = self._entries[self._next]
        if (name, tensor.dtype, tuple(tensor.shape)) != expected:
            raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)} does not follow; announced: {expected}")
        self._next += 1
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._put(memoryview(raw.numpy()))

    @property
    def digest(self) -> str:
        """sha256 of everything written so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> "TensorFileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._next != len(self._entries):
                raise ValueError(f"{len(self._entries) - self._next} announced tensors were not written")
            os.fsync(self._handle.fileno())
        finally:
            self._handle.close()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class TensorFiles:
    """Reads tensors and slices of them from the files of a folder; files are mapped, and stay open until `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, safe_open] = {}
        self._keys: dict[str, set[str]] = {}

    def _file(self, name: str) -> safe_open:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self._folder / name, framework="pt", device="cpu")
            except SafetensorError as error:
                raise OSError(f"{self._folder / name}: {error}") from error
            self._keys[name] = set(self._open[name].keys())
        return self._open[name]

    def has(self, file: str, key: str) -> bool:
        """True where the file holds the tensor."""
        self._file(file)
        return key in self._keys[file]

    def read(self, file: str, key: str, dim: int | None = None, start: int = 0, stop: int = 0) -> torch.Tensor:
        """The tensor, or rows (dim 0) or columns (dim 1) start..stop of it."""
        if dim is None:
            return self._file(file).get_tensor(key)
        part = self._file(file).get_slice(key)
        return part[start:stop] if dim == 0 else part[:, start:stop]

    def close(self) -> None:
        """Unmaps the files."""
        self._open.clear()
