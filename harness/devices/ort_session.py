"""Runs an ONNX graph with fixed shapes on the CPU, such that a timed pass contains nothing but the graph."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.api import Workload
from harness.errors import HarnessError, Unsupported
from harness.models.export.onnx_graph import FILE, export, require


def why_unavailable() -> str | None:
    """Why a model cannot be exported and run on this machine, or None if it can."""
    try:
        require("onnx", "onnxscript", "onnxruntime")
    except HarnessError as error:
        return f"{error.cause}: {error.remedy}"
    return None


class Session:
    """An open ONNX graph. Inputs and outputs are bound once, so that a pass allocates and copies nothing."""

    @classmethod
    def from_model(cls, model: Any, workload: Workload, threads: int = 1) -> Session:
        """Export a model to a temporary folder and open it; the folder is deleted before this returns."""
        require("onnx", "onnxscript", "onnxruntime")
        with tempfile.TemporaryDirectory(prefix="harness-onnx-", ignore_cleanup_errors=True) as folder:
            export(model, workload, Path(folder))
            return cls(Path(folder), threads)

    def __init__(self, folder: Path, threads: int = 1) -> None:
        require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # Spinning threads would add to the CPU time while they wait.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            self._session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise Unsupported(f"ONNX Runtime cannot open the graph: {str(error).splitlines()[0]}") from error
        self.inputs = {value.name: _example(value) for value in self._session.get_inputs()}
        self._bind(onnxruntime.OrtValue)

    def _bind(self, values: Any) -> None:
        self._binding = self._session.io_binding()
        self._held = {name: values.ortvalue_from_numpy(array) for name, array in self.inputs.items()}
        for name, value in self._held.items():
            self._binding.bind_ortvalue_input(name, value)
        names = [value.name for value in self._session.get_outputs()]
        for name in names:
            self._binding.bind_output(name)
        self.run()
        # Later passes write to the memory that the first pass allocated.
        self._outputs = dict(zip(names, self._binding.get_outputs(), strict=True))
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """One pass."""
        self._session.run_with_iobinding(self._binding)

    def output(self, name: str) -> Any:
        """This output of the latest pass."""
        return self._outputs[name].numpy()

    def logits(self, feed: Mapping[str, Any] | None = None) -> Any:
        """Logits of a pass. `feed` replaces some of the example inputs."""
        return self._session.run(["logits"], {**self.inputs, **(feed or {})})[0]

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers to which nodes of the graph were assigned."""
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return tuple(self._session.get_providers())
        return tuple(sorted({part.ep_name for part in self._session.get_provider_graph_assignment_info()}))

    def close(self) -> None:
        """Free the weights."""
        self._binding = self._session = None
        self._held = self._outputs = self.inputs = {}


def _example(value: Any) -> Any:
    """An example input: ones for tokens; for keys and values small random numbers, the same every time."""
    import numpy

    if not all(isinstance(size, int) for size in value.shape):
        raise Unsupported(f"input {value.name} of the graph has no fixed shape: {value.shape}")
    if value.type == "tensor(int64)":
        return numpy.ones(value.shape, numpy.int64)
    dtypes = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}
    if value.type not in dtypes:
        raise Unsupported(f"input {value.name} of the graph is {value.type}", "give --dtype fp32")
    return numpy.random.default_rng(0).standard_normal(value.shape, numpy.float32).astype(dtypes[value.type])
