"""The CPU of an Orin: the agent brings an ONNX graph to ONNX Runtime there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.remote.device import Look
from harness.remote.ort import OnnxRuntime
from harness_orin.jetson import ORIN, Jetson


class OrinCpu(OnnxRuntime):
    name = "orin-cpu"
    example = "{transport: ssh, host: orin.local, user: me, threads: 4}"
    genuine = ORIN

    def more_looks(self) -> Iterator[Look]:
        yield from super().more_looks()
        yield "power mode", self._power_mode

    def _power_mode(self) -> str:
        self.found["power_mode"] = Jetson(self.folder, self.target).power_mode()
        return self.found["power_mode"] or "not told"

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "power_mode": self.found["power_mode"]}
