"""A graph of fixed shapes in ONNX Runtime, on the CPU: what is timed is one pass and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.api import Workload
from harness.errors import HarnessError, Unsupported
from harness.models.export.onnx_graph import FILE, export, require


def installed() -> str | None:
    """Why a model cannot be exported and run here, or None."""
    try:
        require("onnx", "onnxscript", "onnxruntime")
    except HarnessError as error:
        return f"{error.cause}: {error.remedy}"
    return None


class Session:
    """An exported folder, opened. Inputs and outputs are bound once, so that a pass allocates and copies nothing."""

    @classmethod
    def of(cls, model: Any, workload: Workload, threads: int = 1) -> Session:
        """A model, exported to a folder of its own that is gone once the session has it open."""
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
        # a waiting thread that spins is counted as CPU time
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            self._session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
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
        # where the first pass wrote, all others write
        self._outputs = dict(zip(names, self._binding.get_outputs(), strict=True))
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """One pass."""
        self._session.run_with_iobinding(self._binding)

    def last(self, output: str) -> Any:
        """What the latest pass wrote."""
        return self._outputs[output].numpy()

    def logits(self, feed: Mapping[str, Any] | None = None) -> Any:
        """Logits of a pass, with some of the inputs given."""
        return self._session.run(["logits"], {**self.inputs, **(feed or {})})[0]

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers that nodes of the graph were really given to."""
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return tuple(self._session.get_providers())
        return tuple(sorted({part.ep_name for part in self._session.get_provider_graph_assignment_info()}))

    def close(self) -> None:
        """Give the weights back."""
        self._binding = self._session = None
        self._held = self._outputs = self.inputs = {}


def _example(value: Any) -> Any:
    """Tokens are ones, keys and values small numbers, the same every time."""
    import numpy

    if not all(isinstance(size, int) for size in value.shape):
        raise Unsupported(f"input {value.name} of the graph has no fixed shape: {value.shape}")
    if value.type == "tensor(int64)":
        return numpy.ones(value.shape, numpy.int64)
    kinds = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}
    if value.type not in kinds:
        raise Unsupported(f"input {value.name} of the graph is {value.type}", "give --dtype fp32")
    return numpy.random.default_rng(0).standard_normal(value.shape, numpy.float32).astype(kinds[value.type])
