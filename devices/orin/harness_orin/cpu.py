"""The CPU of an Orin, timed by the agent with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from harness.api import Workload
from harness.devices.remote.device import Handle, StepCheck
from harness.devices.remote.ort_device import OnnxRuntime
from harness_orin.jetson import ORIN, POWER, Jetson


class OrinCpu(OnnxRuntime):
    name = "orin-cpu"
    example = "{transport: ssh, host: orin.local, user: me, threads: 4}"
    genuine = ORIN
    file_fields = frozenset({"python", "threads", "power_mode"})

    def more_steps(self) -> Iterator[StepCheck]:
        yield from super().more_steps()
        yield "power mode", self._power_mode

    @cached_property
    def jetson(self) -> Jetson:
        return Jetson(self.folder, self.target)

    def _power_mode(self) -> str:
        self.facts |= self.jetson.power()
        return self.jetson.describe(self.facts)

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), **{name: self.facts[name] for name in POWER}}

    def prepare(self, model: Any, workload: Workload) -> Handle:
        self.jetson.power()  # again, because it may have been changed since the run was planned
        return super().prepare(model, workload)
