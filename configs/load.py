"""YAML and dotted overrides in, frozen config out; every fault becomes one line with key, value and what is allowed."""

import functools
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from uniaudio.configs.allowed import advise, describe, is_section, locate, nearest
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
            beside = nearest(path.name, [found.name for found in path.parent.glob("*.y*ml")])
            remedy = f"did you mean {path.with_name(beside)}?" if beside else f"give a YAML file or one of {', '.join(shipped(folder))}"
            raise UserError("no such config file", seen=path, remedy=remedy)
        return path
    candidate = CONFIG_ROOT / folder / f"{name}.yaml"
    if not candidate.is_file():
        near = nearest(str(name), shipped(folder))
        raise UserError(
            f"no config of that name in configs/{folder}",
            seen=name,
            allowed=", ".join(shipped(folder)),
            remedy=f"did you mean {near}?" if near else None,
        )
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
        raise _explain(kind, error, tree, source, overrides) from error


def _explain(kind: type[Section], error: ValidationError, tree: Any, source: str, overrides: Sequence[str]) -> UserError:
    # an unknown key first, what is missing last: it is often that key, misspelt; a list is also too short where its parts are wrong
    urgency = {"extra_forbidden": 0, "missing": 2, "too_short": 3}
    first, *rest = sorted(error.errors(include_url=False), key=lambda fault: urgency.get(fault["type"], 1))
    no_such_key = first["loc"][-1:] == ("[key]",)
    place = locate(kind, first["loc"][:-2] if no_such_key else first["loc"])
    unknown = first["type"] == "extra_forbidden"
    key = ".".join(map(str, first["loc"] if unknown else place.key))
    source = _blamed(key, first, source, overrides)
    more = f" (and {len(rest)} more)" if rest else ""
    if unknown:
        section = locate(kind, first["loc"][:-1]).kind
        beside = sorted(section.model_fields) if is_section(section) else ["(see configs/)"]
        inside = [f"{name}.{first['loc'][0]}" for name in beside if len(first["loc"]) == 1 and _has_key(kind, name, first["loc"][0])]
        near = inside[0] if inside else nearest(str(first["loc"][-1]), beside)
        remedy = f"did you mean {near}?" if near else None
        return UserError(f"{source}: unknown key {key}{more}", seen=_shown(first["input"]), allowed=", ".join(beside), remedy=remedy)
    if first["type"] == "missing" and place.key == first["loc"]:
        return UserError(f"{source}: {key} is missing{more}", allowed=describe(place))
    if first["type"] == "value_error":  # a section's own rule, which names what it saw
        what = f"{key}: " if key else ""
        return UserError(f"{source}: {what}{first['msg'].removeprefix('Value error, ')}{more}", seen=_shown(first["input"]))
    if no_such_key:
        return UserError(f"{source}: {key} holds no such key{more}", seen=first["input"], allowed=describe(place))
    seen = first.get("ctx", {}).get("tag", functools.reduce(operator.getitem, place.key, tree))
    if seen is None:
        remedy = advise(place, seen) or f"write one behind it: {key}=VALUE"
        return UserError(f"{source}: {key} is empty{more}", seen="nothing (null)", allowed=describe(place), remedy=remedy)
    shown = "empty text" if seen == "" else _shown(seen) or f"a {'mapping' if isinstance(seen, dict) else 'list'}"
    return UserError(f"{source}: {key}: not a value of this key{more}", seen=shown, allowed=describe(place), remedy=advise(place, seen))


def _blamed(key: str, fault: Any, source: str, overrides: Sequence[str]) -> str:
    """Where a fault comes from: the last override of that key or of a section around it; of a section's own rule those that it names."""
    for given in reversed(overrides):
        if f"{key}.".startswith(f"{given.partition('=')[0]}."):
            return f"override {given}"
    if fault["type"] != "value_error":
        return source
    inside = {given: given.partition("=")[0] for given in overrides if not key or given.startswith(f"{key}.")}
    named = [given for given, name in inside.items() if re.search(rf"\b{re.escape(name.split('.')[-1])}\b", fault["msg"])]
    return f"override {' '.join(named)}" if named else f"{source} with {' '.join(inside)}" if inside else source


def _has_key(kind: type[Section], section: str, key: int | str) -> bool:
    inner = locate(kind, [section]).kind
    return is_section(inner) and key in inner.model_fields


def _shown(value: Any) -> str | None:
    """A value for a message; of a section or a list of them nothing, since it is long and may hold what nobody should see."""
    if isinstance(value, dict) or (isinstance(value, list | tuple) and any(isinstance(part, dict | list | tuple) for part in value)):
        return None
    return redact("null" if value is None else str(value).lower() if isinstance(value, bool) else str(value))


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
