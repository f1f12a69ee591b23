"""Stores the state of a search in one safetensors file: tensors as tensors, everything else as JSON. No pickles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.system.atomic import replacing


def save(state: dict[str, Any], file: Path) -> None:
    """Write the file atomically. Dictionaries, lists, tensors and plain values may be nested."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(state, tensors, set()))
    with replacing(file) as scratch:
        save_file(tensors, scratch, {"words": text})


def load(file: Path) -> dict[str, Any] | None:
    """The stored state, or None if there is no file. A damaged file is deleted and counts as none."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as stored:
            return _decode(json.loads(stored.metadata()["words"]), stored)
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        file.unlink()
        return None


class StoredLosses:
    """Held-out losses in the order of their computation. A search that was killed reuses the stored ones."""

    def __init__(self, file: Path) -> None:
        self.file, self.position = file, 0
        self.losses: list[float] = (load(file) or {"said": []})["said"]

    def __call__(self, compute: Callable[[], float]) -> float:
        """The next stored loss, or a new one, which is stored."""
        if self.position == len(self.losses):
            self.losses.append(compute())
            save({"said": self.losses}, self.file)
        self.position += 1
        return self.losses[self.position - 1]


def _encode(value: Any, tensors: dict[str, Tensor], storages: set[int]) -> Any:
    """The value as JSON, with tensors moved to `tensors`.

    Dictionaries become lists of pairs, because those of an optimiser have integer keys.
    """
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        tensors[str(len(tensors))] = plain.clone() if memory in storages else plain  # safetensors shares no memory
        storages.add(memory)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        return {"pairs": [[name, _encode(item, tensors, storages)] for name, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(item, tensors, storages) for item in value]
    return value


def _decode(value: Any, stored: Any) -> Any:
    """The inverse of `_encode`; tensors come from the opened file `stored`."""
    if isinstance(value, list):
        return [_decode(item, stored) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return stored.get_tensor(value["tensor"])
        return {name: _decode(item, stored) for name, item in value["pairs"]}
    return value
