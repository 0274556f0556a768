"""Finding the optional packages of the extra `eval`."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from uniaudio.errors import MissingDependency


def need(package: str, *, needed_for: str) -> ModuleType:
    """The imported package; MissingDependency, which names the extra, where it or what it imports is not installed."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or package, needed_for=needed_for, extra="eval") from error


def package_folder(package: str, *, needed_for: str) -> Path:
    """Folder of a package that only carries data; imports nothing of it. MissingDependency where it is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDependency(package.replace("_", "-"), needed_for=needed_for, extra="eval")
    return Path(spec.origin).parent
