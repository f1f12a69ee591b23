"""The cache of model folders, each built at most once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from harness.errors import EnvironmentFault
from harness.system.host import cache_dir
from harness.system.paths import plain_name


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The cached folder of this name. `make` fills it at most once; a folder that is there is complete."""
    folder = cache_dir() / "models" / plain_name(name, "a cached model", EnvironmentFault)
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
                    unfinished = Path(scratch) / "model"
                    unfinished.mkdir()
                    make(unfinished)
                    unfinished.rename(folder)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write the model cache {folder.parent}: {error.strerror or error}",
            "make room, or set HARNESS_CACHE to a folder that can be written",
        ) from error
    return folder
