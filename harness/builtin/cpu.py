"""The CPU of this machine: eager torch in this process, wall time and process CPU time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from harness.api import DeviceInfo, Samples, TimingPlan, Workload
from harness.host import cores, cpu_model
from harness.latency.workloads import runner


class Cpu:
    def probe(self) -> DeviceInfo:
        threads = os.environ.get("OMP_NUM_THREADS", "")
        return DeviceInfo(
            usable=True,
            fingerprint={
                "kind": "cpu",
                "model": cpu_model(),
                "cores": cores(),
                "threads": int(threads) if threads.isdigit() else cores(),
                "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
                "torch": version("torch"),
            },
            state=self._state(),
        )

    def _state(self) -> dict[str, Any]:
        return {"load_1m": round(os.getloadavg()[0], 2)}

    def prepare(self, model: Any, workload: Workload) -> Callable[[], None]:
        return runner(model, workload)

    def measure(self, handle: Callable[[], None], plan: TimingPlan) -> Samples:
        before = self._state()
        for _ in range(plan.warmup):
            handle()
        wall, cpu = [], []
        for _ in range(plan.iterations):
            wall_start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
            handle()
            cpu.append(time.process_time_ns() - cpu_start)
            wall.append(time.perf_counter_ns() - wall_start)
        return Samples(wall, cpu, before, self._state())

    def close(self, handle: Callable[[], None]) -> None:
        return None
