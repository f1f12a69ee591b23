"""What a search knows, in one safetensors file: tensors as they are, everything around them as JSON. No pickles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.system.atomic import replacing


def save(words: dict[str, Any], file: Path) -> None:
    """Under its name at once or not at all."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(words, tensors, set()))
    with replacing(file) as temporary:
        save_file(tensors, temporary, {"words": text})


def saved(file: Path) -> dict[str, Any] | None:
    """What was saved, or None; a damaged file is as good as none."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as found:
            return _unpacked(json.loads(found.metadata()["words"]), found)
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        file.unlink()
        return None


class Judgements:
    """Judgements so far, in order: a search that was killed among them goes on with the stored ones."""

    def __init__(self, file: Path) -> None:
        self.file, self.at = file, 0
        self.said: list[float] = (saved(file) or {"said": []})["said"]

    def __call__(self, judge: Callable[[], float]) -> float:
        if self.at == len(self.said):
            self.said.append(judge())
            save({"said": self.said}, self.file)
        self.at += 1
        return self.said[self.at - 1]


def _packed(value: Any, tensors: dict[str, Tensor], held: set[int]) -> Any:
    """Dictionaries as pairs, since an optimiser's have numbers for names."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        tensors[str(len(tensors))] = plain.clone() if memory in held else plain  # no two may lie in one place
        held.add(memory)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        return {"pairs": [[name, _packed(one, tensors, held)] for name, one in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(one, tensors, held) for one in value]
    return value


def _unpacked(value: Any, found: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(one, found) for one in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return found.get_tensor(value["tensor"])
        return {name: _unpacked(one, found) for name, one in value["pairs"]}
    return value
