"""Scratch space below a shared folder: each process has a folder of its own, locked for as long as the process lives.

Other processes, in other containers too, remove only the folders whose owner is proven to be dead.
"""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import shutil
import threading
from pathlib import Path

from harness.system.locks import Owner, hold

LOCK = "lock"
ATTEMPTS = 10  # another process may take a folder for abandoned just before it is locked
_guards: dict[int, threading.RLock] = {}  # by process: a fork must not inherit a lock that another thread has
_folders: dict[tuple[int, Path], tuple[Path, int]] = {}  # by process and shared folder: ours, and the lock on it


def own_folder(shared: Path) -> Path:
    """The folder of this process, made and locked at its first use."""
    key = (os.getpid(), shared)
    with _guard():
        if key in _folders and (_folders[key][0] / LOCK).exists():
            return _folders[key][0]
        _release(*key)
        shared.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            folder = shared / f"{Owner.here(shared)}-{secrets.token_hex(6)}"
            folder.mkdir()
            lock = hold(folder / LOCK)
            if lock is not None:
                atexit.unregister(_release_all)
                atexit.register(_release_all)
                _folders[key] = folder, lock
                return folder
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def remove(shared: Path, suffix: str) -> None:
    """Remove what this process has in scratch under names that end so, and its folder once that is empty."""
    key = (os.getpid(), shared)
    with _guard():
        if key not in _folders:
            return
        folder = _folders[key][0]
        for path in _listed(folder):
            if path.name.endswith(suffix):
                shutil.rmtree(path, ignore_errors=True)
        if all(path.name == LOCK for path in _listed(folder)):
            _release(*key)


def remove_abandoned(shared: Path) -> None:
    """Remove the folders of processes that are proven to be dead."""
    for folder in _listed(shared):
        owner = Owner.parse(folder.name.partition("-")[0])
        if owner is not None and not folder.is_symlink() and owner.alive(folder / LOCK) is False:
            shutil.rmtree(folder, ignore_errors=True)


def _guard() -> threading.RLock:
    return _guards.setdefault(os.getpid(), threading.RLock())


def _release(process: int, shared: Path) -> None:
    if (process, shared) in _folders:
        folder, lock = _folders.pop((process, shared))
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _release_all() -> None:
    for process, shared in list(_folders):
        if process == os.getpid():
            _release(process, shared)


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:
        return []
