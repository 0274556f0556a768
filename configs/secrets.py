"""What looks like a secret and must stand in no config: configs are frozen, rendered, logged and shown."""

import re
from collections.abc import Mapping
from typing import Any

_SECRET_WORDS = {"token", "tokens", "secret", "secrets", "password", "passwd", "passphrase", "key", "apikey", "credential", "credentials"}
_CREDENTIALS_IN_URL = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_ASSIGNED = re.compile(r"(?:^|[\s;&])(?:export\s+)?([A-Za-z_]\w*)=(\S+)")


def looks_secret(name: str, value: str = "") -> bool:
    """Whether a variable's name has a word such as TOKEN or KEY, or its value is a URL with a password."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return bool(_SECRET_WORDS & set(words)) or bool(_CREDENTIALS_IN_URL.search(value))


def find_secret(tree: Any, path: str = "") -> str | None:
    """Dotted key of the first text of a nested config that holds a secret; None where there is none.

    That is a URL with a password, or a shell line that assigns a variable with a telling name (a reference such as `$TOKEN` is none: the
    value comes from elsewhere).
    """
    if isinstance(tree, str):
        assigned = [name for name, text in _ASSIGNED.findall(tree) if not text.strip("\"'").startswith("$")]
        return path if looks_secret("", tree) or any(map(looks_secret, assigned)) else None
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    found = (find_secret(value, f"{path}.{key}" if path else str(key)) for key, value in items)
    return next((where for where in found if where), None)


def find_secret_name(variables: Mapping[str, str]) -> str | None:
    """The first variable whose name or value looks like a secret's."""
    return next((name for name, value in variables.items() if looks_secret(name, value)), None)


def redact(text: str) -> str:
    """The text without the password of a URL."""
    return _CREDENTIALS_IN_URL.sub("://...@", text)
