"""The CPU of this machine, in this process: wall time and process CPU time, eager torch or ONNX Runtime.

One thread unless the environment says otherwise: on a machine that others use, the CPU time of one thread repeats
within a few per cent where wall time, and the CPU time of threads that wait for each other, do not.
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
from harness.system.host import cores, counters, cpu_model, pressure, threads_asked

LONG_S = 1.0  # a pass after which the energy counter is looked at, before it can start anew twice
CALM = 0.01  # share of the last seconds in which some task waited
MOST = 10_000  # passes of one visit


class Cpu:
    def __init__(self, runtime: str = "eager") -> None:
        self.runtime = runtime
        self.copies_weights = runtime == "onnxruntime"
        self.threads = threads_asked()
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
        notes = (f"oneDNN is kept to {isa}: this machine announces AMX and ends what uses it",) if isa else ()
        if self.runtime == "onnxruntime":
            from harness.devices.ort_session import installed

            if (reason := installed()) is not None:
                return DeviceInfo(False, reason)
            packages = ("onnxruntime", "onnx", "onnxscript", "transformers")  # the latter three decide the graph
            fingerprint |= {name: version(name) for name in packages}
        return DeviceInfo(True, fingerprint=fingerprint, state=self._state(), clock=self._ranked(), notes=notes)

    def _ranked(self) -> str:
        """CPU time, unless the user asks for wall time or for whichever this moment allows."""
        if self.clock != "auto":
            return self.clock
        waited = pressure()
        return "wall" if waited is not None and waited < CALM else "cpu"

    def _state(self) -> dict[str, Any]:
        return counters() | {"cores": cores(), "threads": self.threads}

    def prepare(self, model: Any, workload: Workload) -> Any:
        if self.runtime == "onnxruntime":
            from harness.devices.ort_session import Session

            return Session.of(model, workload, self.threads)
        return runner(model, workload)

    def measure(self, handle: Any, plan: TimingPlan) -> Samples:
        run: Callable[[], Any] = getattr(handle, "run", handle)
        wall: list[int] = []
        cpu: list[int] = []
        elsewhere = [name for name in getattr(handle, "providers", ()) if name != "CPUExecutionProvider"]
        ran = {"fallback": elsewhere} if self.runtime == "onnxruntime" else {}
        meter = Meter()
        with threads(self.threads):
            before = self._state() | ran
            start, warmed = time.perf_counter(), 0
            while warmed < plan.warmup or (plan.warmup and time.perf_counter() - start < plan.seconds):
                run()
                warmed += 1
            meter.start()
            start = time.perf_counter()
            while len(wall) < plan.iterations or (time.perf_counter() - start < plan.seconds and len(wall) < MOST):
                wall_start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
                run()
                cpu.append(time.process_time_ns() - cpu_start)
                wall.append(time.perf_counter_ns() - wall_start)
                if wall[-1] > LONG_S * 1e9:
                    meter.look()
            joules = meter.stop()
            after = self._state() | ran
        return Samples(wall, cpu, before=before, after=after, energy_j=joules, energy_note=meter.note)

    def close(self, handle: Any) -> None:
        if hasattr(handle, "close"):
            handle.close()
