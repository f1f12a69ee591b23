"""The machine that this process runs on: its hardware, its cache folder, and counters of how busy it is."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from harness.errors import EnvironmentFault
from harness.system import atomic, reading

__all__ = ["OUR_PIDS"]

OUR_PIDS = "HARNESS_OUR_PIDS"  # variable with this run's process ids, which gates must not count as foreign


def cpu_model() -> str:
    """The name of the CPU."""
    try:
        first_cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        first_cpu = ""
    return cpu_named(first_cpu) or platform.processor() or platform.machine()


def cpu_named(text: str) -> str:
    """The name of a CPU from its paragraph of /proc/cpuinfo; empty if it has none.

    Hypervisors give whole families one name ("AMD EPYC"). A name without a model number gets family and model appended.
    """
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, value in pairs}
    name = fields.get("model name", "")
    labels = {"cpu family": "family", "model": "model"}
    details = [f"{label} {fields[key]}" for key, label in labels.items() if key in fields]
    if not name or not details or re.search(r"\d{3}", name):
        return name
    return f"{name} ({', '.join(details)})"


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timing_threads() -> int:
    """How many threads models are timed with: 1, unless the environment sets it; 0 if that is not a number."""
    text = os.environ.get("HARNESS_CPU_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1"
    return int(text) if text.isdigit() else 0


def cache_dir() -> Path:
    """The folder for files that can be made again. A user without a home folder must set HARNESS_CACHE."""
    folder = Path(os.environ.get("HARNESS_CACHE") or user_cache_dir("harness"))
    if not folder.is_absolute() and not os.environ.get("HARNESS_CACHE"):
        raise EnvironmentFault("this user has no home folder for a cache", "set HARNESS_CACHE to a folder")
    return folder


def read_cache_notes(name: str) -> dict[str, Any]:
    """The content of a JSON file in the cache; empty if it cannot be read or is not an object."""
    try:
        content = reading.json_file(cache_dir() / name)
    except (OSError, ValueError, EnvironmentFault):
        return {}
    return content if isinstance(content, dict) else {}


def add_cache_notes(name: str, more: dict[str, Any]) -> None:
    """Add entries to a JSON file in the cache. If it cannot be written, they will be determined again."""
    with contextlib.suppress(OSError, ValueError, EnvironmentFault):
        path = cache_dir() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, json.dumps(read_cache_notes(name) | more).encode())


def free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def total_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def counters() -> dict[str, Any]:
    """The time, and how busy the cores have been. Counters that this system does not have are left out."""
    values: dict[str, Any] = {"time_ns": time.monotonic_ns(), "own_ns": time.process_time_ns()}
    if hasattr(os, "getloadavg"):
        values["load_1m"] = round(os.getloadavg()[0], 2)
    try:
        first_line = Path("/proc/pressure/cpu").read_text(encoding="utf-8").splitlines()[0]
        values["pressure_us"] = int(first_line.rpartition("total=")[2])
    except (OSError, ValueError, IndexError):
        pass
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
        user, nice, system, _, _, irq, softirq, steal = (int(field) for field in line.split()[1:9])
        tick = 10**9 // os.sysconf("SC_CLK_TCK")
        values |= {"busy_ns": (user + nice + system + irq + softirq) * tick, "steal_ns": steal * tick}
    except (OSError, ValueError):
        pass
    return values


def pressure() -> float | None:
    """The share of the last ten seconds in which a task waited for a core; None if this system does not say."""
    try:
        first_line = Path("/proc/pressure/cpu").read_text(encoding="utf-8").splitlines()[0]
        return float(first_line.partition("avg10=")[2].split()[0]) / 100
    except (OSError, ValueError, IndexError):
        return None
