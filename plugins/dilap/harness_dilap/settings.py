"""Which settings do not go together. No torch: it is asked while a run is planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINS = ("lora", "full")  # inner levels whose weights learn


def fault(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong, and what to do about it."""
    samples, length = settings["samples"], settings["length"]
    if settings["held_out"] > samples - 2:
        return (
            f"{settings['held_out']} of {samples} windows held out leave too few to search with",
            "set samples higher, or held_out lower",
        )
    if 2 * settings["stride"] > length:
        return f"every {settings['stride']}th token of {length} is hardly any", "set stride lower, or length higher"
    for name in ("merge", "unrolled"):
        if settings[name] and settings["inner"] not in TRAINS:
            return f"{name} needs weights that learn", "set inner=lora or inner=full with it"
    if settings["unrolled"] and settings["compute"] == "bf16":
        return "bf16 swallows the small differences that unrolled gradients are made of", "set compute=fp32 with it"
    return None
