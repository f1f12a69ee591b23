"""Exports a model as an ONNX graph of fixed shapes: one prompt (`prefill`), one token at a context (`decode`), `image`.

transformers' exporter traces and translates. Of onnxscript's optimiser only constant folding runs: its rewrite rules
take longer than the rest of an export, and ONNX Runtime does the same itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.api import Workload
from harness.errors import EnvironmentFault, Unsupported

FILE = "model.onnx"
OPSET = 20  # torch's default today, fixed so that a newer torch writes the same graph; runtimes on phones read it


@dataclass(frozen=True)
class Exported:
    """One graph on disk, its weights beside it in `model.onnx.data`."""

    path: Path
    workload: Workload
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    description: str


def export(model: Any, workload: Workload, folder: Path) -> Exported:
    """Write `model.onnx` into a folder. The model does not change; its weights are streamed, not copied.

    Graph of `prefill:BxS`: input_ids -> logits of the last position, keys and values.
    Graph of `decode:BxC`: input_ids of one token, past keys and values of C -> logits, those of C + 1.
    A layer without attention has neither.
    Graph of `image:BxP`: pixels -> what the model returns.
    """
    require("onnx", "onnxscript")
    check_workload(model, workload)
    with quiet_export():
        return _write(model, workload, folder)


def _write(model: Any, workload: Workload, folder: Path) -> Exported:
    import onnx_ir

    graph = _network(model, workload) if workload.kind == "image" else _graph(model, _inputs(model, workload))
    folder.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(graph, folder / FILE, external_data=f"{FILE}.data")
    inputs, outputs = _shapes(graph.graph.inputs), _shapes(graph.graph.outputs)
    return Exported(folder / FILE, workload, inputs, outputs, _description(workload, inputs, outputs))


def check_workload(model: Any, workload: Workload) -> None:
    """Refuse a workload that this model has no inputs for."""
    kinds = ("prefill", "decode") if hasattr(model, "generate") else ("image",)
    if workload.kind not in kinds:
        shapes = {"prefill": "prefill:BxS", "decode": "decode:BxC", "image": "image:BxP"}
        raise Unsupported(
            f"this model has no {workload.kind} workload",
            f"give {' or '.join(shapes[kind] for kind in kinds)}",
        )


def require(*packages: str) -> None:
    """Refuse to export without the packages of `prune-harness[onnx]` and an exporter in transformers."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise EnvironmentFault(f"{', '.join(missing)} not installed", "pip install 'prune-harness[onnx]'")
    if importlib.util.find_spec("transformers.exporters") is None:
        raise Unsupported(f"transformers {version('transformers')} has no ONNX exporter", "pip install -U transformers")


def _inputs(model: Any, workload: Workload) -> dict[str, Any]:
    import torch

    length = workload.size if workload.kind == "prefill" else 1
    tokens = torch.ones(workload.batch, length, dtype=torch.long, device=model.device)
    past = {"past_key_values": _past(model, workload)} if workload.kind == "decode" else {}
    return {"input_ids": tokens, **past, "use_cache": True, "logits_to_keep": 1}


def _past(model: Any, workload: Workload) -> Any:
    """A cache of the workload's context. A pass of one token shows the shapes of keys and values in each layer."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        token = torch.ones(workload.batch, 1, dtype=torch.long, device=model.device)
        model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = cache.layers
    for i, layer in enumerate(layers):
        if not isinstance(layer, DynamicLayer):
            continue  # no attention
        # a plain layer holds keys and values only, and so does a sliding one before its window is full
        layers[i] = DynamicLayer()
        if layer.keys is None:
            continue  # no layer at all has attention
        window = getattr(layer, "sliding_window", None)
        if window is not None and window <= workload.size:
            raise Unsupported(
                f"a cache that slides over {window} tokens does not hold a context of {workload.size}",
                f"give decode:{workload.batch}xC with C below {window}, or prefill:BxS",
            )
        tensors: list[Any] = [layer.keys, layer.values]
        layers[i].update(*(t.new_zeros(*t.shape[:2], workload.size, t.shape[3]) for t in tensors))
    return cache


def _graph(model: Any, inputs: dict[str, Any]) -> Any:
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants_ir
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    try:
        exporter = OnnxExporter()
    except ImportError as error:
        raise EnvironmentFault(str(error), "pip install -U 'prune-harness[onnx]'") from error
    try:
        exported: Any = exporter.export(model, inputs, OnnxConfig(optimize=False, opset_version=OPSET))
    finally:
        vars(model).pop("forward", None)  # the exporter leaves a bound method on the model, a reference to itself
    graph = exported.program if hasattr(exported, "program") else exported.model  # an ONNXProgram in older versions
    # the window of a sliding layer is not an output
    results = [value for value in graph.graph.outputs if not value.name.endswith("_sliding_window_tensor")]
    graph.graph.outputs[:] = results
    passes.InlinePass()(graph)
    fold_constants_ir(graph)
    for clean in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        clean(graph)
    _make_contiguous(graph.graph.initializers.values())
    return graph


def _network(model: Any, workload: Workload) -> Any:
    import torch

    weight = next(model.parameters())
    pixels = torch.zeros(workload.batch, 3, workload.size, workload.size, dtype=weight.dtype, device=weight.device)
    exported: Any = torch.onnx.export(model, (pixels,), input_names=["pixels"], opset_version=OPSET, dynamo=True)
    return exported.model


def _make_contiguous(weights: Any) -> None:
    """Write folded weights contiguously: they are transposed views, which numpy writes one number at a time."""
    import numpy
    import onnx_ir

    def contiguous(tensor: Any) -> Any:
        return onnx_ir.LazyTensor(
            lambda: onnx_ir.Tensor(numpy.ascontiguousarray(tensor.numpy())), dtype=tensor.dtype, shape=tensor.shape
        )

    for weight in weights:
        if isinstance(weight.const_value, onnx_ir.Tensor) and not weight.const_value.numpy().flags.c_contiguous:
            weight.const_value = contiguous(weight.const_value)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Print nothing, since standard output may carry a record, and collect garbage once, not hundreds of times."""
    level, collects = logging.root.manager.disable, gc.isenabled()
    logging.disable(logging.WARNING)
    gc.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if collects:
            gc.enable()
        gc.collect()  # the traced graph refers to itself and would hold the weights


def _shapes(values: Any) -> dict[str, tuple[int, ...]]:
    return {value.name: tuple(int(size) for size in value.shape) for value in values}


def _description(workload: Workload, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> str:
    if workload.kind == "image":
        return f"ONNX opset {OPSET}, {workload}: {', '.join(outputs)}"
    past, present = (sum(name.endswith(".keys") for name in names) for names in (inputs, outputs))
    cache = f"{past} layers in, of {present} out" if workload.kind == "decode" else f"{present} layers out"
    return f"ONNX opset {OPSET}, {workload}: logits of the last position, keys and values of {cache}"
