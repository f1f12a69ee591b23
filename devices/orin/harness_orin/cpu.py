"""The CPU of an Orin: the agent brings an ONNX graph to ONNX Runtime there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from harness.api import Workload
from harness.devices.remote.device import Handle, Look
from harness.devices.remote.ort_device import OnnxRuntime
from harness_orin.jetson import ORIN, POWER, Jetson


class OrinCpu(OnnxRuntime):
    name = "orin-cpu"
    example = "{transport: ssh, host: orin.local, user: me, threads: 4}"
    genuine = ORIN
    words = frozenset({"python", "threads", "power_mode"})

    def more_looks(self) -> Iterator[Look]:
        yield from super().more_looks()
        yield "power mode", self._power_mode

    @cached_property
    def jetson(self) -> Jetson:
        return Jetson(self.folder, self.target)

    def _power_mode(self) -> str:
        self.found |= self.jetson.power()
        return self.jetson.words(self.found)

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), **{name: self.found[name] for name in POWER}}

    def prepare(self, model: Any, workload: Workload) -> Handle:
        self.jetson.power()  # it may have been changed since it was planned
        return super().prepare(model, workload)
