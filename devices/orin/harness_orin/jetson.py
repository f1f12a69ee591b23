"""Reads the power mode, the clocks and the tegrastats lines of a Jetson. Nothing on the board is changed."""

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
MODULE_RAILS = ({"VDD_IN"}, {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"})  # their sum is the module's: NX, AGX
POWER = ("power_mode", "clocks_locked")  # keys of `Jetson.power` that go into the fingerprint


class Jetson:
    def __init__(self, folder: Folder, target: Target) -> None:
        self.folder, self.target = folder, target

    def model(self) -> str:
        return self._output("cat", MODEL).strip("\0 \n")

    def power(self) -> dict[str, Any]:
        """Power mode, clocks, and whether they are locked. Raises if the device file asks for another power mode."""
        clocks = self.clocks()
        locked = all(low == high for low, high, _ in clocks.values()) if clocks else None
        current = {name: now for name, (_, _, now) in clocks.items()}
        return {"power_mode": self._mode(), "clocks_locked": locked, "clocks_hz": current}

    def describe(self, facts: dict[str, Any]) -> str:
        clocks = {
            True: "clocks locked",
            False: "clocks not locked: sudo jetson_clocks locks them",
            None: "clocks unknown",
        }
        return f"{facts['power_mode'] or 'power mode unknown'}, {clocks[facts['clocks_locked']]}"

    def _mode(self) -> str:
        match = MODE.search(self._output("nvpmodel", "-q"))
        mode = match[1] if match else ""
        wanted = self.target.power_mode
        if wanted and mode != wanted:
            machine = self.folder.transport.machine
            current = f"is in power mode {mode}" if mode else "does not report its power mode"
            raise EnvironmentFault(
                f"{machine} {current}, not {wanted}", "sudo nvpmodel -m with that mode's number, on the board"
            )
        return mode

    def clocks(self) -> dict[str, tuple[int, ...]]:
        """Minimum, maximum and current clocks in Hz, if this user may run jetson_clocks with sudo."""
        clocks = {}
        for name, *figures in CLOCK.findall(self._output("sudo", "-n", "jetson_clocks", "--show")):
            unit = 1000 if name.startswith("cpu") else 1  # jetson_clocks shows CPU clocks in kHz, others in Hz
            clocks[name] = tuple(int(figure) * unit for figure in figures)
        return clocks

    def _output(self, *command: str) -> str:
        """What the command prints, or an empty text if it fails."""
        result = self.folder.transport.run(list(command))
        return "" if result.code else result.out


def parse_line(line: str) -> dict[str, Any]:
    """One line of tegrastats: RAM in MB, GPU load in per cent, temperatures in °C, and power in mW."""
    readings: dict[str, Any] = {}
    if ram := RAM.search(line):
        readings["ram_mb"], readings["ram_total_mb"] = int(ram[1]), int(ram[2])
    if busy := BUSY.search(line):
        readings["gpu_busy"] = int(busy[1])
    degrees = {
        name: float(value) for name, value in DEGREES.findall(line) if float(value) > -200
    }  # a sensor that is off reads -256
    if degrees:
        readings["temperatures_c"] = degrees
        readings["throttle"] = sorted(f"{name} is hot" for name, value in degrees.items() if value >= HOT)
    rails = {name: int(now) for name, now, _ in RAILS.findall(line) if name not in ("RAM", "SWAP")}
    if rails:
        readings["rails_mw"] = rails
        if names := next((names for names in MODULE_RAILS if names <= rails.keys()), None):
            readings["power_mw"] = sum(rails[name] for name in names)
    return readings


def mean_power_w(readings: list[dict[str, Any]]) -> float | None:
    """Mean power of the module in watts while its GPU was at least half busy, or None if that was never seen."""
    busy = [line["power_mw"] for line in readings if "power_mw" in line and line.get("gpu_busy", 0) >= 50]
    return statistics.fmean(busy) / 1000 if busy else None
