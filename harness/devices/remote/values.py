"""Values of a device file that become words of a command: one printable line that no program takes for an option."""

from __future__ import annotations

from harness.errors import UsageError, one_line

LONGEST = 4096  # characters, as of a path


def plain_value(text: str, what: str) -> str:
    """The text, if it can be a word of a command line. Empty text stands for a value that is not given."""
    if len(text) > LONGEST:
        why = f"has more than {LONGEST:,} characters"
    elif not text.isprintable():
        why = "has a line break or a control character"
    elif text.startswith("-"):
        why = "begins with a dash, as options do"
    else:
        return text
    raise UsageError(f"{what} {one_line(text, 60)!r} {why}", "correct the device's file")
