"""What an Android device tells of itself through its shell, and how programs with libraries beside them are called."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness.remote.device import HOT
from harness.remote.transport import Transport

PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "product": "ro.product.model",
    "soc": "ro.soc.model",
    "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "build": "ro.build.display.id",
}
NNAPI_DEPRECATED = 35  # Android 15
SKELS = "/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp;/system/lib/rfsa/adsp"
ZONES = 'for zone in /sys/class/thermal/thermal_zone*; do cat "$zone/type" "$zone/temp" 2>/dev/null; done'


def look(transport: Transport) -> dict[str, Any]:
    """Its properties, what it calls itself, and the state it is in. What has no `getprop` tells nothing."""
    found: dict[str, Any] = {}
    for name, prop in PROPERTIES.items():
        done = transport.run(["getprop", prop])
        found[name] = "" if done.code else done.out.strip()
    found["model"] = " ".join(filter(None, [found["maker"], found["product"], found["soc"]]))
    return {**found, "state": state(transport)}


def words(found: Mapping[str, Any]) -> str:
    return f"{found['model'] or 'of unknown make'}, Android {found['android'] or 'unknown'}"


def state(transport: Transport) -> dict[str, Any]:
    degrees = {}
    lines = transport.run(["sh", "-c", ZONES]).out.split("\n")
    for name, value in zip(lines[::2], lines[1::2], strict=False):
        if value.strip().lstrip("-").isdigit() and 0 < int(value) < 200_000:
            degrees[name.strip()] = int(value) / 1000
    found: dict[str, Any] = {"time_ns": time.monotonic_ns()}
    if degrees:
        found["temperatures_c"] = degrees
        found["throttle"] = sorted(f"{name} is hot" for name, value in degrees.items() if value >= HOT)
    return found


def beside(folder: str, words: Sequence[str]) -> list[str]:
    """A program with its libraries, those of the DSP too, in its own folder."""
    return ["env", f"LD_LIBRARY_PATH={folder}", f"ADSP_LIBRARY_PATH={folder};{SKELS}", *words]
