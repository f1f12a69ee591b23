"""Names that become paths, and joins of paths that must not leave their folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.errors import HarnessError, UsageError, one_line

LONGEST = 100  # characters of a name
_PLAIN = re.compile(r"[A-Za-z0-9](?:[\w.-]*[\w-])?", re.ASCII)
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # of Windows, with any suffix


def plain_name(text: str, what: str, error: type[HarnessError] = UsageError) -> str:
    """The text, if it can be the name of a file or folder on any machine; `what` says whose name it is."""
    if len(text) > LONGEST or not _PLAIN.fullmatch(text) or _DEVICE.fullmatch(text):
        raise error(
            f"{one_line(text, LONGEST)!r} cannot be the name of {what}",
            f"use at most {LONGEST} letters, digits, '.', '_' and '-', with a letter or digit first",
        )
    return text


def below(root: Path, *parts: str | Path, error: type[HarnessError] = HarnessError) -> Path:
    """The joined path, proven to lie below root once all links are followed."""
    path, remedy = root.joinpath(*parts), f"nothing outside of {one_line(str(root))} is read or written"
    try:
        real, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    except ValueError:  # a NUL, or text that no file system can hold
        raise error(f"{one_line(str(path))} cannot be a path", remedy) from None
    if real == top or not real.is_relative_to(top):
        raise error(f"{one_line(str(path))} leads out of {one_line(str(root))}", remedy)
    return path
