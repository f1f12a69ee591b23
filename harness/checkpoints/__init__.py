"""Saved models: a folder that transformers opens, with the cut that made it. No pickles."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFault

NOT_CONTENT = {"record.json", "README.md"}  # written after the fact; they say something about the artefact


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """One hash of all files that make the model."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in NOT_CONTENT)
    lines = [f"{path.name} {file_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("model*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(words, dict):
            raise EnvironmentFault(f"{path} is not a config", "give a folder of a saved model")
        return words
    except FileNotFoundError:
        raise EnvironmentFault(f"{folder} has no config.json", "give a folder of a saved model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"{path} is not readable JSON: {error}", "restore the file or save again") from None
