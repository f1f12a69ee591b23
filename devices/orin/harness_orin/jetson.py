"""What a Jetson tells of itself: its power mode, its clocks, and a line of tegrastats. Nothing of it is changed."""

from __future__ import annotations

import re
import statistics
from typing import Any

from harness.errors import EnvironmentFault
from harness.remote.device import HOT
from harness.remote.folder import Folder
from harness.remote.target import Target

ORIN = r"\bOrin\b"
MODEL = "/proc/device-tree/model"
MODE = re.compile(r"NV Power Mode: *(\S+)")
CLOCK = re.compile(r"^(GPU|cpu\d+|EMC)\b.*?CurrentFreq=(\d+)", re.MULTILINE)
RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
BUSY = re.compile(r"\bGR3D_FREQ (\d+)%")
DEGREES = re.compile(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b")
POWER = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?= |$)")
WHOLE = ("VDD_IN", "POM_5V_IN")  # rails that hold all others; without one their sum is the module's


class Jetson:
    def __init__(self, folder: Folder, target: Target) -> None:
        self.folder, self.target = folder, target

    def model(self) -> str:
        return self._told("cat", MODEL).strip("\0 \n")

    def power_mode(self) -> str:
        """Its name, where it tells; what the device's file asks for must hold."""
        found = MODE.search(self._told("nvpmodel", "-q"))
        mode, wanted = found[1] if found else "", self.target.power_mode
        if wanted and mode != wanted:
            where = self.folder.transport.where
            raise EnvironmentFault(
                f"{where} is in power mode {mode or 'that it does not tell'}, not {wanted}",
                "sudo nvpmodel -m with that mode's number, over there",
            )
        return mode

    def clocks(self) -> dict[str, int]:
        """In Hz, where this user may ask jetson_clocks."""
        return {name: int(hz) for name, hz in CLOCK.findall(self._told("sudo", "-n", "jetson_clocks", "--show"))}

    def _told(self, *words: str) -> str:
        done = self.folder.transport.run(list(words))
        return "" if done.code else done.out


def reading(line: str) -> dict[str, Any]:
    """One line of tegrastats: RAM in MB, how busy the GPU is, degrees, and milliwatts at this moment."""
    found: dict[str, Any] = {}
    if ram := RAM.search(line):
        found["ram_mb"], found["ram_total_mb"] = int(ram[1]), int(ram[2])
    if busy := BUSY.search(line):
        found["gpu_busy"] = int(busy[1])
    degrees = {name: float(value) for name, value in DEGREES.findall(line) if float(value) > -200}  # -256: it is off
    if degrees:
        found["temperatures_c"] = degrees
        found["throttle"] = sorted(f"{name} is hot" for name, value in degrees.items() if value >= HOT)
    rails = {name: int(now) for name, now, _ in POWER.findall(line) if name not in ("RAM", "SWAP")}
    if rails:
        found["rails_mw"] = rails
        found["power_mw"] = next((rails[name] for name in WHOLE if name in rails), sum(rails.values()))
    return found


def watts(readings: list[dict[str, Any]]) -> float | None:
    """Of the module while its GPU was at work."""
    busy = [found["power_mw"] for found in readings if "power_mw" in found and found.get("gpu_busy", 0) >= 50]
    return statistics.fmean(busy) / 1000 if busy else None
