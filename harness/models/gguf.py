"""GGUF files become safetensors folders, once: transformers reads GGUF but refuses to save what it read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.anatomy.llama import FAMILIES
from harness.errors import EnvironmentFault
from harness.models.loading import once

ARCHITECTURES = {"llama", "mistral", "qwen2", "qwen3", "gemma"}  # as GGUF spells them


def architecture(path: Path) -> str:
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).get_field("general.architecture")
        return str(field.contents()) if field else ""
    except Exception as error:
        raise EnvironmentFault(f"{path} is not a readable GGUF file: {error}", "fetch it again") from error


def convert(path: Path, name: str, config: Mapping[str, Any] | None = None) -> Path:
    """The cached folder of a GGUF file. `config` replaces the rounded one inside the file."""
    stat = path.stat()
    if config is None:
        where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
        name = f"{name}-{where}-{stat.st_size}-{stat.st_mtime_ns}"
    return once(name, lambda folder: _convert(path, folder, config))


def _convert(path: Path, folder: Path, config: Mapping[str, Any] | None) -> None:
    found = architecture(path)
    if found not in ARCHITECTURES:
        raise EnvironmentFault(
            f"{path.name} holds a model of family {found or '(none)'!r}, which has no anatomy yet",
            f"supported: {', '.join(sorted(FAMILIES))}",
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness import process
    from harness.checkpoints import folders, modeling
    from harness.surgery import dense_state

    process.hush()
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:
        raise EnvironmentFault(f"{path} cannot be read: {error}", "fetch it again, or give safetensors") from error
    words = dict(config or model.config.to_dict())
    words["model_type"] = model.config.model_type
    folders.write(modeling.fill(words, dense_state(model)), tokenizer, folder)
