"""The CPU of this machine: eager torch in this process, wall time and process CPU time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.api import DeviceInfo, Samples, TimingPlan, Workload
from harness.errors import Unsupported


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        import torch
        from transformers import DynamicCache

        tokens = torch.ones(workload.batch, workload.size, dtype=torch.long)

        def prefill() -> None:
            with torch.inference_mode():
                model(tokens, use_cache=True, logits_to_keep=1)

        if workload.kind == "prefill":
            return prefill
        if workload.kind != "decode":
            raise Unsupported(f"the cpu device has no {workload.kind} workload yet", "give prefill:BxS or decode:BxC")
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
            raise Unsupported("a sliding cache cannot step back one token to be timed again", "give prefill:BxS")

        def decode() -> None:
            with torch.inference_mode():
                model(tokens[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache.crop(-1)

        return decode

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
