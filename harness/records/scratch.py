"""Scratch folders in a shared folder: each process has its own, which it locks for as long as it lives.

Other processes, also those in other containers, remove a folder only if its owner is proven dead.
"""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import shutil
import threading
from pathlib import Path

from harness.system.locks import Owner, create_locked

LOCK = "lock"
ATTEMPTS = 10  # another process may remove a new folder as abandoned just before it is locked
_thread_locks: dict[int, threading.RLock] = {}  # by process id: a fork must not use a lock that another thread held
_folders: dict[tuple[int, Path], tuple[Path, int]] = {}  # by process id and shared folder: folder and lock


def own_folder(shared: Path) -> Path:
    """The scratch folder of this process. It is made and locked at the first call."""
    key = (os.getpid(), shared)
    with _thread_lock():
        if key in _folders and (_folders[key][0] / LOCK).exists():
            return _folders[key][0]
        _release(*key)
        shared.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            folder = shared / f"{Owner.here(shared)}-{secrets.token_hex(6)}"
            folder.mkdir()
            lock = create_locked(folder / LOCK)
            if lock is not None:
                atexit.unregister(_release_all)
                atexit.register(_release_all)
                _folders[key] = folder, lock
                return folder
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def remove(shared: Path, suffix: str) -> None:
    """Remove this process's scratch files whose names end with `suffix`, and its scratch folder once it is empty."""
    key = (os.getpid(), shared)
    with _thread_lock():
        if key not in _folders:
            return
        folder = _folders[key][0]
        for path in _entries(folder):
            if path.name.endswith(suffix):
                shutil.rmtree(path, ignore_errors=True)
        if all(path.name == LOCK for path in _entries(folder)):
            _release(*key)


def remove_abandoned(shared: Path) -> None:
    """Remove the scratch folders of processes that are proven dead."""
    for folder in _entries(shared):
        owner = Owner.parse(folder.name.partition("-")[0])
        if owner is not None and not folder.is_symlink() and owner.alive(folder / LOCK) is False:
            shutil.rmtree(folder, ignore_errors=True)


def _thread_lock() -> threading.RLock:
    return _thread_locks.setdefault(os.getpid(), threading.RLock())


def _release(process: int, shared: Path) -> None:
    """Unlock and remove a scratch folder."""
    if (process, shared) in _folders:
        folder, lock = _folders.pop((process, shared))
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _release_all() -> None:
    for process, shared in list(_folders):
        if process == os.getpid():
            _release(process, shared)


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:
        return []
