"""YAML and dotted overrides in, frozen config out; every fault becomes one line with key, value and what is allowed."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from uniaudio.configs.secrets import redact
from uniaudio.configs.section import Section
from uniaudio.errors import UserError

ConfigT = TypeVar("ConfigT", bound=Section)
CONFIG_ROOT = Path(__file__).parent


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and reads 1e-4 as a number (YAML 1.1 wants 1.0e-4)."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise UserError(f"line {node.start_mark.line + 1}: key given twice", seen=", ".join(twice), remedy="keep one of them")
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, *, source: str) -> Any:
    """YAML text -> plain Python; a syntax error names the source and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML", seen=str(error)) from error


def find_config(name: str | Path, folder: str) -> Path:
    """A path as given, or the name of a YAML shipped in `configs/<folder>/`."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        if not path.is_file():
            raise UserError("no such config file", seen=path, remedy=f"give a YAML file or one of {shipped(folder)}")
        return path
    candidate = CONFIG_ROOT / folder / f"{name}.yaml"
    if not candidate.is_file():
        raise UserError(f"no config of that name in configs/{folder}", seen=name, allowed=", ".join(shipped(folder)))
    return candidate


def shipped(folder: str) -> list[str]:
    """Names of the YAML files shipped in `configs/<folder>/`."""
    return sorted(path.stem for path in (CONFIG_ROOT / folder).glob("*.yaml"))


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sets `a.b.c=value` (value as YAML) in the nested dict and returns it."""
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError("an override must look like section.key=value", seen=override, remedy="for example optim.lr=3e-4")
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"override {key}: {parent} is not a section", seen=override)
        node[leaf] = parse_yaml(value, source=f"override {key}")
    return tree


def validate(kind: type[ConfigT], tree: Any, *, source: str, overrides: Sequence[str] = ()) -> ConfigT:
    """A nested dict -> the frozen config; the first fault becomes a UserError that names the key, and its override where one set it."""
    if not isinstance(tree, dict):
        raise UserError(f"{source}: a config is a mapping of sections", seen=type(tree).__name__)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _explain(kind, error, source, overrides) from error


def _explain(kind: type[Section], error: ValidationError, source: str, overrides: Sequence[str]) -> UserError:
    # an unknown key first: what is missing is often that key, misspelt
    first, *rest = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    source = next((f"override {given}" for given in reversed(overrides) if f"{key}.".startswith(f"{given.partition('=')[0]}.")), source)
    more = f" (and {len(rest)} more)" if rest else ""
    if first["type"] == "extra_forbidden":
        beside = _keys_of(kind, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), beside, n=1)
        remedy = f"did you mean {near[0]}?" if near else None
        # a section may hold what nobody should see, and is too long to show
        seen = None if isinstance(first["input"], dict | list) else redact(str(first["input"]))
        return UserError(f"{source}: unknown key {key}{more}", seen=seen, allowed=", ".join(beside), remedy=remedy)
    if first["type"] == "model_type" and not isinstance(first["input"], dict | list):
        allowed = f"a mapping of {', '.join(_keys_of(kind, first['loc']))}"
        return UserError(f"{source}: {key}: not a section{more}", seen=redact(str(first["input"])), allowed=allowed)
    # A section's own rule names what it saw; the whole section is too long to show, and may hold what nobody should see.
    seen = None if first["type"] == "missing" or isinstance(first["input"], dict | list) else redact(str(first["input"]))
    return UserError(f"{source}: {f'{key}: ' if key else ''}{first['msg'].removeprefix('Value error, ')}{more}", seen=seen)


def _keys_of(kind: type[Section], location: Sequence[int | str]) -> list[str]:
    """Names allowed in the section at `location`, also where sections lie in a mapping or may be left out."""
    inside: Any = kind
    for part in location:
        if _is_section(inside):
            field = inside.model_fields.get(part)
            inside = field.annotation if field else None
        else:  # a key of dict[str, Section]
            inside = next(filter(_is_section, get_args(inside)), None)
        if isinstance(inside, UnionType):  # Section | None
            inside = get_args(inside)[0]
    return sorted(inside.model_fields) if _is_section(inside) else ["(see configs/)"]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def load_config(kind: type[ConfigT], name: str | Path, *, folder: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a YAML by path or shipped name, applies overrides, validates, and applies the rules between sections.

    Raises:
        UserError: naming the key, the value seen, the values allowed.
    """
    from uniaudio.configs.rules import check  # the rules know every section; sections know nobody

    path = find_config(name, folder)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file", seen=str(error), allowed="YAML in UTF-8") from error
    tree = parse_yaml(text, source=str(path)) or {}
    config = validate(kind, apply_overrides(tree, overrides), source=str(path), overrides=overrides)
    check(config)
    return config


def dump_config(config: Section) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
