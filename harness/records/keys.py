"""Stage keys: what a result depends on, as canonical JSON, hashed; and which component of two differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

KEY_VERSION = 1


def canonical(value: Any) -> str:
    """One text per value: sorted, no spaces, no NaN. Tuples and lists are the same."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key(kind: str, components: Mapping[str, Any]) -> str:
    """The key of one stage's result."""
    return hashlib.sha256(canonical([KEY_VERSION, kind, components]).encode()).hexdigest()[:24]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested components as dotted paths."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value)) or value
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for name in value:
            found |= flat(value[name], f"{path}.{name}" if path else str(name))
        return found
    return {path: value}


def explain(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The components in which two keys differ: path, our value, their value."""
    left, right = flat(ours), flat(theirs)
    for path in sorted(left.keys() | right.keys()):
        if canonical(left.get(path)) != canonical(right.get(path)):
            yield path, left.get(path), right.get(path)
