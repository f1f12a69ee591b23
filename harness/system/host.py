"""The machine this runs on: what it is, and counters that tell how busy it was."""

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

OUR_PIDS = "HARNESS_OUR_PIDS"  # processes of this run, which a device must not take for others


def cpu_model() -> str:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        first = ""
    return cpu_named(first) or platform.processor() or platform.machine()


def cpu_named(first: str) -> str:
    """The name in the first paragraph of /proc/cpuinfo. Hypervisors give one to whole families ("AMD EPYC"), so one
    without a number of its own says which generation it is."""
    pairs = (line.partition(":")[::2] for line in first.splitlines())
    told = {name.strip(): value.strip() for name, value in pairs}
    name = told.get("model name", "")
    which = [f"{part} {told[key]}" for part, key in (("family", "cpu family"), ("model", "model")) if key in told]
    return f"{name} ({', '.join(which)})" if name and which and not re.search(r"\d{3}", name) else name


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_asked() -> int:
    """Threads that a model is timed with: one, unless the environment says otherwise; 0 where that is no number."""
    words = os.environ.get("HARNESS_CPU_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1"
    return int(words) if words.isdigit() else 0


def cache_dir() -> Path:
    """The folder of what can be made again. Without a home folder, somebody must name one."""
    folder = Path(os.environ.get("HARNESS_CACHE") or user_cache_dir("harness"))
    if not folder.is_absolute() and not os.environ.get("HARNESS_CACHE"):
        raise EnvironmentFault("this user has no home folder for a cache", "set HARNESS_CACHE to a folder")
    return folder


def notes(name: str) -> dict[str, Any]:
    """What was noted in the cache before; nothing, where that cannot be read or is no object."""
    try:
        known = reading.json_file(cache_dir() / name)
    except (OSError, ValueError, EnvironmentFault):
        return {}
    return known if isinstance(known, dict) else {}


def note(name: str, more: dict[str, Any]) -> None:
    """Note something for the next time; where that cannot be written, it will be found out again."""
    with contextlib.suppress(OSError, ValueError, EnvironmentFault):
        path = cache_dir() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, json.dumps(notes(name) | more).encode())


def free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def total_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def counters() -> dict[str, Any]:
    """Time and what competed for it. What this system does not tell is left out."""
    found: dict[str, Any] = {"time_ns": time.monotonic_ns(), "own_ns": time.process_time_ns()}
    if hasattr(os, "getloadavg"):
        found["load_1m"] = round(os.getloadavg()[0], 2)
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="utf-8").splitlines()[0]
        found["pressure_us"] = int(some.rpartition("total=")[2])
    except (OSError, ValueError, IndexError):
        pass
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
        user, nice, system, _, _, irq, softirq, steal = (int(word) for word in line.split()[1:9])
        tick = 10**9 // os.sysconf("SC_CLK_TCK")
        found |= {"busy_ns": (user + nice + system + irq + softirq) * tick, "steal_ns": steal * tick}
    except (OSError, ValueError):
        pass
    return found


def pressure() -> float | None:
    """Share of the last ten seconds in which some task waited for a core."""
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="utf-8").splitlines()[0]
        return float(some.partition("avg10=")[2].split()[0]) / 100
    except (OSError, ValueError, IndexError):
        return None
