"""A made-up machine whose time is FLOPs: for plans, tests and methods without a device at hand."""

from __future__ import annotations

from typing import Any

from harness.accounting import flops
from harness.anatomy import anatomy_of
from harness.api import DeviceInfo, Samples, TimingPlan, Workload

FLOPS_PER_NS = 1000  # one TFLOP/s
CALL_NS = 1000


class Null:
    def probe(self) -> DeviceInfo:
        return DeviceInfo(usable=True, fingerprint={"kind": "null", "flops_per_ns": FLOPS_PER_NS, "call_ns": CALL_NS})

    def prepare(self, model: Any, workload: Workload) -> int:
        from harness.checkpoints.modeling import words_of

        return CALL_NS + flops(anatomy_of(words_of(model)), {}, workload) // FLOPS_PER_NS

    def measure(self, handle: int, plan: TimingPlan) -> Samples:
        return Samples(wall_ns=[handle] * plan.iterations)

    def close(self, handle: int) -> None:
        return None
