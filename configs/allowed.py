"""What a field of a config takes, in words: of pydantic's faults only the place and the kind are used, never its own sentences."""

import difflib
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_SIMPLE: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}


@dataclass(frozen=True)
class Place:
    """A place in a config: its dotted key, what stands there by the annotations, and the metadata with bounds and patterns."""

    key: tuple[str | int, ...]
    kind: Any
    metadata: tuple[Any, ...] = ()
    default: Any = None


def locate(model: type[BaseModel], location: Sequence[int | str]) -> Place:
    """The innermost place that a fault's `loc` names; pydantic's tags of a union's members are no part of the key.

    A fault inside a union of values (text, or a list of texts) is one of the union as a whole; so is one in a list of fixed length.
    """
    place = Place((), model)
    for part in location:
        kind, _ = _unwrap(place)
        if is_section(kind):
            field = kind.model_fields.get(part)
            if field is None:
                return place
            place = Place((*place.key, part), field.annotation, (*field.metadata, *_discriminator(field)), field.default)
        elif members := _members(kind):
            tagged = [member for member in members if is_section(member) and _has_tag(member, part)]
            if not tagged:
                return place
            place = Place(place.key, tagged[0])
        elif get_origin(kind) in (dict, tuple, list) and not _is_fixed(kind):
            place = Place((*place.key, part), get_args(kind)[1 if get_origin(kind) is dict else 0])
        else:
            return place
    return place


def describe(place: Place) -> str:
    """The values that may stand there, as in YAML: `auto, true, false`; `a whole number, at least 1`; `text or a list of texts`."""
    return _words(place.kind, place.metadata)


def advise(place: Place, seen: object) -> str | None:
    """What to write instead: the nearest of the words that are allowed, else the default where there is one."""
    kind, _ = _unwrap(place)
    words = [_yaml(value) for member in (kind, *_members(kind)) for value in _literals(member)]
    if difflib.get_close_matches(str(seen), words, n=1):
        return f"did you mean {near}?" if (near := nearest(str(seen), words)) else None
    if get_origin(kind) in (tuple, list) and isinstance(seen, str) and get_args(kind)[0] is str:
        return f"did you mean {'.'.join(map(str, place.key))}=[{seen}]?"
    if isinstance(place.default, tuple):
        default = f"[{', '.join(map(_yaml, place.default))}]"
    elif isinstance(place.default, str | int | float) and place.default != "":
        default = _yaml(place.default)
    else:
        return None
    return f"for example {'.'.join(map(str, place.key))}={default}, the default"


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The one of `words` that a mistyped one is like and needs the fewest letters changed to become; None where two are as near."""
    near = difflib.get_close_matches(word, words, n=1)
    away = sorted({name: _letters_changed(word, name) for name in words}.items(), key=lambda found: found[1])
    if not near or (len(away) > 1 and away[0][1] == away[1][1]):
        return None
    return away[0][0]


def _letters_changed(word: str, other: str) -> int:
    """Letters to put in, take out or replace (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(word, 1):
        before, row = row, [number]
        for place, wanted in enumerate(other):
            row.append(min(before[place] + (letter != wanted), before[place + 1] + 1, row[place] + 1))
    return row[-1]


def is_section(kind: Any) -> bool:
    """Whether it is a section of a config."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _unwrap(place: Place) -> tuple[Any, tuple[Any, ...]]:
    """Without Annotated and without the alternative null, which pydantic's `loc` does not show."""
    kind, metadata = place.kind, place.metadata
    while True:
        if hasattr(kind, "__metadata__"):
            metadata = (*metadata, *(found for extra in kind.__metadata__ for found in _flat(extra)))
            kind = kind.__origin__
        elif _is_union(kind) and type(None) in get_args(kind) and len(get_args(kind)) == 2:
            kind = next(member for member in get_args(kind) if member is not type(None))
            metadata = (*metadata, None)
        else:
            return kind, metadata


def _flat(extra: Any) -> Iterable[Any]:
    return (*extra.metadata, *_discriminator(extra)) if isinstance(extra, FieldInfo) else (extra,)


def _discriminator(field: FieldInfo) -> tuple[Any, ...]:
    return (field.discriminator,) if isinstance(field.discriminator, str) else ()


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or get_origin(kind) is Union


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if _is_union(kind) else ()


def _literals(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _is_fixed(kind: Any) -> bool:
    return get_origin(kind) is tuple and Ellipsis not in get_args(kind)


def _has_tag(section: type[BaseModel], tag: object) -> bool:
    return any(tag in _literals(field.annotation) for field in section.model_fields.values())


def _yaml(value: object) -> str:
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool) or value is None else str(value)


def _words(kind: Any, metadata: tuple[Any, ...] = ()) -> str:
    kind, metadata = _unwrap(Place((), kind, metadata))
    limits = [form.format(_digits(getattr(item, name))) for item in metadata for name, form in _BOUNDS.items() if hasattr(item, name)]
    limits += ["not empty" if kind is str else f"at least {item.min_length}" for item in metadata if getattr(item, "min_length", None)]
    limits += [f"of the form {item.pattern}" for item in metadata if getattr(item, "pattern", None)]
    return ", ".join([_kind_words(kind, metadata), *limits]) + (" or null" if None in metadata else "")


def _digits(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _kind_words(kind: Any, metadata: tuple[Any, ...]) -> str:
    if is_section(kind):
        return f"a mapping of {', '.join(sorted(kind.model_fields))}"
    if literals := _literals(kind):
        return ", ".join(map(_yaml, literals))
    if members := _members(kind):
        tag = next((item for item in metadata if isinstance(item, str)), None)
        if tag:
            return f"a mapping with {tag}: " + ", ".join(_yaml(get_args(member.model_fields[tag].annotation)[0]) for member in members)
        return " or ".join(map(_words, members))
    inside, origin = get_args(kind), get_origin(kind)
    if origin is dict:
        return f"a mapping of {_plural(inside[0])} to {_plural(inside[1])}"
    if _is_fixed(kind):
        return f"a list of {len(inside)} {_plural(inside[0])}"
    if origin in (tuple, list):
        return f"a list of {_plural(inside[0])}"
    return _SIMPLE.get(kind, (str(kind),))[0]


def _plural(kind: Any) -> str:
    kind, metadata = _unwrap(Place((), kind))
    if kind in _SIMPLE and not metadata:
        return _SIMPLE[kind][1]
    words = _words(kind, metadata)
    if kind in (int, float):
        one, many = _SIMPLE[kind]
        return words.replace(f"{one}, ", f"{many}, each ", 1)
    return f"any of {words}" if _literals(kind) else words.replace("a mapping", "mappings", 1).replace("a list", "lists", 1)
