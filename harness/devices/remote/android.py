"""Reads properties and temperatures of an Android device by shell commands, and runs programs on it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness.devices.remote.device import HOT
from harness.devices.remote.transport import Transport
from harness.errors import EnvironmentFault

__all__ = ["NNAPI_DEPRECATED", "check_program", "state", "with_libraries"]

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
DSP_LIBRARIES = "/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp;/system/lib/rfsa/adsp"
ZONES = 'for zone in /sys/class/thermal/thermal_zone*; do echo "$(cat $zone/type) $(cat $zone/temp)"; done 2>/dev/null'
SENSOR = re.compile(r"Temperature\{mValue=([0-9]{1,6}(?:\.[0-9]{1,30})?), mType=-?\d+, mName=([^,]+),")
STATUS = re.compile(r"Thermal Status: (\d+)")
NOT_THROTTLING = ("", "0")  # thermal status


def probe(transport: Transport) -> dict[str, Any]:
    """Properties, model and state of the device. On a machine without `getprop` the properties are empty."""
    facts: dict[str, Any] = {name: _output(transport, ["getprop", prop]).strip() for name, prop in PROPERTIES.items()}
    facts["model"] = " ".join(filter(None, [facts["maker"], facts["product"], facts["soc"]]))
    facts["emulated"] = facts["hardware"] in EMULATED or facts["qemu"] == "1"
    return {**facts, "state": state(transport)}


def describe(facts: Mapping[str, Any]) -> str:
    return f"{facts['model'] or 'of unknown make'}, Android {facts['android'] or 'unknown'}"


def check_program(transport: Transport, program: str, machine: str) -> str:
    """Check that a program exists, may be run, and finds its libraries; return the beginning of its SHA-256."""
    content = transport.run(["sha256sum", program])
    if content.code or not content.out.strip():
        raise EnvironmentFault(
            f"{machine}: {content.message or f'sha256sum {program} printed nothing'}",
            "push it there, with its libraries in the same folder",
        )
    result = transport.run(with_libraries(program.rpartition("/")[0], [program, "--help"]))
    if result.code in (126, 127) or result.code > 128 or "CANNOT LINK" in result.out + result.err:
        raise EnvironmentFault(
            f"{machine}: {program} does not run: {result.message}",
            "make it executable (chmod +x), and push its libraries to the same folder",
        )
    return content.out.split()[0][:16]


def state(transport: Transport) -> dict[str, Any]:
    """Temperatures and throttling: from the thermal service if it answers, else from the readable thermal zones."""
    readings: dict[str, Any] = {"time_ns": time.monotonic_ns()}
    service = _output(transport, ["dumpsys", "thermalservice"])
    degrees = {name: float(value) for value, name in SENSOR.findall(service)}  # the newest reading of each is last
    for line in _output(transport, ["sh", "-c", ZONES]).splitlines():
        name, _, value = line.rpartition(" ")
        if not service and name and value.lstrip("-").isdigit() and 0 < int(value) < 200_000:
            degrees[name] = int(value) / 1000
    if degrees:
        readings["temperatures_c"] = degrees
    if degrees or service:
        status = next(iter(STATUS.findall(service)), "")
        hot = [f"{name} is hot" for name, value in sorted(degrees.items()) if value >= HOT]
        readings["throttle"] = hot + ([] if status in NOT_THROTTLING else [f"thermal status {status}"])
    return readings


def _output(transport: Transport, command: Sequence[str]) -> str:
    """What the command prints, or an empty text if it fails."""
    result = transport.run(command)
    return "" if result.code else result.out


def with_libraries(folder: str, command: Sequence[str]) -> list[str]:
    """The command with library paths for programs whose libraries, including those for the DSP, are in `folder`."""
    return ["env", f"LD_LIBRARY_PATH={folder}", f"ADSP_LIBRARY_PATH={folder};{DSP_LIBRARIES}", *command]
