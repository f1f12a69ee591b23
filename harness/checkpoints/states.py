"""What `prepare` returned, on disk: tensors and plain values in a flat dict. No pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harness.errors import HarnessError


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
        text = json.dumps({"none": state is None, "values": values}, sort_keys=True)
    except TypeError as error:
        raise HarnessError(f"prepare() returned something that cannot be stored: {error}", "use tensors") from error
    (folder / "state.json").write_text(text, encoding="utf-8")
    if tensors:
        save_file(tensors, folder / "state.safetensors")


def read(folder: Path) -> dict[str, Any] | None:
    words = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if words["none"]:
        return None
    tensors = folder / "state.safetensors"
    return {**words["values"], **(load_file(tensors) if tensors.exists() else {})}
