"""Saved models: a folder that transformers opens, with the cut that made it. No pickles."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFault
from harness.models.architectures.lookup import check_config
from harness.system import reading

__all__ = ["file_sha256"]

CONFIG = 4 * 2**20  # bytes of a config.json
NOT_CONTENT = {"record.json", "README.md"}  # written later, about the model


def file_sha256(path: Path) -> str:
    """The hash of a regular file. A device or a pipe is refused: reading it may never end."""
    with reading.parsing(path, "a file that can be read", "restore the file, or remove it"):
        reading.must_be_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """One hash over all files of a saved model."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in NOT_CONTENT)
    lines = [f"{path.name} {file_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def folder_bytes(folder: Path) -> int:
    """The size of the weights on disk."""
    return sum(p.stat().st_size for p in folder.glob("model*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """The values of a folder's config.json, checked before anything is built of them."""
    path, remedy = folder / "config.json", "give a folder of a saved model"
    if not path.exists():
        raise EnvironmentFault(f"{folder} has no config.json", remedy)
    with reading.parsing(path, "a config", "restore the file or save again"):
        values = reading.json_file(path, CONFIG)
    if not isinstance(values, dict):
        raise EnvironmentFault(f"{path} is not a config", remedy)
    check_config(values, str(path))
    return values
