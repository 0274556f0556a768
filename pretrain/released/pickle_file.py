"""The released checkpoint's file, a torch pickle, -> its model's tensors by name, without running anything that the file names.

Beside tensors the file holds the statistics of its training: durations (`datetime.timedelta`) and numpy scalars. Their names are bound
to a class that keeps nothing, so the statistics vanish and the public file loads; any other name is refused.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from uniaudio.errors import UserError

PREFIX = "module."  # of a model that was wrapped for distributed training


class _Dropped:
    """Stands for a value of the training's statistics: takes what its constructor would take, and keeps none of it."""

    def __new__(cls, *values: Any) -> "_Dropped":
        return object.__new__(cls)

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_STATISTICS = ("datetime.timedelta", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of the file's `model`, `module.` cut off; mapped from the file, so what is not used is not read.

    Raises:
        UserError: no such file, not a torch file, one that would need code to be run, or one that holds no model.
    """
    if not path.is_file():
        raise UserError("no such checkpoint", seen=path, remedy="--checkpoint is the released file (ep*.checkpoint)")
    model = _load(path)
    model = model.get("model") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not model:
        raise UserError(f"{path} holds no model", allowed="a dict with the entry `model`: parameter name -> tensor")
    tensors: dict[str, torch.Tensor] = {}
    for key, value in model.items():
        name = str(key)
        while name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
            raise UserError(f"{path}: {name} is not a dense tensor of numbers", seen=getattr(value, "dtype", type(value).__name__))
        if name in tensors:
            raise UserError(f"{path}: {name} stands twice, with and without {PREFIX}")
        tensors[name] = value.detach()
    return tensors


def _load(path: Path) -> Any:
    dropped = [(_Dropped, name) for name in _STATISTICS]
    try:
        with torch.serialization.safe_globals(dropped):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} asks for code to be run; it was not read",
                seen=name[1],
                allowed="tensors, numbers and text in plain containers",
                remedy="use the file as its authors published it",
            ) from error
        raise _unreadable(path, error) from error
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise _unreadable(path, error) from error  # what torch.load raises for a truncated or foreign file


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a whole torch file", seen=str(error)[:120] or type(error).__name__, remedy="download it again")
