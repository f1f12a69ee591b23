"""Checks settings that exclude each other. It is called while a run is planned, so it does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINS = ("lora", "full")  # values of `inner` that train weights


def conflict(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """The problem with these settings together and its remedy, or None."""
    samples, length = settings["samples"], settings["length"]
    if settings["held_out"] > samples - 2:
        return (
            f"{settings['held_out']} of {samples} windows held out leave too few for the search",
            "set samples higher, or held_out lower",
        )
    if 2 * settings["stride"] > length:
        return (
            f"stride={settings['stride']} uses too few of the {length} tokens of a window",
            "set stride lower, or length higher",
        )
    for name in ("merge", "unrolled"):
        if settings[name] and settings["inner"] not in TRAINS:
            return f"{name} needs an inner level that trains weights", "set inner=lora or inner=full with it"
    if settings["unrolled"] and settings["compute"] == "bf16":
        return "bf16 is too coarse for the small differences in unrolled gradients", "set compute=fp32 with it"
    return None
