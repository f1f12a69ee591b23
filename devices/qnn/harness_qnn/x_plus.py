"""A laptop with a Snapdragon X Plus: the agent compiles there and runs what it compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.devices.remote.device import Handle, Look
from harness.devices.remote.ort_device import OnnxRuntime
from harness_qnn import htp


class XPlus(OnnxRuntime):
    name = "qnn-x-plus"
    example = "{transport: ssh, host: laptop.local, user: me, system: windows, python: python}"
    genuine = r"X Plus|X1P"
    dtypes = ("fp16",)
    clocks = ("wall",)
    words = frozenset({"python", "soc"})
    packages = ("onnxruntime", "numpy", htp.PACKAGE)

    @property
    def soc(self) -> str:
        return self.target.soc or htp.X_PLUS

    @property
    def provider(self) -> dict[str, Any]:
        return htp.provider(self.soc, htp_performance_mode="burst")

    def more_looks(self) -> Iterator[Look]:
        yield from super().more_looks()
        yield "NPU", self._npu

    def _npu(self) -> str:
        kinds = self.agent.ask("devices", provider=self.provider)["devices"]
        self.found["emulated"] = "NPU" not in kinds
        return "an NPU" if "NPU" in kinds else f"no NPU but {', '.join(kinds) or 'nothing'}: QNN emulates one"

    def identity(self) -> Mapping[str, Any]:
        known = {name: value for name, value in super().identity().items() if name != "threads"}
        return {**known, htp.PACKAGE: self.found["packages"][htp.PACKAGE], "soc": self.soc}

    def ready(self, model: Path, dtype: str) -> Handle:
        handle = super().ready(model, dtype)
        try:
            target = f"{handle.model.rpartition('/')[0]}/compiled.onnx"
            found = htp.compile(self.agent, handle.model, target, self.soc, self.name, self.target.timeout_s)
            self.folder.remove(f"{handle.name}/{model.name}", f"{handle.name}/{model.name}.data")
        except BaseException:
            self.close(handle)
            raise
        handle.model, handle.told = target, htp.details(found)
        return handle
