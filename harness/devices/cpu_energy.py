"""The energy that a machine's CPUs count themselves: RAPL, as Linux shows it under powercap, Intel's and AMD's."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")  # what lies inside a package (intel-rapl:0:0) is counted with it already
NONE = "this kernel shows no RAPL counter of a CPU package, as in most virtual machines"
SHUT = "RAPL counters are closed to this user: sudo chmod a+r intel-rapl:*/energy_uj under powercap, or run as root"


class Meter:
    """Joules between `start` and `stop`. `note` says what they are of, or why there are none.

    A counter starts anew after about a minute of the highest power: `look` at it where more may pass in between.
    """

    def __init__(self) -> None:
        self.counters: dict[Path, int] = {}  # and the microjoules at which each starts anew
        self.last: list[int] = []
        self.spent_uj = 0
        self.note = NONE
        try:
            self.counters = _packages()
        except (OSError, ValueError) as error:
            self._lost(error)
        if self.counters:
            many = f"{len(self.counters)} whole CPU packages" if len(self.counters) > 1 else "whole CPU package"
            self.note = f"{many} by RAPL, others on the machine included"

    def start(self) -> None:
        self.spent_uj, self.last = 0, self._read()

    def look(self) -> None:
        now = self._read()
        for before, after, most in zip(self.last, now, self.counters.values(), strict=False):
            self.spent_uj += after - before + (most if after < before else 0)
        self.last = now

    def stop(self) -> float | None:
        self.look()
        return self.spent_uj / 1e6 if self.counters else None

    def _read(self) -> list[int]:
        try:
            return [_number(path) for path in self.counters]
        except (OSError, ValueError) as error:
            self._lost(error)
            return []

    def _lost(self, error: Exception) -> None:
        self.counters = {}
        told = getattr(error, "strerror", None) or "no number"
        self.note = SHUT if isinstance(error, PermissionError) else f"a RAPL counter could not be read: {told}"


def _packages() -> dict[Path, int]:
    """The counter of every CPU package. A platform's own (psys) holds those of its packages."""
    found = {}
    for folder in sorted(ROOT.glob("intel-rapl:*")):
        name = folder / "name"
        if PACKAGE.fullmatch(folder.name) and name.read_text(encoding="utf-8").startswith("package"):
            found[folder / "energy_uj"] = _number(folder / "max_energy_range_uj")
    return found


def _number(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))
