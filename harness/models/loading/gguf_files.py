"""Converts GGUF files to folders of safetensors, once: transformers reads GGUF but refuses to save such a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFault, one_line
from harness.models.architectures.lookup import architecture_for, check_config, model_types
from harness.models.loading.cache import once
from harness.models.loading.gguf_header import Header
from harness.system import reading

ARCHITECTURES = {"llama", "mistral", "qwen2", "qwen3", "gemma"}  # as GGUF spells them
AGAIN = "fetch it again, or give safetensors"


def convert(path: Path, name: str, config: Mapping[str, Any] | None = None) -> Path:
    """The cached folder of a GGUF file. `config` replaces the rounded one inside the file."""
    with reading.parsing(path, "a readable GGUF file", AGAIN):
        reading.must_be_regular(path)
    stat = path.stat()
    if config is None:
        where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name)[:40].strip("-") or "model"
        name = f"{plain}-{where}-{stat.st_size}-{stat.st_mtime_ns}"
    return once(name, lambda folder: _convert(path, folder, config))


def _convert(path: Path, folder: Path, config: Mapping[str, Any] | None) -> None:
    with reading.parsing(path, "a readable GGUF file", AGAIN):
        header = Header(path)
    family = one_line(header.family, 60) or "(none)"
    if family not in ARCHITECTURES:
        raise EnvironmentFault(
            f"{path.name} holds a model of family {family!r}, which has no anatomy yet",
            f"supported: {', '.join(model_types())}",
        )
    check_config(header.config(), str(path))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.models.saved import folders
    from harness.models.surgery import dense_state
    from harness.system import process

    process.disable_library_progress_bars()
    with reading.parsing(path, "a GGUF file that transformers reads", AGAIN):
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        fields = dict(config or model.config.to_dict())
        fields["model_type"] = model.config.model_type
        folders.write(architecture_for(model).build(fields, dense_state(model)), tokenizer, folder)
