"""Stores what a method's `prepare` returned: tensors and plain values in a flat dict. No pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harness.errors import HarnessError, describe
from harness.system import reading


def write(state: Mapping[str, Any] | None, folder: Path) -> None:
    if state is not None and not isinstance(state, Mapping):
        raise HarnessError(
            f"prepare() returned {type(state).__name__}", "return a flat dict of tensors and plain values, or None"
        )
    values = {}
    tensors = {}
    for name, value in (state or {}).items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().contiguous()
        else:
            values[name] = value
    try:
        text = json.dumps({"none": state is None, "values": values}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        cause = f"prepare() returned something that cannot be stored: {describe(error, most=300)}"
        raise HarnessError(cause, "use tensors and plain, finite values") from error
    (folder / "state.json").write_text(text, encoding="utf-8")
    if tensors:
        save_file(tensors, folder / "state.safetensors")


def read(folder: Path) -> dict[str, Any] | None:
    path, remedy = folder / "state.json", f"remove {folder}; it will be computed again"
    with reading.parsing(path, "a state that prepare() returned", remedy):
        saved = reading.json_file(path)
        if saved["none"]:
            return None
        values = dict(saved["values"])
    tensors = folder / "state.safetensors"
    if not os.path.lexists(tensors):
        return values
    with reading.parsing(tensors, "a file of tensors", remedy):
        reading.must_be_regular(tensors)
        return values | load_file(tensors)
