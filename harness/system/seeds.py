"""Random seeds: each use in a run has its own, derived from the run's seed, and the same on every machine."""

from __future__ import annotations

import hashlib


def seed(base: int, *axis: object) -> int:
    """A seed for one use, which `axis` names."""
    text = "\0".join([str(base), *map(str, axis)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
