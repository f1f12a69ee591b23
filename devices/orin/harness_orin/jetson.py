"""What a Jetson tells of itself: its power mode, its clocks, and a line of tegrastats. Nothing of it is changed."""

from __future__ import annotations

import re
import statistics
from typing import Any

from harness.devices.remote.device import HOT
from harness.devices.remote.device_file import Target
from harness.devices.remote.folder import Folder
from harness.errors import EnvironmentFault

ORIN = r"\bOrin\b"
MODEL = "/proc/device-tree/model"
MODE = re.compile(r"NV Power Mode: *(\S+)")
CLOCK = re.compile(r"^(GPU|cpu\d+|EMC)\b.*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", re.MULTILINE)
RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
BUSY = re.compile(r"\bGR3D_FREQ (\d+)%")
DEGREES = re.compile(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b")
RAILS = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?= |$)")
WHOLE = ({"VDD_IN"}, {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"})  # rails that make the module's power, NX and AGX
POWER = ("power_mode", "clocks_locked")


class Jetson:
    def __init__(self, folder: Folder, target: Target) -> None:
        self.folder, self.target = folder, target

    def model(self) -> str:
        return self._output("cat", MODEL).strip("\0 \n")

    def power(self) -> dict[str, Any]:
        """Its mode, and whether jetson_clocks holds its clocks, where it tells; what the file asks for must hold."""
        clocks = self.clocks()
        locked = all(low == high for low, high, _ in clocks.values()) if clocks else None
        return {"power_mode": self._mode(), "clocks_locked": locked, "clocks_hz": {n: c[2] for n, c in clocks.items()}}

    def words(self, found: dict[str, Any]) -> str:
        locked = {True: "clocks locked", False: "clocks free: sudo jetson_clocks locks them", None: "clocks not told"}
        return f"{found['power_mode'] or 'not told'}, {locked[found['clocks_locked']]}"

    def _mode(self) -> str:
        found = MODE.search(self._output("nvpmodel", "-q"))
        mode, wanted = found[1] if found else "", self.target.power_mode
        if wanted and mode != wanted:
            where = self.folder.transport.where
            raise EnvironmentFault(
                f"{where} is in power mode {mode or 'that it does not tell'}, not {wanted}",
                "sudo nvpmodel -m with that mode's number, over there",
            )
        return mode

    def clocks(self) -> dict[str, tuple[int, ...]]:
        """Least, most and now in Hz, where this user may ask jetson_clocks. It tells those of CPUs in kHz."""
        said = CLOCK.findall(self._output("sudo", "-n", "jetson_clocks", "--show"))
        return {name: tuple(int(hz) * (1000 if name.startswith("cpu") else 1) for hz in known) for name, *known in said}

    def _output(self, *words: str) -> str:
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
    rails = {name: int(now) for name, now, _ in RAILS.findall(line) if name not in ("RAM", "SWAP")}
    if rails:
        found["rails_mw"] = rails
        if whole := next((names for names in WHOLE if names <= rails.keys()), None):
            found["power_mw"] = sum(rails[name] for name in whole)
    return found


def watts(readings: list[dict[str, Any]]) -> float | None:
    """Of the module while its GPU was at work."""
    busy = [found["power_mw"] for found in readings if "power_mw" in found and found.get("gpu_busy", 0) >= 50]
    return statistics.fmean(busy) / 1000 if busy else None
