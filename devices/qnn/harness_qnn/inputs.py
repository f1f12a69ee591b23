"""Inputs as qnn-net-run reads them: a raw file each, and a list of them in the graph's order."""

from __future__ import annotations

from pathlib import Path

LIST = "inputs.txt"


def write(model: Path, folder: Path) -> None:
    """Tokens are ones, keys and values small numbers, the same every time."""
    import numpy
    import onnx

    names = []
    for at, value in enumerate(onnx.load(model, load_external_data=False).graph.input):
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if numpy.issubdtype(kind, numpy.integer):
            found = numpy.ones(shape, numpy.int32)  # 64 bits are 32 on the NPU
        else:
            found = numpy.random.default_rng(0).standard_normal(shape).astype(kind)
        names.append(f"input{at}.raw")
        (folder / names[-1]).write_bytes(found.tobytes())
    (folder / LIST).write_text(" ".join(names) + "\n", encoding="utf-8")
