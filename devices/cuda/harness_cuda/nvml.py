"""Reads clocks, power, energy and processes of one GPU from NVML. No clock, limit or mode is ever changed.

A GPU, a driver, a container or a MIG slice may refuse any single query. What is refused is left out.
"""

from __future__ import annotations

import os
import time
from typing import Any

from harness.system.host import OUR_PIDS

# Bits of NVML's binary interface, which renamed them from "throttle reasons" to "event reasons". Idleness, application
# clocks and display clocks are no faults and are left out.
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
MIN_WINDOW_S = 0.1  # the energy counter is updated every 20 to 100 ms


class Meter:
    """Readings of one GPU. Without a `pci` address or a `uuid` the only reading is the time."""

    def __init__(self, pci: str = "", uuid: str = "") -> None:
        self.nvml: Any = None
        self.gpu: Any = None
        self.note = ""
        if pci or uuid:
            try:
                self._open(pci, uuid)
            except Exception as error:  # no package, no library, no driver, no such GPU
                self.note = f"NVML cannot be read, so clocks, power and energy are missing: {error}"
        mode = self._query("nvmlDeviceGetMigMode")
        self.is_slice = uuid.startswith("MIG-") or bool(mode and mode[0] == MIG_ON)
        if self.is_slice:
            self.note = "MIG is on: readings are of the whole GPU; energy and other processes are not reported"

    def _open(self, pci: str, uuid: str) -> None:
        import pynvml

        pynvml.nvmlInit()
        # Device numbers differ: torch's follow CUDA_VISIBLE_DEVICES, NVML's do not. Addresses are the same for both.
        # Some drivers accept only one of the two names of a GPU.
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

    def _query(self, call: str, *arguments: Any) -> Any:
        if self.gpu is None:
            return None
        try:
            return getattr(self.nvml, call)(self.gpu, *arguments)
        except Exception:  # not supported, not permitted, not in this driver, not in this version of the package
            return None

    def readings(self, working: bool) -> dict[str, Any]:
        """The present state of the GPU. `working` says that this process is using the GPU."""
        power = self._query("nvmlDeviceGetPowerUsage")
        readings = {
            "time_ns": time.monotonic_ns(),
            "sm_mhz": self._query("nvmlDeviceGetClockInfo", SM),
            "memory_mhz": self._query("nvmlDeviceGetClockInfo", MEMORY),
            "temperature_c": self._query("nvmlDeviceGetTemperature", GPU_DIE),
            "power_w": None if power is None else power / 1000,
            "throttle": self._throttle(),
            "other_processes": self._other_processes(working),
            "energy_mj": self.energy_mj(),
        }
        return {name: value for name, value in readings.items() if value is not None}

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded; None under MIG, where they would include other slices."""
        return None if self.is_slice else self._query("nvmlDeviceGetTotalEnergyConsumption")

    def energy_note(self, was_read: bool) -> str:
        """What the joules include or, if none were read, why not."""
        if was_read:
            return "whole GPU by NVML's counter, others on it included"
        if self.gpu is None or self.is_slice:
            return self.note
        if self.energy_mj() is None:
            return "this GPU and its driver do not report energy"
        return (
            f"the GPU's energy counter is too coarse for visits under {2 * MIN_WINDOW_S:g} s: "
            "time longer (--preset paper)"
        )

    def _throttle(self) -> list[str] | None:
        bits = self._query("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 have the old name only
            bits = self._query("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else [name for name, bit in THROTTLE.items() if bits & bit]

    def _other_processes(self, working: bool) -> int | None:
        """Number of compute processes that do not belong to this run.

        In a container NVML may list process ids of the host, or no process at all. If this process uses the GPU and is
        not in the list, the list says nothing about other processes either.
        """
        listed = None if self.is_slice else self._query("nvmlDeviceGetComputeRunningProcesses")
        pids = None if listed is None else [process.pid for process in listed]
        if pids is None or (working and os.getpid() not in pids):
            return None
        run = {os.getpid(), os.getppid(), *map(int, filter(str.isdigit, os.environ.get(OUR_PIDS, "").split(",")))}
        return len([pid for pid in pids if pid not in run])

    def limits(self) -> dict[str, Any]:
        """What limits the speed of this GPU; it is a part of the fingerprint."""
        power = self._query("nvmlDeviceGetPowerManagementLimit")
        return {
            "driver": self._driver(),
            "power_limit_w": None if power is None else power / 1000,
            "max_sm_mhz": self._query("nvmlDeviceGetMaxClockInfo", SM),
            "application_sm_mhz": self._query("nvmlDeviceGetApplicationsClock", SM),
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
    """Energy between two readings, or None if the time between them is too short for the counter."""
    if start_mj is None or end_mj is None or seconds < MIN_WINDOW_S or end_mj <= start_mj:
        return None
    return (end_mj - start_mj) / 1000
