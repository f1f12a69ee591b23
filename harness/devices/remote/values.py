"""Checks values of a device file that become arguments of a command.

They must be one printable line that no program takes for an option.
"""

from __future__ import annotations

from harness.errors import UsageError, one_line

MAX_LENGTH = 4096  # characters; a path can be no longer


def plain_value(text: str, what: str) -> str:
    """Return the text if it can be an argument of a command. Empty text stands for a value that is not given."""
    if len(text) > MAX_LENGTH:
        why = f"has more than {MAX_LENGTH:,} characters"
    elif not text.isprintable():
        why = "has a line break or a control character"
    elif text.startswith("-"):
        why = "begins with a dash, as options do"
    else:
        return text
    raise UsageError(f"{what} {one_line(text, 60)!r} {why}", "correct the device's file")
