"""Turns the value of --model into a model card: a registered alias, a folder, a GGUF file or a hub id."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from harness import plugins
from harness.api import ModelCard
from harness.errors import EnvironmentFault, Unsupported, UsageError, one_line
from harness.models.saved.contents import read_config

LOADING = "harness.models.loading.weights:"


def card(name: str) -> ModelCard:
    """The card that a user's name stands for."""
    registered = plugins.registry().specs["model"]
    if name in registered:
        return registered[name]
    if name.startswith("timm/"):
        raise Unsupported("vision models have no anatomy yet", "give a decoder: harness list models")
    if not name.isprintable():
        raise UsageError(f"the model {one_line(name, 200)!r} has a name that cannot be printed", "rename it")
    path = Path(os.path.expanduser(name))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        cause = f"the model {one_line(name, 200)} cannot be read: {error.strerror}"
        raise EnvironmentFault(cause, "give a folder with config.json and safetensors") from None
    if stat.S_ISDIR(mode):
        return _folder(path)
    if mode and path.suffix == ".gguf":
        return _gguf(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")):
        return _hub(name)
    if "/" in name or name.endswith(".gguf"):
        raise EnvironmentFault(f"there is no model at {name}", "give a folder with config.json and safetensors")
    raise plugins.unknown_name("model", name, registered)


def _folder(path: Path) -> ModelCard:
    files = sorted(path.glob("*.gguf"))
    if not (path / "config.json").exists() and len(files) == 1:
        return _gguf(files[0])
    config = read_config(path)
    return ModelCard(
        name=str(path), summary="a folder", config=config, source=str(path.resolve()), loader=LOADING + "from_folder"
    )


def _gguf(path: Path) -> ModelCard:
    """The card of a GGUF file, which is converted now unless the cache holds it."""
    from harness.models.loading.gguf_files import convert

    folder = convert(path, path.stem)
    return ModelCard(
        name=str(path),
        summary="a GGUF file",
        config=read_config(folder),
        source=str(folder),
        loader=LOADING + "from_folder",
    )


def _hub(name: str) -> ModelCard:
    from harness.models.loading.weights import hub_file

    config = hub_file(name, "config.json")
    if config is None:
        raise EnvironmentFault(
            f"{name} is not on this machine and cannot be fetched from the hub",
            f"check the name and the network; if it is gated, accept its licence at https://huggingface.co/{name} "
            "and set HF_TOKEN; or give --model FOLDER",
        )
    values = read_config(config.parent)
    return ModelCard(name=name, summary="a model of the hub", config=values, source=name, licence="see its card")
