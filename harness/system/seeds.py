"""Seeds by axis: one run seed, a different stream for every named use, stable across machines."""

from __future__ import annotations

import hashlib


def seed(base: int, *axis: object) -> int:
    text = "\0".join([str(base), *map(str, axis)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
