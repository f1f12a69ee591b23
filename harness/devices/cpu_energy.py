"""Reads the energy counters (RAPL) of Intel and AMD CPUs, which Linux shows under /sys/class/powercap."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")  # its parts (intel-rapl:0:0) are counted in it
NO_COUNTER = "this kernel shows no RAPL counter of a CPU package, as in most virtual machines"
NO_PERMISSION = (
    "RAPL counters are closed to this user: sudo chmod a+r intel-rapl:*/energy_uj under powercap, or run as root"
)


class Meter:
    """Measures the joules between `start` and `stop`. `note` says what they include, or why there are none.

    A counter wraps around after about a minute at full power. Call `update` in between where more time may pass.
    """

    def __init__(self) -> None:
        self.counters: dict[Path, int] = {}  # file of each counter, and the microjoules at which it wraps around
        self.last: list[int] = []
        self.total_uj = 0
        self.note = NO_COUNTER
        try:
            self.counters = _packages()
        except (OSError, ValueError) as error:
            self._disable(error)
        if self.counters:
            packages = f"{len(self.counters)} whole CPU packages" if len(self.counters) > 1 else "whole CPU package"
            self.note = f"{packages} by RAPL, others on the machine included"

    def start(self) -> None:
        self.total_uj, self.last = 0, self._read()

    def update(self) -> None:
        """Add what the counters have counted since the last reading."""
        now = self._read()
        for before, after, wrap in zip(self.last, now, self.counters.values(), strict=False):
            self.total_uj += after - before + (wrap if after < before else 0)
        self.last = now

    def stop(self) -> float | None:
        self.update()
        return self.total_uj / 1e6 if self.counters else None

    def _read(self) -> list[int]:
        try:
            return [_number(path) for path in self.counters]
        except (OSError, ValueError) as error:
            self._disable(error)
            return []

    def _disable(self, error: Exception) -> None:
        """Stop reading, and say why in `note`."""
        self.counters = {}
        reason = getattr(error, "strerror", None) or "no number"
        permission = isinstance(error, PermissionError)
        self.note = NO_PERMISSION if permission else f"a RAPL counter could not be read: {reason}"


def _packages() -> dict[Path, int]:
    """The counter of every CPU package. The platform's counter (psys) is left out: it includes the packages."""
    counters = {}
    for folder in sorted(ROOT.glob("intel-rapl:*")):
        name = folder / "name"
        if PACKAGE.fullmatch(folder.name) and name.read_text(encoding="utf-8").startswith("package"):
            counters[folder / "energy_uj"] = _number(folder / "max_energy_range_uj")
    return counters


def _number(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))
