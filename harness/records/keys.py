"""Stage keys: hashes of everything that a result depends on, and the components in which two keys differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["canonical"]

KEY_VERSION = 1


def canonical(value: object) -> str:
    """The JSON text of a value: sorted names, no spaces, no NaN. Equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key(kind: str, components: Mapping[str, Any]) -> str:
    """The key of a stage's result, from the components that it depends on."""
    return hashlib.sha256(canonical([KEY_VERSION, kind, components]).encode()).hexdigest()[:24]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested components as one dictionary by dotted path."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value)) or value
    if isinstance(value, Mapping) and value:
        components: dict[str, Any] = {}
        for name in value:
            components |= flat(value[name], f"{path}.{name}" if path else str(name))
        return components
    return {path: value}


def differing_components(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The components in which two keys differ: path, value in the first, value in the second."""
    left, right = flat(first), flat(second)
    for path in sorted(left.keys() | right.keys()):
        if canonical(left.get(path)) != canonical(right.get(path)):
            yield path, left.get(path), right.get(path)
