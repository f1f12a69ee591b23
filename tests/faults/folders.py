"""Model folders to harm, and what every refusal of one has in common."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError

ZERO = Path("/dev/zero")
SECONDS = 10  # after which something hangs; what is refused is refused within one of work
DEEP = 3000


def tiny(target: Path) -> Path:
    """A healthy copy of the tiny model."""
    from harness import plugins
    from harness.models.loading.weights import locate

    source, _ = locate(plugins.registry().get("model", "tiny"))
    return Path(shutil.copytree(source, target))


def change(path: Path, **values: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TooLong(Exception):
    """Not a TimeoutError, which is an OSError and so one that code may expect."""


@contextmanager
def limited(seconds: int = SECONDS):
    """End what hangs, whoever catches that."""
    fired = []

    def stop(*_: object) -> None:
        fired.append(True)
        raise TooLong(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not fired, f"no answer within {seconds} s"


def content(folder: Path) -> dict[str, str]:
    """All that lies in a folder: what files hold, where links lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.stat().st_size > 2**24:
            found[name] = f"{path.stat().st_size} bytes"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "special"
    return found


def refused(action: Callable[[], Any], folder: Path, *parts: str, codes: tuple[int, ...] = (2, 3)) -> HarnessError:
    """Assert that an action is refused in one line that has these parts, soon, and that the folder is as it was."""
    before, start = content(folder), time.process_time()
    with limited(), pytest.raises(HarnessError) as caught:
        action()
    took = time.process_time() - start
    assert took < 1.5, f"{took:.1f} s"
    line = caught.value.line
    for part in parts:
        assert part in line, line
    assert line.isprintable()
    assert len(line) < 1500
    assert caught.value.remedy
    assert caught.value.exit_code in codes
    assert content(folder) == before
    return caught.value


def odd_files(path: Path) -> dict[str, Callable[[], object]]:
    """What may stand in a file's place, each by a function that puts it there."""
    return {
        "a folder": lambda: (path.unlink(missing_ok=True), path.mkdir()),
        "a pipe": lambda: (path.unlink(missing_ok=True), os.mkfifo(path)),
        "a link to a device": lambda: (path.unlink(missing_ok=True), path.symlink_to(ZERO)),
        "a link to nothing": lambda: (path.unlink(missing_ok=True), path.symlink_to("nothing")),
        "a link to itself": lambda: (path.unlink(missing_ok=True), path.symlink_to(path.name)),
    }


ODD_FILES = tuple(odd_files(Path()))
