"""What an Android device tells of itself through its shell, and how programs with libraries beside them are called."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness.devices.remote.device import HOT
from harness.devices.remote.transport import Transport
from harness.errors import EnvironmentFault

PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "product": "ro.product.model",
    "soc": "ro.soc.model",
    "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "build": "ro.build.display.id",
    "hardware": "ro.hardware",
    "qemu": "ro.kernel.qemu",
}
EMULATED = ("goldfish", "ranchu")
NNAPI_DEPRECATED = 35  # Android 15
SKELS = "/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp;/system/lib/rfsa/adsp"
ZONES = 'for zone in /sys/class/thermal/thermal_zone*; do echo "$(cat $zone/type) $(cat $zone/temp)"; done 2>/dev/null'
SENSOR = re.compile(r"Temperature\{mValue=([0-9]{1,6}(?:\.[0-9]{1,30})?), mType=-?\d+, mName=([^,]+),")
STATUS = re.compile(r"Thermal Status: (\d+)")
CALM = ("", "0")  # what a thermal service says when nothing is held down


def look(transport: Transport) -> dict[str, Any]:
    """Its properties, what it calls itself, and the state it is in. What has no `getprop` tells nothing."""
    found: dict[str, Any] = {name: _output(transport, ["getprop", prop]).strip() for name, prop in PROPERTIES.items()}
    found["model"] = " ".join(filter(None, [found["maker"], found["product"], found["soc"]]))
    found["emulated"] = found["hardware"] in EMULATED or found["qemu"] == "1"
    return {**found, "state": state(transport)}


def words(found: Mapping[str, Any]) -> str:
    return f"{found['model'] or 'of unknown make'}, Android {found['android'] or 'unknown'}"


def usable(transport: Transport, program: str, where: str) -> str:
    """The program's content; it is there, may be run, and finds its libraries beside it."""
    content = transport.run(["sha256sum", program])
    if content.code or not content.out.strip():
        raise EnvironmentFault(
            f"{where}: {content.message or f'sha256sum {program} printed nothing'}",
            "push it there with its libraries beside it",
        )
    tried = transport.run(beside(program.rpartition("/")[0], [program, "--help"]))
    if tried.code in (126, 127) or tried.code > 128 or "CANNOT LINK" in tried.out + tried.err:
        raise EnvironmentFault(
            f"{where}: {program} does not run: {tried.message}", "chmod +x, and its libraries beside it"
        )
    return content.out.split()[0][:16]


def state(transport: Transport) -> dict[str, Any]:
    """The thermal service's own words, where the shell may ask it; else the zones that it may read."""
    found: dict[str, Any] = {"time_ns": time.monotonic_ns()}
    service = _output(transport, ["dumpsys", "thermalservice"])
    degrees = {name: float(value) for value, name in SENSOR.findall(service)}  # the newest of each stand last
    for line in _output(transport, ["sh", "-c", ZONES]).splitlines():
        name, _, value = line.rpartition(" ")
        if not service and name and value.lstrip("-").isdigit() and 0 < int(value) < 200_000:
            degrees[name] = int(value) / 1000
    if degrees:
        found["temperatures_c"] = degrees
    if degrees or service:
        status = next(iter(STATUS.findall(service)), "")
        hot = [f"{name} is hot" for name, value in sorted(degrees.items()) if value >= HOT]
        found["throttle"] = hot + ([] if status in CALM else [f"thermal status {status}"])
    return found


def _output(transport: Transport, words: Sequence[str]) -> str:
    done = transport.run(words)
    return "" if done.code else done.out


def beside(folder: str, words: Sequence[str]) -> list[str]:
    """A program with its libraries, those of the DSP too, in its own folder."""
    return ["env", f"LD_LIBRARY_PATH={folder}", f"ADSP_LIBRARY_PATH={folder};{SKELS}", *words]
