"""The device `cpu`: this machine's CPU, in this process, with eager torch or ONNX Runtime.

It measures wall time and process CPU time. One thread is used unless the environment says otherwise: on a shared
machine the CPU time of one thread repeats within a few per cent. Wall time does not, and neither does the CPU time of
several threads, which wait for each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from harness.api import DeviceInfo, Samples, TimingPlan, Workload
from harness.devices.cpu_energy import Meter
from harness.models.workloads import runner, threads
from harness.system.host import cores, counters, cpu_model, pressure, timing_threads

LONG_S = 1.0  # after a pass this long the energy counter is read, so that it cannot wrap around twice unnoticed
CALM = 0.01  # the machine is calm if tasks waited for a smaller share of the last seconds
MAX_PASSES = 10_000  # of one visit, to fill a time


class Cpu:
    def __init__(self, runtime: str = "eager") -> None:
        self.runtime = runtime
        self.copies_weights = runtime == "onnxruntime"
        self.threads = timing_threads()
        self.clock = os.environ.get("HARNESS_CPU_CLOCK", "cpu")

    def probe(self) -> DeviceInfo:
        if not self.threads:
            return DeviceInfo(False, "HARNESS_CPU_THREADS or OMP_NUM_THREADS is not a number of threads")
        if self.clock not in ("cpu", "wall", "auto"):
            return DeviceInfo(False, f"HARNESS_CPU_CLOCK={self.clock} is not cpu, wall or auto")
        isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
        fingerprint = {
            "kind": "cpu",
            "model": cpu_model(),
            "cores": cores(),
            "threads": self.threads,
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
            "isa_limit": isa,
            "torch": version("torch"),
        }
        notes = (f"oneDNN is limited to {isa}: this machine announces AMX but kills what uses it",) if isa else ()
        if self.runtime == "onnxruntime":
            from harness.devices.ort_session import why_unavailable

            reason = why_unavailable()
            if reason is not None:
                return DeviceInfo(False, reason)
            packages = ("onnxruntime", "onnx", "onnxscript", "transformers")  # the last three make the graph
            fingerprint |= {name: version(name) for name in packages}
        return DeviceInfo(True, fingerprint=fingerprint, state=self._state(), clock=self._ranked_clock(), notes=notes)

    def _ranked_clock(self) -> str:
        """The clock that HARNESS_CPU_CLOCK asks for. `auto` is wall time if the machine is calm now, else CPU time."""
        if self.clock != "auto":
            return self.clock
        waiting = pressure()
        return "wall" if waiting is not None and waiting < CALM else "cpu"

    def _state(self) -> dict[str, Any]:
        return counters() | {"cores": cores(), "threads": self.threads}

    def prepare(self, model: Any, workload: Workload) -> Any:
        if self.runtime == "onnxruntime":
            from harness.devices.ort_session import Session

            return Session.from_model(model, workload, self.threads)
        return runner(model, workload)

    def measure(self, handle: Any, plan: TimingPlan) -> Samples:
        run: Callable[[], Any] = getattr(handle, "run", handle)
        wall: list[int] = []
        cpu: list[int] = []
        other_providers = [name for name in getattr(handle, "providers", ()) if name != "CPUExecutionProvider"]
        fallback = {"fallback": other_providers} if self.runtime == "onnxruntime" else {}
        meter = Meter()
        with threads(self.threads):
            before = self._state() | fallback
            # The agent for remote machines has a copy of these two loops: it must be a single file.
            start, warmed = time.perf_counter(), 0
            while warmed < plan.warmup or (plan.warmup and time.perf_counter() - start < plan.seconds):
                run()
                warmed += 1
            meter.start()
            start = time.perf_counter()
            while len(wall) < plan.iterations or (
                time.perf_counter() - start < plan.seconds and len(wall) < MAX_PASSES
            ):
                wall_start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
                run()
                cpu.append(time.process_time_ns() - cpu_start)
                wall.append(time.perf_counter_ns() - wall_start)
                if wall[-1] > LONG_S * 1e9:
                    meter.update()
            joules = meter.stop()
            after = self._state() | fallback
        return Samples(wall, cpu, before=before, after=after, energy_j=joules, energy_note=meter.note)

    def close(self, handle: Any) -> None:
        if hasattr(handle, "close"):
            handle.close()
