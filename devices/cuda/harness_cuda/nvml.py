"""What NVML says about one GPU. It is only ever asked, never told: no clock, limit or mode is changed.

A GPU, a driver, a container or a MIG slice may refuse any single question. What is refused is left out.
"""

from __future__ import annotations

import os
import time
from typing import Any

from harness.system.host import OUR_PIDS

# The bits are part of NVML's binary interface; their names moved from "throttle" to "event" reasons. Idle GPUs,
# application clocks and display clocks are choices, not faults, and are not told.
THROTTLE = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
SM, MEMORY = 1, 2  # nvmlClockType_t
GPU_DIE = 0  # nvmlTemperatureSensors_t
MIG_ON = 1
SHORTEST_S = 0.1  # the energy counter moves every 20 to 100 ms


class Meter:
    """One GPU's readings; without a `pci` address or a `uuid` only the time."""

    def __init__(self, pci: str = "", uuid: str = "") -> None:
        self.nvml: Any = None
        self.gpu: Any = None
        self.note = ""
        if pci or uuid:
            try:
                self._open(pci, uuid)
            except Exception as error:  # no package, no library, no driver, no such GPU
                self.note = f"NVML cannot be read, so clocks, power and energy are missing: {error}"
        mode = self._ask("nvmlDeviceGetMigMode")
        self.sliced = uuid.startswith("MIG-") or bool(mode and mode[0] == MIG_ON)
        if self.sliced:
            self.note = "MIG is on: readings are of the whole GPU; energy and other processes are not told"

    def _open(self, pci: str, uuid: str) -> None:
        import pynvml

        pynvml.nvmlInit()
        # torch's numbers follow CUDA_VISIBLE_DEVICES and NVML's do not; addresses are the same for both.
        # A driver may know a GPU by one of its names only.
        names = [("nvmlDeviceGetHandleByPciBusId", pci)] if pci else []
        if uuid:
            names.append(("nvmlDeviceGetHandleByUUID", uuid if uuid[:4] in ("GPU-", "MIG-") else f"GPU-{uuid}"))
        for call, name in names:
            try:
                self.gpu = getattr(pynvml, call)(name)
                break
            except pynvml.NVMLError:
                if (call, name) == names[-1]:
                    raise
        self.nvml = pynvml

    def _ask(self, call: str, *arguments: Any) -> Any:
        if self.gpu is None:
            return None
        try:
            return getattr(self.nvml, call)(self.gpu, *arguments)
        except Exception:  # not supported, not permitted, not in this driver, not in this version of the package
            return None

    def readings(self, ours: bool) -> dict[str, Any]:
        """The present state; `ours` where this process is known to work on the GPU."""
        power = self._ask("nvmlDeviceGetPowerUsage")
        found = {
            "time_ns": time.monotonic_ns(),
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", MEMORY),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", GPU_DIE),
            "power_w": None if power is None else power / 1000,
            "throttle": self._throttle(),
            "other_processes": self._others(ours),
            "energy_mj": self.energy_mj(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded. Of a slice's neighbours too, hence nothing under MIG."""
        return None if self.sliced else self._ask("nvmlDeviceGetTotalEnergyConsumption")

    def energy_note(self, read: bool) -> str:
        """What joules are of, or why there are none."""
        if read:
            return "whole GPU by NVML's counter, others on it included"
        if self.gpu is None or self.sliced:
            return self.note
        if self.energy_mj() is None:
            return "this GPU and its driver do not tell their energy"
        return (
            f"the GPU's energy counter tells nothing of visits under {2 * SHORTEST_S:g} s: time longer (--preset paper)"
        )

    def _throttle(self) -> list[str] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 have the old name only
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else [name for name, bit in THROTTLE.items() if bits & bit]

    def _others(self, ours: bool) -> int | None:
        """Compute processes beside this one and those of its run.

        In a container NVML may give the numbers of the host, or no process at all. Where we work on the GPU and are
        not named, nothing is known of the others either.
        """
        listed = None if self.sliced else self._ask("nvmlDeviceGetComputeRunningProcesses")
        pids = None if listed is None else [process.pid for process in listed]
        if pids is None or (ours and os.getpid() not in pids):
            return None
        run = {os.getpid(), os.getppid(), *map(int, filter(str.isdigit, os.environ.get(OUR_PIDS, "").split(",")))}
        return len([pid for pid in pids if pid not in run])

    def limits(self) -> dict[str, Any]:
        """What bounds this GPU's speed; part of what makes two measurements comparable."""
        power = self._ask("nvmlDeviceGetPowerManagementLimit")
        return {
            "driver": self._driver(),
            "power_limit_w": None if power is None else power / 1000,
            "max_sm_mhz": self._ask("nvmlDeviceGetMaxClockInfo", SM),
            "application_sm_mhz": self._ask("nvmlDeviceGetApplicationsClock", SM),
        }

    def _driver(self) -> str | None:
        if self.nvml is None:
            return None
        try:
            version = self.nvml.nvmlSystemGetDriverVersion()
        except Exception:
            return None
        return version.decode() if isinstance(version, bytes) else str(version)  # bytes before version 11.5


def joules(start_mj: int | None, end_mj: int | None, seconds: float) -> float | None:
    """Energy between two readings, unless the window is too short for the counter to have moved often."""
    if start_mj is None or end_mj is None or seconds < SHORTEST_S or end_mj <= start_mj:
        return None
    return (end_mj - start_mj) / 1000
