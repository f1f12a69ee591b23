"""Writes example inputs for qnn-net-run: a raw file for each, and a file that lists them in the graph's order."""

from __future__ import annotations

from pathlib import Path

LIST = "inputs.txt"


def write(model: Path, folder: Path) -> None:
    """Tokens are ones; keys and values are small random numbers, the same every time."""
    import numpy
    import onnx

    names = []
    for index, value in enumerate(onnx.load(model, load_external_data=False).graph.input):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if numpy.issubdtype(dtype, numpy.integer):
            array = numpy.ones(shape, numpy.int32)  # the NPU has no 64-bit integers
        else:
            array = numpy.random.default_rng(0).standard_normal(shape).astype(dtype)
        names.append(f"input{index}.raw")
        (folder / names[-1]).write_bytes(array.tobytes())
    (folder / LIST).write_text(" ".join(names) + "\n", encoding="utf-8")
