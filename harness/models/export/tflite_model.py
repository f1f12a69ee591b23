"""Exports a model as a TensorFlow Lite graph of fixed shapes, by litert-torch in a separate environment."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness.api import Workload
from harness.errors import Unsupported
from harness.models.export import isolated_env
from harness.models.export.onnx_graph import check_workload, quiet_export
from harness.system.process import last_line

__all__ = ["NAME", "PACKAGES", "export"]

FILE = "model.tflite"
NAME = "litert-torch"
PACKAGES = (
    "litert-torch==0.10.0",
    "litert-converter==0.5.0",
    "ai-edge-litert==2.3.0",
    "ai-edge-quantizer==0.10.0",
    "torchao==0.18.0",
    "jax==0.10.2",
    "jaxlib==0.10.2",
    "jaxtyping==0.3.11",
    "wadler-lindig==0.1.8",
    "xdsl==0.28.0",
    "ml-dtypes==0.6.0",
    "opt-einsum==3.4.0",
    "scipy==1.17.1",
    "flatbuffers==25.12.19",
    "absl-py==2.5.1",
    "multipledispatch==1.0.0",
    "immutabledict==4.3.1",
    "lark==1.3.1",
    "fire==0.7.1",
    "termcolor==3.3.0",
    "backports.strenum==1.3.1",
    "tabulate==0.10.0",
)
CONVERT = """
import sys, torch, litert_torch
traced = torch.export.load(sys.argv[1])
litert_torch.convert(traced.module(), traced.example_inputs[0]).export(sys.argv[2])
"""


def export(model: Any, workload: Workload, folder: Path) -> Path:
    """Write `model.tflite` into a folder. The model does not change."""
    check_workload(model, workload)
    if workload.kind == "decode":
        raise Unsupported("decode workloads cannot be exported to TensorFlow Lite", "give prefill:BxS")
    python = isolated_env.interpreter(NAME, PACKAGES)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="harness-tflite-") as scratch:
        traced = Path(scratch) / "traced.pt2"
        _trace(model, workload, traced)
        command = [str(python), "-c", CONVERT, str(traced), str(folder / FILE)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / FILE).is_file():
        reason = last_line(done.stderr, "it printed nothing")
        raise Unsupported(f"litert-torch cannot convert this model: {reason[:300]}")
    return folder / FILE


def _trace(model: Any, workload: Workload, path: Path) -> None:
    import torch

    if workload.kind == "image":
        whole, inputs = model, torch.zeros(workload.batch, 3, workload.size, workload.size)
    else:
        whole, inputs = _last(model), torch.ones(workload.batch, workload.size, dtype=torch.long)
    with quiet_export(), torch.no_grad():
        torch.export.save(torch.export.export(whole.eval(), (inputs,)), path)


def _last(model: Any) -> Any:
    """The model as a module from tokens to the logits of the last one."""
    import torch

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Any) -> Any:
            return self.model(tokens, use_cache=False, logits_to_keep=1).logits

    return Last()
