"""Checks of names that become paths, and of paths that must stay in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.errors import HarnessError, UsageError, one_line

LONGEST = 100  # characters of a name
_PLAIN_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[\w-])?", re.ASCII)
_WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # with any suffix


def plain_name(text: str, what: str, error: type[HarnessError] = UsageError) -> str:
    """The text, if it can be the name of a file or folder on any system. `what` says in the error what is named."""
    if len(text) > LONGEST or not _PLAIN_NAME.fullmatch(text) or _WINDOWS_DEVICE.fullmatch(text):
        raise error(
            f"{one_line(text, LONGEST)!r} cannot be the name of {what}",
            f"use at most {LONGEST} letters, digits, '.', '_' and '-', with a letter or digit first",
        )
    return text


def below(root: Path, *parts: str | Path, error: type[HarnessError] = HarnessError) -> Path:
    """The joined path. Raises `error` unless it lies below `root` after all links are followed."""
    path = root.joinpath(*parts)
    remedy = f"nothing outside of {one_line(str(root))} is read or written"
    try:
        real, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    except ValueError:  # a NUL, or text that no file system can hold
        raise error(f"{one_line(str(path))} cannot be a path", remedy) from None
    if real == top or not real.is_relative_to(top):
        raise error(f"{one_line(str(path))} leads out of {one_line(str(root))}", remedy)
    return path
