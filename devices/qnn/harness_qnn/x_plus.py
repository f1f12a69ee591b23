"""A laptop with a Snapdragon X Plus: the agent on the laptop compiles models and runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.devices.remote.device import Handle, StepCheck
from harness.devices.remote.ort_device import OnnxRuntime
from harness_qnn import htp


class XPlus(OnnxRuntime):
    name = "qnn-x-plus"
    example = "{transport: ssh, host: laptop.local, user: me, system: windows, python: python}"
    genuine = r"X Plus|X1P"
    dtypes = ("fp16",)
    clocks = ("wall",)
    file_fields = frozenset({"python", "soc"})
    packages = ("onnxruntime", "numpy", htp.PACKAGE)

    @property
    def soc(self) -> str:
        return self.target.soc or htp.X_PLUS

    @property
    def provider(self) -> dict[str, Any]:
        return htp.provider(self.soc, htp_performance_mode="burst")

    def more_steps(self) -> Iterator[StepCheck]:
        yield from super().more_steps()
        yield "NPU", self._npu

    def _npu(self) -> str:
        types = self.agent.request("devices", provider=self.provider)["devices"]
        self.facts["emulated"] = "NPU" not in types
        if "NPU" in types:
            return "an NPU"
        return f"no NPU (QNN offers {', '.join(types) or 'nothing'}): QNN emulates one"

    def identity(self) -> Mapping[str, Any]:
        common = {name: value for name, value in super().identity().items() if name != "threads"}
        return {**common, htp.PACKAGE: self.facts["packages"][htp.PACKAGE], "soc": self.soc}

    def prepare_exported(self, model: Path, dtype: str) -> Handle:
        """Compile the model on the laptop and delete the graph, which is not needed any more."""
        handle = super().prepare_exported(model, dtype)
        try:
            target = f"{handle.model.rpartition('/')[0]}/compiled.onnx"
            reply = htp.compile(self.agent, handle.model, target, self.soc, self.name, self.target.timeout_s)
            self.folder.remove(f"{handle.name}/{model.name}", f"{handle.name}/{model.name}.data")
        except BaseException:
            self.close(handle)
            raise
        handle.model, handle.details = target, htp.details(reply)
        return handle
